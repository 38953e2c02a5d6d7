import io
import json
import sys
import types

import numpy as np
import pytest
from PIL import Image

from anl import cli
from anl.detect import card
from tests.conftest import photograph
from tests.detect.conftest import folder, run  # noqa: F401  fixtures


@pytest.fixture
def pictures(tmp_path):
    place = tmp_path / "pictures"
    place.mkdir()
    for index, size in enumerate([(40, 40), (90, 130), (64, 64)]):
        Image.fromarray(photograph(index, *size)).save(place / f"{index}.png")
    (place / "3.png").write_bytes(b"")
    (place / "4.jpg").write_bytes(b"<svg onload='alert(1)'/>")
    return place


def lines(capsys):
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_every_picture_has_a_line_in_order_and_unread_ones_a_reason(pictures, folder, capsys):  # noqa: F811
    assert cli.main(["detect", str(pictures), "--model", str(folder), "--json"]) == 1
    found = lines(capsys)
    assert [line["path"] for line in found] == [f"{pictures}/{index}.{'jpg' if index == 4 else 'png'}" for index in range(5)]
    assert all(0 <= line["probability"] <= 1 and line["error"] is None for line in found[:3])
    assert [line["error"] for line in found[3:]] == ["empty (0 bytes)", "no image of a known format (SVG, a drawing without pixels)"]
    assert cli.main(["detect", str(pictures / "0.png"), str(pictures / "1.png"), "--model", str(folder)]) == 0
    table, said = capsys.readouterr()
    table = table.splitlines()
    assert len(table) == 3 and table[1].split()[0] == found[0]["verdict"]
    assert said.startswith("anl detect: 2 files: ") and "A demonstration" in said and "No verdict proves anything" in said
    assert cli.main(["detect", str(pictures / "*.png"), "--model", str(folder), "--csv", "--batch-size", "1"]) == 1
    rows = capsys.readouterr().out.splitlines()
    assert len(rows) == 5 and rows[1].startswith(f"{pictures}/0.png,{found[0]['verdict']},")


def test_resume_scores_only_what_is_left(pictures, folder, tmp_path, capsys):  # noqa: F811
    out = tmp_path / "out.jsonl"
    arguments = ["--model", str(folder), "--json", "--resume", str(out)]
    assert cli.main(["detect", str(pictures / "0.png"), *arguments]) == 0
    first = out.read_text()
    assert cli.main(["detect", str(pictures), *arguments]) == 1
    assert out.read_text().startswith(first) and len(out.read_text().splitlines()) == 5
    out_, said = capsys.readouterr()
    assert [json.loads(line)["path"][-5:] for line in out_.splitlines()[1:]] == ["1.png", "2.png", "3.png", "4.jpg"]
    assert "2 could not be read (1 of them were in" in said
    assert cli.main(["detect", str(pictures), *arguments]) == 1  # nothing is left, and some were not read
    assert capsys.readouterr().out == "" and len(out.read_text().splitlines()) == 5


def test_an_interrupted_run_says_how_to_go_on(pictures, folder, tmp_path, capsys, monkeypatch):  # noqa: F811
    from anl.detect import lines

    def stopped(*arguments):
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(lines, "score", stopped)
    assert cli.main(["detect", str(pictures), "--model", str(folder)]) == 130
    assert "with --resume OUT" in capsys.readouterr().err
    assert cli.main(["detect", str(pictures), "--model", str(folder), "--resume", str(tmp_path / "out")]) == 130
    assert "the same command again" in capsys.readouterr().err


def test_an_empty_folder_is_no_riddle(folder, tmp_path, capsys):  # noqa: F811
    (tmp_path / "none").mkdir()
    assert cli.main(["detect", str(tmp_path / "none"), "--model", str(folder)]) == 0
    assert capsys.readouterr() == ("", "anl detect: no files in what was named\n")


def test_a_list_and_maps(pictures, folder, tmp_path, capsys, monkeypatch):  # noqa: F811
    listed = io.TextIOWrapper(io.BytesIO(f"{pictures}/1.png\n{pictures}/0.png\n".encode()))
    monkeypatch.setattr(sys, "stdin", listed)
    assert cli.main(["detect", "-", "--model", str(folder), "--json", "--map", str(tmp_path / "maps")]) == 0
    assert [line["path"][-5:] for line in lines(capsys)] == ["1.png", "0.png"]
    assert all(Image.open(path).size[0] > 500 for path in (tmp_path / "maps").iterdir()) and len(list((tmp_path / "maps").iterdir())) == 2


def test_explain_alone_and_beside_scores(pictures, folder, capsys):  # noqa: F811
    assert cli.main(["detect", "--explain", "--model", str(folder)]) == 0
    alone = capsys.readouterr()
    assert "A verdict is a hint" in alone.out and alone.err == "" and "P(generated)" not in alone.out
    assert cli.main(["detect", str(pictures / "0.png"), "--explain", "--json", "--model", str(folder)]) == 0
    both = capsys.readouterr()
    assert "A verdict is a hint" in both.err and len(both.out.splitlines()) == 1


@pytest.mark.parametrize("arguments, message", [
    ([], "name files or folders"), (["x.png", "--json", "--csv"], "choose one of"), (["x.png", "--batch-size", "0"], "at least 1"),
    (["x.png", "--model", "none/here/at/all"], "no folder with a detector"), (["x.png", "--device", "toaster"], "choose cpu or cuda"),
    (["none.png"], "no file, folder or match")])
def test_mistakes_are_one_line(folder, capsys, arguments, message):  # noqa: F811
    model = [] if "--model" in arguments else ["--model", str(folder)]
    assert cli.main(["detect", *arguments, *model]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and error.startswith("anl detect: ")


def test_card_writes_the_folder_and_deletes_nothing_unless_told(run, world, tmp_path, capsys, monkeypatch):  # noqa: F811
    monkeypatch.setitem(sys.modules, "anl.params", types.SimpleNamespace(load=lambda path: world.params))
    out = tmp_path / "mine"
    out.mkdir()
    (out / "old").write_text("x")
    words = ["card", str(run), "--out", str(out), "--licence", "CC0"]
    assert cli.main([*words, "--replace"]) == 2
    assert "mine exists and holds old; nothing was deleted" in capsys.readouterr().err and (out / "old").read_text() == "x"
    (out / "old").unlink()
    assert cli.main(words) == 0
    assert cli.main(words) == 2 and "--replace" in capsys.readouterr().err
    assert cli.main([*words[:-1], "MIT", "--replace"]) == 0
    assert {path.name for path in out.iterdir()} == {card.CARD, card.WEIGHTS}
    assert json.loads((out / card.CARD).read_text())["licence"] == "MIT" and "generated validation photographs" in capsys.readouterr().out
    assert np.isfinite(card.read(out).threshold)
