import csv
import hashlib
import os
import tracemalloc

import pytest

from anl.data import indexing, manifest, walk
from anl.data.decode import decode
from anl.io import UserError
from tests.data.trees import encoded, genimage, write


def run(root, **options):
    """(DataFrame, {path: reason} of skipped files, Summary)."""
    out = root.with_suffix(".parquet")
    summary = indexing.index(root, out, **options)
    with open(f"{out}.skipped.csv", newline="", encoding="utf-8") as stream:
        return manifest.read(out), {row["path"]: row["reason"] for row in csv.DictReader(stream)}, summary


@pytest.fixture
def root(tmp_path):
    """Two generators in GenImage's tree, 24 images."""
    return genimage(tmp_path / "set")


def test_a_tree_becomes_rows(root, tmp_path, capsys):
    table, skipped, summary = run(root)
    assert len(table) == summary.images == 24 and not skipped and summary.skipped == 0
    assert capsys.readouterr().out.startswith("layout genimage: ")
    row = table[table["path"] == "Midjourney/val/ai/1.png"].iloc[0]
    data = (root / row["path"]).read_bytes()
    assert (row["label"], row["generator"], row["split"], row["source_real"], row["dataset"]) == (
        1, "midjourney", "test", "midjourney", "genimage")
    assert row["sha256"] == hashlib.sha256(data).hexdigest() and row["bytes"] == len(data)
    assert (row["width"], row["height"], row["format"]) == (24, 24, "PNG") and table["phash"].notna().all()
    assert manifest.root_of(tmp_path / "set.parquet") == root and not (tmp_path / ".set.parquet.parts").exists()
    assert set(table["family"][table["label"] == 0]) == {"real"}
    headers = run(root, decode=False, workers=2)[0]
    assert headers.drop(columns="phash").equals(table.drop(columns="phash")) and headers["phash"].isna().all()


def test_counts_are_compared_with_expected_ones(root):
    expected = {("test", "adm", 1): 3, ("test", "real", 0): 6, ("test", "biggan", 1): 5, (None, None, 1): 12}
    rows = {row[:3]: row[3:] for row in run(root, expected={"genimage": expected}.get)[2].rows}
    assert rows["test", "adm", 1] == (3, 0, 3) and rows["test", "real", 0] == (6, 0, 6)
    assert rows["test", "biggan", 1] == (0, 0, 5) and rows["train", "adm", 1] == (3, 0, None)
    assert rows["all", "all", 1] == (12, 0, 12)


def test_bad_files_are_skipped_with_a_reason(root):
    damaged = bytearray(encoded(2))
    start = damaged.index(b"IDAT") + 100
    damaged[start:start + 30] = bytes(30)
    write(root, {"ADM/val/ai/cut.jpg": encoded(1, "JPEG", 64)[:-200], "ADM/val/ai/empty.png": b"",
                 "ADM/val/ai/notes.txt": b"hello", "ADM/val/ai/damaged.png": bytes(damaged), "docs/figure.png": encoded(3),
                 "README": b"x", "ADM/val/ai/x.png": encoded(7), "Midjourney/train/nature/y.png": encoded(7)})
    table, skipped, summary = run(root)
    assert "truncated" in skipped["ADM/val/ai/cut.jpg"] and "empty (0 bytes)" in skipped["ADM/val/ai/empty.png"]
    assert "not an image" in skipped["ADM/val/ai/notes.txt"] and "cannot be decoded" in skipped["ADM/val/ai/damaged.png"]
    assert skipped["docs/"] == skipped["/"] == "outside the layout genimage"
    assert skipped["ADM/val/ai/x.png"] == skipped["Midjourney/train/nature/y.png"] == "the same bytes are in both classes"
    assert len(table) == 24 and summary.skipped == 8
    assert {row[:5] for row in summary.rows if row[4]} == {("test", "adm", 1, 3, 5), ("train", "real", 0, 6, 1),
                                                          ("-", "outside the layout or unreadable", "-", 0, 2)}


def test_unusual_file_names_survive(root):
    names = ["a b.png", "..dots...png", "größe 🙂.png", "new\nline.png", "back\\slash.png", os.fsdecode(b"latin\xe9.png"),
             "no_ending"]
    write(root, {f"ADM/val/ai/{name}": encoded(900 + i) for i, name in enumerate(names)})
    table, skipped, _ = run(root)
    assert not skipped and len(table) == 24 + len(names)
    for path, digest in zip(table["path"], table["sha256"]):
        assert path.isprintable() and hashlib.sha256((root / manifest.file_path(path)).read_bytes()).hexdigest() == digest
    assert {r"ADM/val/ai/new\x0aline.png", r"ADM/val/ai/latin\xe9.png", r"ADM/val/ai/back\\slash.png"} <= set(table["path"])
    assert decode(root / manifest.file_path(r"ADM/val/ai/new\x0aline.png")).shape == (24, 24, 3)


def test_links_are_followed_once(root, tmp_path):
    write(tmp_path / "elsewhere", {"1.png": encoded(903)})
    (root / "ADM/val/ai/back").symlink_to(root, target_is_directory=True)
    (root / "ADM/val/ai/itself").symlink_to("itself")
    (root / "ADM/val/ai/nowhere.png").symlink_to("nowhere")
    (root / "ADM/val/ai/more").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (root / "ADM/val/again").symlink_to(root / "ADM/val/ai", target_is_directory=True)  # stands before the real folder
    table, skipped, _ = run(root)
    assert all("already listed" in skipped[path] for path in ("ADM/val/ai/back", "ADM/val/again"))
    assert all("cannot be opened" in skipped[f"ADM/val/ai/{name}"] for name in ("itself", "nowhere.png"))
    assert "ADM/val/ai/more/1.png" in set(table["path"]) and len(table) == 25


def test_unreadable_folders_are_listed(root, monkeypatch):
    scandir = os.scandir

    def closed(path):
        if str(path).endswith("ADM/train"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(walk.os, "scandir", closed)
    table, skipped, _ = run(root)
    assert skipped == {"ADM/train": "folder cannot be read (Permission denied)"} and len(table) == 18


def test_missing_classes(root, tmp_path):
    for path in (root / "ADM/val/nature").iterdir():
        path.unlink()
    table, skipped, _ = run(root)
    assert skipped == {"test/adm": "class folder missing"} and len(table) == 21
    fakes = write(tmp_path / "fakes", {"glide/fake/1.png": encoded(1), "adm/fake/2.png": encoded(2)})
    with pytest.raises(UserError, match="no folder of real images for layout community_forensics .*--one-class"):
        run(fakes, layout="community_forensics")
    assert len(run(fakes, layout="community_forensics", one_class=True)[0]) == 2


@pytest.mark.parametrize("name, layout, words", [
    ("set", "drct", "matches no folder with images"), ("set", "no", "there is no layout 'no'"),
    ("none", None, "is not a folder")])
def test_wrong_layouts_and_roots_are_refused(root, tmp_path, name, layout, words):
    with pytest.raises(UserError, match=words):
        run(tmp_path / name, layout=layout)


def test_an_interrupted_run_continues(root, monkeypatch):
    monkeypatch.setattr(indexing, "PART", 5)
    original, done, stop = indexing.read_header, [], [12]

    def read_header(data):
        if len(done) == stop[0]:
            raise KeyboardInterrupt
        done.append(data)
        return original(data)

    monkeypatch.setattr(indexing, "read_header", read_header)
    with pytest.raises(KeyboardInterrupt):
        run(root)
    assert not root.with_suffix(".parquet").exists() and len(done) == 12
    done.clear()
    stop[0] = None
    os.utime(root / "ADM/train/ai/0.png", ns=(1, 1))  # changed since: its part is read again
    resumed = run(root)[0]
    assert len(done) == 24 - 5 and resumed.equals(run(root)[0])  # of two complete parts the unchanged one was kept


def test_memory_does_not_grow_with_the_tree(tmp_path, monkeypatch):
    monkeypatch.setattr(indexing, "PART", 20)
    monkeypatch.setattr(manifest, "ROW_GROUP", 20)
    peaks = []
    for folders in (2, 4, 16):  # the first run allocates what is allocated once
        root = write(tmp_path / f"set{folders}", {f"class{n:02d}/{label}/{i}.png": encoded(1000 * n + 10 * i + fake, size=8)
                                                  for n in range(folders) for i in range(5)
                                                  for fake, label in enumerate(("0_real", "1_fake"))})
        tracemalloc.start()
        assert len(run(root, workers=1, decode=False)[0]) == 10 * folders
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[2] < 1.5 * peaks[1], peaks
