import csv
import hashlib
import io
import os
import struct
import tracemalloc
import zlib

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from anl import cli, cli_index
from anl.data import indexing, manifest, walk
from anl.data.decode import decode
from anl.errors import UserError
from tests.conftest import photograph
from tests.data.trees import encoded, genimage, write


def run(root, **options):
    """(DataFrame, skipped rows, Summary, what was said)."""
    out, said = root.with_suffix(".parquet"), []
    summary = indexing.index(root, out, say=said.append, **options)
    with open(f"{out}.skipped.csv", newline="", encoding="utf-8") as stream:
        return manifest.read(out), list(csv.DictReader(stream)), summary, said


def reasons(skipped):
    return {row["path"]: row["reason"] for row in skipped}


def test_a_tree_becomes_rows(tmp_path):
    root = genimage(tmp_path / "set")
    table, skipped, summary, said = run(root)
    assert len(table) == summary.images == 24 and not skipped and summary.skipped == 0
    assert said[0].startswith("layout genimage: ") and "explains 100%" in said[0]
    row = table[table["path"] == "Midjourney/val/ai/1.png"].iloc[0]
    data = (root / row["path"]).read_bytes()
    assert (row["label"], row["generator"], row["split"], row["source_real"], row["dataset"]) == (
        1, "midjourney", "test", "midjourney", "genimage")
    assert row["sha256"] == hashlib.sha256(data).hexdigest() and row["bytes"] == len(data)
    assert (row["width"], row["height"], row["format"]) == (24, 24, "PNG")
    assert manifest.root_of(tmp_path / "set.parquet") == root and not (tmp_path / ".set.parquet.parts").exists()
    assert set(table["family"][table["label"] == 0]) == {"real"}


def test_counts_stand_beside_expected_ones(tmp_path):
    expected = {("test", "adm", 1): 3, ("test", "real", 0): 6, ("test", "biggan", 1): 5, (None, None, 1): 12}
    for given in (expected, lambda dataset: expected if dataset == "genimage" else None):
        _, _, summary, _ = run(genimage(tmp_path / "set"), expected=given)
        rows = {row[:3]: row[3:] for row in summary.rows}
        assert rows["test", "adm", 1] == (3, 0, 3) and rows["test", "real", 0] == (6, 0, 6)
        assert rows["test", "biggan", 1] == (0, 0, 5) and rows["train", "adm", 1] == (3, 0, None)
        assert rows["all", "all", 1] == (12, 0, 12)


def test_bad_files_are_listed_with_their_reason_and_counted(tmp_path):
    whole = encoded(1, "JPEG", 64)
    damaged = bytearray(encoded(2))
    start = damaged.index(b"IDAT") + 100
    damaged[start:start + 30] = bytes(30)
    root = write(genimage(tmp_path / "set"), {
        "ADM/val/ai/cut.jpg": whole[:-200], "ADM/val/ai/empty.png": b"", "ADM/val/ai/notes.txt": b"hello",
        "ADM/val/ai/damaged.png": bytes(damaged), "docs/figure.png": encoded(3), "README": b"x"})
    table, skipped, summary, _ = run(root)
    found = reasons(skipped)
    assert "cut short" in found["ADM/val/ai/cut.jpg"] and "empty (0 bytes)" in found["ADM/val/ai/empty.png"]
    assert "no image of a known format" in found["ADM/val/ai/notes.txt"]
    assert "cannot be decoded" in found["ADM/val/ai/damaged.png"]
    assert found["docs/"] == found["/"] == "outside the layout genimage"
    assert len(table) == 24 and summary.skipped == 6
    assert {row[:5] for row in summary.rows if row[4]} == {("test", "adm", 1, 3, 4), ("-", "outside or not entered", "-", 0, 2)}


def saved(image, kind, **options):
    stream = io.BytesIO()
    image.save(stream, format=kind, **options)
    return stream.getvalue()


def with_sides(png, width, height):
    """The bytes of a PNG whose header claims another size."""
    head = b"IHDR" + struct.pack(">II", width, height) + png[24:29]
    return png[:12] + head + struct.pack(">I", zlib.crc32(head)) + png[33:]


def test_odd_kinds_of_images_are_rows_or_stand_with_their_reason(tmp_path):
    """What the field's folders hold beside plain pictures: each is a row with the size that is seen, or listed and counted."""
    frames = [Image.fromarray(photograph(seed, 20, 20)) for seed in range(2)]
    picture = Image.fromarray(photograph(950, 40, 60))  # 60 wide, 40 high
    turned = Image.Exif()
    turned[0x0112] = 6
    read = {"cmyk.jpg": (saved(picture.convert("CMYK"), "JPEG"), (60, 40, "JPEG")),
            "sixteen.png": (saved(Image.fromarray(np.asarray(picture)[..., 0].astype(np.uint16) * 257), "PNG"), (60, 40, "PNG")),
            "palette.png": (saved(picture.convert("P"), "PNG"), (60, 40, "PNG")),
            "alpha.png": (saved(picture.convert("RGBA"), "PNG"), (60, 40, "PNG")),
            "turned.jpg": (saved(picture, "JPEG", exif=turned), (40, 60, "JPEG")),
            "still.gif": (saved(picture, "GIF"), (60, 40, "GIF"))}
    refused = {"huge.png": (with_sides(encoded(951), 30000, 30000), "over the limit of"),
               "moving.gif": (saved(frames[0], "GIF", save_all=True, append_images=frames[1:]), "animated or of several pages"),
               "float.tif": (saved(Image.fromarray(np.zeros((4, 4), np.float32)), "TIFF"), "floating-point")}
    root = write(genimage(tmp_path / "set"), {f"ADM/val/ai/{name}": data for name, (data, _) in {**read, **refused}.items()})
    for decode_too in (True, False):
        table, skipped, summary, _ = run(root, decode=decode_too)
        rows = table.set_index("path")
        for name, (_, expected) in read.items():
            assert tuple(rows.loc[f"ADM/val/ai/{name}", ["width", "height", "format"]]) == expected, name
        lost = {name: words for name, (_, words) in refused.items() if decode_too or name != "float.tif"}  # known by its pixels
        assert len(skipped) == len(lost) and len(table) + len(skipped) == 24 + len(read) + len(refused)
        assert all(words in reasons(skipped)[f"ADM/val/ai/{name}"] for name, words in lost.items())
        assert {row[:5] for row in summary.rows if row[4]} == {("test", "adm", 1, 3 + len(table) - 24, len(lost))}


def test_a_tree_that_fits_two_layouts_is_refused_until_one_is_chosen(tmp_path, capsys):
    root = genimage(tmp_path / "set")
    for name in ("0_real", "1_fake"):
        write(root, {f"progan/{name}/{i}.png": encoded(960 + i + 10 * len(name) + (name > "1")) for i in range(6)})
    assert cli.main(["index", str(root)]) == 2
    said = capsys.readouterr().err
    assert "2 layouts fit this tree" in said and "--layout binary or --layout genimage" in said
    assert not (tmp_path / "set.parquet").exists()
    assert cli.main(["index", str(root), "--layout", "genimage"]) == 0
    assert "24 images" in capsys.readouterr().out


def test_headers_alone_do_not_find_damage_inside_and_leave_looks_open(tmp_path):
    table, _, _, _ = run(genimage(tmp_path / "set"), decode=False)
    assert table["phash"].isna().all()
    assert run(genimage(tmp_path / "set"))[0]["phash"].notna().all()


def test_one_image_in_both_classes_is_taken_from_both(tmp_path):
    root = write(genimage(tmp_path / "set"), {"ADM/val/ai/x.png": encoded(7), "Midjourney/train/nature/y.png": encoded(7)})
    table, skipped, _, _ = run(root)
    assert reasons(skipped) == dict.fromkeys(("ADM/val/ai/x.png", "Midjourney/train/nature/y.png"),
                                             "the same bytes are in both classes")
    assert len(table) == 24


def test_odd_names_survive(tmp_path):
    names = ["a b.png", "..dots...png", "größe 🙂.png", "new\nline.png", "back\\slash.png", os.fsdecode(b"latin\xe9.png"), "no_ending"]
    root = write(genimage(tmp_path / "set"), {f"ADM/val/ai/{name}": encoded(900 + i) for i, name in enumerate(names)})
    table, skipped, _, _ = run(root)
    assert not skipped and len(table) == 24 + len(names)
    for path, digest in zip(table["path"], table["sha256"]):
        assert path.isprintable()
        assert hashlib.sha256((root / manifest.file_path(path)).read_bytes()).hexdigest() == digest
    assert {r"ADM/val/ai/new\x0aline.png", r"ADM/val/ai/latin\xe9.png", r"ADM/val/ai/back\\slash.png"} <= set(table["path"])
    assert decode(root / manifest.file_path(r"ADM/val/ai/new\x0aline.png")).shape == (24, 24, 3)


def test_names_that_differ_in_case_are_kept_and_told(tmp_path):
    root = write(genimage(tmp_path / "set"), {"ADM/val/ai/A.png": encoded(901), "ADM/val/ai/a.png": encoded(902)})
    told_apart = {"A.png", "a.png"} <= set(os.listdir(root / "ADM/val/ai"))  # not on every file system
    table, _, summary, _ = run(root)
    assert len(table) == (26 if told_apart else 25)
    assert any("1 pair(s) of names differ in case" in note for note in summary.notes) == told_apart


def test_links_are_followed_once_round(tmp_path):
    root = genimage(tmp_path / "set")
    write(tmp_path / "elsewhere", {"1.png": encoded(903)})
    (root / "ADM/val/ai/back").symlink_to(root, target_is_directory=True)
    (root / "ADM/val/ai/itself").symlink_to("itself")
    (root / "ADM/val/ai/nowhere.png").symlink_to("nowhere")
    (root / "ADM/val/ai/more").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    table, skipped, _, _ = run(root)
    found = reasons(skipped)
    assert "a folder that is listed already" in found["ADM/val/ai/back"]
    assert all("leads nowhere or to itself" in found[f"ADM/val/ai/{name}"] for name in ("itself", "nowhere.png"))
    assert "ADM/val/ai/more/1.png" in set(table["path"]) and len(table) == 25


def test_a_folder_that_cannot_be_read_is_listed(tmp_path, monkeypatch):
    root, scandir = genimage(tmp_path / "set"), os.scandir

    def closed(path):
        if str(path).endswith("ADM/train"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(walk.os, "scandir", closed)
    table, skipped, _, _ = run(root)
    assert reasons(skipped) == {"ADM/train": "folder cannot be read (Permission denied)"} and len(table) == 18


def test_a_missing_class_folder_is_listed_and_a_missing_class_refused(tmp_path):
    root = genimage(tmp_path / "set")
    for path in (root / "ADM/val/nature").iterdir():
        path.unlink()
    table, skipped, _, _ = run(root)
    assert reasons(skipped) == {"test/adm": "class folder missing"} and len(table) == 21
    fakes = write(tmp_path / "fakes", {"glide/fake/1.png": encoded(1), "adm/fake/2.png": encoded(2)})
    with pytest.raises(UserError, match="no folder of real images: layout community_forensics .*--one-class"):
        run(fakes, layout="community_forensics")
    assert len(run(fakes, layout="community_forensics", one_class=True)[0]) == 2


@pytest.mark.parametrize("layout, words", [("genimage", "has no folder for any"), ("no", "there is no layout 'no'")])
def test_a_wrong_layout_is_refused(tmp_path, layout, words):
    with pytest.raises(UserError, match=words):
        run(write(tmp_path / "set", {"real/1.png": encoded(1), "fake/1.png": encoded(2)}), layout=layout)


def test_a_root_that_is_none(tmp_path):
    with pytest.raises(UserError, match="is not a folder"):
        run(tmp_path / "none")


def test_a_killed_run_goes_on_from_its_last_part(tmp_path, monkeypatch):
    monkeypatch.setattr(indexing, "PART", 5)
    root, done = genimage(tmp_path / "set"), []

    def describe(path, decode=True, stop=12):
        if len(done) == stop:
            raise KeyboardInterrupt
        done.append(path)
        return real(path, decode)

    real = indexing.describe
    monkeypatch.setattr(indexing, "describe", describe)
    with pytest.raises(KeyboardInterrupt):
        run(root)
    assert not (tmp_path / "set.parquet").exists()
    first = list(done)
    done.clear()
    os.utime(root / "ADM/train/ai/0.png", ns=(1, 1))  # changed since: its part is read again
    monkeypatch.setattr(indexing, "describe", lambda path, decode=True: describe(path, decode, -1))
    resumed = run(root)[0]
    assert len(first) == 12 and len(done) == 24 - 5  # of the two whole parts the unchanged one is kept
    monkeypatch.setattr(indexing, "describe", real)
    assert resumed.equals(run(root)[0])


def test_workers_change_nothing(tmp_path):
    root = genimage(tmp_path / "set")
    assert run(root, workers=2)[0].equals(run(root, workers=1)[0])


def test_memory_does_not_grow_with_the_tree(tmp_path, monkeypatch):
    """Python's own memory and Arrow's, at four times as many files in four times as many folders."""
    monkeypatch.setattr(indexing, "PART", 40)
    monkeypatch.setattr(manifest, "ROW_GROUP", 40)
    peaks = []
    for folders in (2, 8, 32):  # the first makes what is made once
        root = write(tmp_path / f"set{folders}", {f"class{n:02d}/{label}/{i}.png": encoded(1000 * n + 10 * i + (label > "1"), size=8)
                                                  for n in range(folders) for label in ("0_real", "1_fake") for i in range(10)})
        allocated = []
        write_part = indexing.pq.write_table

        def noted(*args, seen=allocated, write_part=write_part, **options):
            seen.append(pa.total_allocated_bytes())
            return write_part(*args, **options)

        monkeypatch.setattr(indexing.pq, "write_table", noted)
        tracemalloc.start()
        assert run_counted(root) == 20 * folders
        peaks.append(tracemalloc.get_traced_memory()[1] + max(allocated))
        tracemalloc.stop()
        monkeypatch.setattr(indexing.pq, "write_table", write_part)
    assert peaks[2] < 1.5 * peaks[1], peaks


def run_counted(root):
    return indexing.index(root, root.with_suffix(".parquet"), workers=1, decode=False, say=lambda text: None).images


def test_the_registry_says_what_to_expect():
    assert cli_index.expected_counts("cifake")["train", "sd14", 1] == 50000
    assert cli_index.expected_counts("none") == {}


def test_command(tmp_path, capsys):
    root = genimage(tmp_path / "set")
    assert cli.main(["index", str(root)]) == 0
    printed = capsys.readouterr().out
    assert "layout genimage" in printed and "set.parquet: 24 images" in printed
    assert printed.splitlines()[1].split() == ["split", "generator", "label", "images", "skipped", "expected"]
    assert cli.main(["index", str(root), "--workers", "0"]) == 2 and cli.main(["index", str(tmp_path / "no")]) == 2
    assert cli.main(["index", str(root), "--layout", "no"]) == 2
    assert "Traceback" not in capsys.readouterr().err
