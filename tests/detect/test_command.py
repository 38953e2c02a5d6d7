"""`anl detect`: which files, in which reports, with what strangers' folders may hold."""

import csv
import io
import json
import os
import sys
import types
import zipfile
import zlib

import pytest
from PIL import Image

from anl.detect import card as cards
from anl.detect import command
from anl.detect.detector import load_detector
from anl.io import UserError
from tests.conftest import photograph
from tests.data.test_video import write_video


@pytest.fixture
def pictures(tmp_path):
    """A folder with two pictures, a letter, an empty file and a folder below."""
    place = tmp_path / "pictures"
    (place / "below").mkdir(parents=True)
    for name, seed in (("a.png", 1), ("b.jpg", 2), ("below/c.png", 3)):
        Image.fromarray(photograph(seed, 50, 70)).save(place / name)
    (place / "letter.txt").write_text("Dear all")
    (place / "empty.png").touch()
    return place


@pytest.fixture
def detect(folder, capsys):
    """run_detect -> (status, standard output, standard error)."""
    def run(*paths, **options):
        status = command.run_detect(list(paths), detector=folder, device="cpu", **options)
        return (status, *capsys.readouterr())
    return run


def test_json_has_a_row_for_every_file_and_a_problem_for_odd_ones(detect, pictures, folder):
    status, out, said = detect(pictures, form="json")
    rows = [json.loads(line) for line in out.splitlines()]
    assert status == 1 and [os.path.basename(row["path"]) for row in rows] == ["a.png", "b.jpg", "empty.png", "letter.txt", "c.png"]
    assert all(set(row) == set(command.FIELDS) and row["detector"] == cards.read(folder).identity for row in rows)
    assert [row["verdict"] is None for row in rows] == [False, False, True, True, False]
    assert rows[2]["problem"] == "empty (0 bytes)" and "of a known format" in rows[3]["problem"]
    assert all(0 <= row["probability"] <= 1 and (row["width"], row["height"]) == (70, 50) for row in rows if row["verdict"])
    assert "5 files: " in said and "2 could not be read" in said


def test_folders_below_are_left_out_on_request(detect, pictures):
    _, out, _ = detect(pictures, form="json", recursive=False)
    assert "c.png" not in out and len(out.splitlines()) == 4


def test_csv_and_table_say_the_same(detect, pictures):
    _, out, _ = detect(pictures / "a.png", pictures / "letter.txt", form="csv")
    rows = list(csv.DictReader(io.StringIO(out)))
    status, table, said = detect(f"{pictures}/a.*", pictures / "letter.txt")
    assert status == 1 and [row["verdict"] for row in rows] == [table.splitlines()[1].split()[0], ""]
    assert table.splitlines()[0].startswith("verdict") and "not read" in table and "letter.txt: not an image" in table
    assert "No verdict proves anything" in said
    status, _, _ = detect(pictures / "a.png", form="csv")
    assert status == 0


def test_a_list_on_standard_input_is_read_once_each(detect, pictures, monkeypatch):
    listed = f"{pictures}/a.png\n\n{pictures}/a.png\r\n".encode()
    monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(buffer=io.BytesIO(listed)))
    status, out, _ = detect("-", pictures / "a.png", form="json")
    assert status == 0 and len(out.splitlines()) == 1


def test_a_list_separated_by_zero_bytes_is_not_read(detect, pictures, monkeypatch):
    monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(buffer=io.BytesIO(f"{pictures}/a.png\0{pictures}/b.jpg\0".encode())))
    status, out, _ = detect("-", form="json")
    assert status == 1 and json.loads(out)["problem"] == "not a path; give one path a line"


def test_a_killed_run_goes_on_where_it_stopped(detect, pictures, tmp_path, folder):
    kept = tmp_path / "scores.jsonl"
    _, whole, _ = detect(pictures, form="json")
    kept.write_text("".join(f"{line}\n" for line in whole.splitlines()[:2]) + whole.splitlines()[2][:20])
    status, out, said = detect(pictures, form="json", resume=kept)
    assert status == 1 and kept.read_text() == whole and len(out.splitlines()) == 3 and "2 of them were in" in said
    status, out, said = detect(tmp_path, form="json", resume=kept)  # its own file is not a picture
    assert out == "" and "5 files" in said
    (tmp_path / "notes.txt").write_text("hello\n")
    with pytest.raises(UserError, match="line 1, is not a line of `anl detect --format json`"):
        detect(pictures, resume=tmp_path / "notes.txt")
    for text in ("my only copy", '{"a": 1}', '{"path": "x"}'):  # without a newline at its end, but no line that was cut short
        (tmp_path / "notes.txt").write_text(text)
        with pytest.raises(UserError, match="line 1, is not a line of `anl detect --format json`"):
            detect(pictures, resume=tmp_path / "notes.txt")
        assert (tmp_path / "notes.txt").read_text() == text
    kept.write_text(whole.replace(cards.read(folder).identity, "0" * 12))
    with pytest.raises(UserError, match="is a score of another detector"):
        detect(pictures, resume=kept)


def test_maps_are_drawn_and_not_scored_themselves(detect, pictures, tmp_path):
    detect(pictures, form="json", maps=pictures / "maps")
    assert sorted(path.name[:5] for path in (pictures / "maps").iterdir()) == ["a.png", "b.jpg", "c.png"]
    _, out, _ = detect(pictures, form="json", maps=pictures / "maps")
    assert len(out.splitlines()) == 5


def test_a_video_is_scored_by_its_frames_whatever_its_name(detect, pictures, folder):
    write_video(pictures / "clip.mp4", frames=40, size=(96, 64))
    (pictures / "b.mp4").write_bytes((pictures / "b.jpg").read_bytes())
    (pictures / "hidden.jpg").write_bytes((pictures / "clip.mp4").read_bytes())
    (pictures / "sound.mp4").write_bytes((pictures / "clip.mp4").read_bytes()[:60])
    status, out, _ = detect(pictures, form="json", recursive=False, maps=pictures / "maps")
    rows = {os.path.basename(row["path"]): row for row in map(json.loads, out.splitlines())}
    clip, hidden = rows["clip.mp4"], rows["hidden.jpg"]
    assert len(clip["frames"]) == 16 and clip["logit"] == hidden["logit"] and (clip["width"], clip["height"]) == (96, 64)
    assert clip["logit"] == pytest.approx(sum(frame["logit"] for frame in clip["frames"]) / 16, abs=1e-3)
    assert clip["generated_share"] == sum(frame["probability"] > 0.5 for frame in clip["frames"]) / 16
    assert rows["b.mp4"]["logit"] == rows["b.jpg"]["logit"] and rows["b.jpg"]["frames"] is rows["b.jpg"]["generated_share"] is None
    assert "a video that cannot be decoded" in rows["sound.mp4"]["problem"] and status == 1
    _, table, _ = detect(pictures / "clip.mp4")
    assert "of 16 frames above 0.5" in table
    _, out, _ = detect(pictures / "clip.mp4", form="csv")
    assert next(csv.DictReader(io.StringIO(out)))["frames"] == "16"
    score = load_detector(folder).score(pictures / "clip.mp4")
    assert round(score.logit, 4) == clip["logit"] and [round(frame.time, 3) for frame in score.frames] == [f["time"] for f in clip["frames"]]
    with pytest.raises(UserError, match="sound.mp4' is refused: a video that cannot be decoded"):
        load_detector(folder).score(str(pictures / "sound.mp4"))


def test_explain_needs_no_pictures(detect, pictures):
    status, out, _ = detect(explain=True)
    assert status == 0 and "It never saw images by vae" in out
    status, out, said = detect(pictures / "a.png", form="json", explain=True)
    assert status == 0 and len(out.splitlines()) == 1 and "It never saw images by vae" in said


@pytest.mark.parametrize(("paths", "options", "message"), [
    ([], {}, "no pictures are named"), (["no/such"], {}, "there is no file, folder or match 'no/such'"),
    (["."], {"form": "xml"}, "--format xml is unknown; choose one of table, json, csv"), (["."], {"workers": 0}, "at least 1"),
    (["."], {"device": "tpu9"}, "is not a device here")])
def test_mistakes_are_one_line(folder, paths, options, message):
    with pytest.raises(UserError, match=message):
        command.run_detect(paths, detector=folder, **options)


@pytest.mark.parametrize(("options", "message"), [
    ({"maps": ""}, "--map is empty"), ({"resume": ""}, "--resume is empty"), ({"maps": "pictures/a.png"}, "is a file; name a folder"),
    ({"maps": "pictures"}, "is a folder of the pictures to score")])
def test_maps_and_scores_need_a_place_of_their_own(detect, pictures, monkeypatch, options, message):
    monkeypatch.chdir(pictures.parent)
    for path in ("pictures", "pictures/a.png"):
        with pytest.raises(UserError, match=message):
            detect(path, **options)


def test_an_interrupt_ends_with_its_status(detect, pictures, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(command, "score_files", interrupted)
    status, _, said = detect(pictures)
    assert status == 130 and "--resume" in said


def test_names_that_are_not_utf8_or_steer_a_terminal(detect, pictures, tmp_path):
    place, data = tmp_path / "names", (pictures / "b.jpg").read_bytes()
    place.mkdir()
    names = [b"caf\xe9.jpg", b"\x1b[31mred.jpg", "\u202egpj.exe.jpg".encode(), b"two\nlines.jpg"]
    for name in names:
        with open(os.fsencode(place) + b"/" + name, "wb") as file:
            file.write(data)
    status, out, _ = detect(place, form="json", maps=tmp_path / "maps")
    assert status == 0 and sorted(os.fsencode(os.path.basename(json.loads(line)["path"])) for line in out.splitlines()) == sorted(names)
    assert len(list((tmp_path / "maps").iterdir())) == 4
    _, out, _ = detect(place, form="csv")
    assert any(row["path"].endswith("caf\\udce9.jpg") for row in csv.DictReader(io.StringIO(out)))
    _, out, _ = detect(place)
    assert len(out.splitlines()) == 5 and "\x1b" not in out and "\u202e" not in out


def test_a_picture_with_something_behind_it_and_files_that_pretend(detect, pictures, tmp_path):
    place, whole = tmp_path / "odd", (pictures / "b.jpg").read_bytes()
    place.mkdir()
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("run.py", "print('run')")
    for number, tail in enumerate((b"", archive.getvalue(), b"<script>alert(1)</script>")):
        (place / f"{number}.jpg").write_bytes(whole + tail)
    pretended = (b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"#!/bin/sh\n", b"GIF89a/*", b"\x80\x04K\x01.")
    for number, data in enumerate(pretended):
        (place / f"x{number}.jpg").write_bytes(data)
    head = bytearray(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + (100_000).to_bytes(4) * 2 + b"\x08\x02\0\0\0")
    head += zlib.crc32(head[12:]).to_bytes(4) + b"\0\0\0\0IDAT\x35\xaf\x06\x1e\0\0\0\0IEND\xae\x42\x60\x82"
    (place / "y.png").write_bytes(head)
    Image.new("1", (100_000, 3)).save(place / "z.png")  # 100,000 along one side alone is a picture
    status, out, _ = detect(place, form="json")
    rows = [json.loads(line) for line in out.splitlines()]
    assert status == 1 and len({row["logit"] for row in rows[:3]}) == 1
    assert all(row["problem"] and row["verdict"] is None for row in rows[3:8]) and "over the limit" in rows[7]["problem"]
    assert rows[8]["width"] == 100_000 and rows[8]["crops"] == 16


def test_folders_deeper_than_a_path_may_be_long_are_reported(tmp_path):
    top = os.getcwd()
    (tmp_path / "top").mkdir()
    (tmp_path / "top/a.png").write_bytes(b"x")
    try:
        os.chdir(tmp_path / "top")
        for _ in range(40):
            os.mkdir("d" * 120)
            os.chdir("d" * 120)
    finally:
        os.chdir(top)
    found = list(command.find([str(tmp_path / "top")]))
    assert found[0] == (str(tmp_path / "top/a.png"), None) and any("too long" in problem for _, problem in found if problem)


def test_reading_stays_ahead_by_a_bounded_number_and_in_order():
    taken = []

    def items():
        for number in range(50):
            taken.append(number)
            yield number

    found = []
    for result in command.read_ahead(items(), lambda item: -item, workers=2, ahead=4):
        assert len(taken) - len(found) <= 8
        found.append(result)
    assert found == [-number for number in range(50)]


def test_probabilities_are_never_certain():
    assert [command.two_digits(value) for value in (0.0, 0.5, 1.0, None)] == ["under 0.01", "0.50", "over 0.99", ""]
