import csv
import io
import json
import os

import pytest

from anl.detect import report
from anl.detect.scorer import Score
from anl.errors import UserError

SCORE = Score(0.123456, "real", -1.0, 4, 640, 480)
ODD = os.fsdecode(b"caf\xe9\n.png")


def lines():
    return [report.row("a.png", SCORE, detector="d"), report.row(ODD, error="empty (0 bytes)", detector="d")]


def test_the_table_shows_verdict_probability_and_reason():
    out = io.StringIO()
    table = report.Table(out, width=60)
    for line in [*lines(), report.row("x" * 80 + ".png", SCORE)]:
        table.add(line)
    text = out.getvalue().splitlines()
    assert text[0].split() == ["verdict", "P(generated)", "picture"]
    assert text[1].split() == ["real", "0.12", "a.png"] and "not read" in text[2] and "empty (0 bytes)" in text[2]
    assert len(text) == 4 and text[3].endswith("xxx.png") and len(text[3]) <= 60
    out.getvalue().encode("utf-8")


def test_a_table_without_lines_has_no_heading():
    out = io.StringIO()
    report.Table(out)
    assert not out.getvalue()


@pytest.mark.parametrize("probability, text", [(0.0, "under 0.01"), (0.0099, "under 0.01"), (0.01, "0.01"), (0.5, "0.50"),
                                               (0.99, "0.99"), (1.0, "over 0.99")])
def test_no_probability_looks_certain(probability, text):
    assert report.two_digits(probability) == text


def test_the_count_names_every_verdict_what_was_not_read_and_what_was_there_before():
    assert report.counted({"real": 2, "generated": 1, report.NOT_READ: 3}, 4, "o\n.jsonl") == (
        "6 files: 1 generated, 2 real; 3 could not be read (4 of them were in o\\n.jsonl already)")
    assert report.counted({"undecided": 1}, 0) == "1 file: 1 undecided" and "no files" in report.counted({}, 0)


def test_csv_and_json_hold_every_field():
    out = io.StringIO()
    writer = report.Csv(out)
    for line in lines():
        writer.add(line)
    rows = list(csv.DictReader(io.StringIO(out.getvalue())))
    assert [row["verdict"] for row in rows] == ["real", ""] and rows[0]["probability"] == "0.1235"
    assert rows[1]["error"] == "empty (0 bytes)" and "\n" not in rows[1]["path"]
    out = io.StringIO()
    for line in lines():
        report.JsonLines(out).add(line)
    values = [json.loads(line) for line in out.getvalue().splitlines()]
    assert values == lines() and os.fsencode(values[1]["path"]) == b"caf\xe9\n.png"


def test_resume_takes_out_a_line_cut_short_and_goes_on(tmp_path):
    path = tmp_path / "out.jsonl"
    done, file = report.resume(path, "d")
    with file:
        assert done == {}
        for line in lines():
            report.JsonLines(file).add(line)
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"path": "c')
    done, file = report.resume(path, "d")
    file.close()
    assert done == {"a.png": "real", ODD: report.NOT_READ} and path.read_bytes() == whole
    with pytest.raises(UserError, match="line 1, holds a score of another detector"):
        report.resume(path, "e")


def test_resume_refuses_another_file_and_leaves_it_alone(tmp_path):
    path = tmp_path / "letter.txt"
    path.write_text("Dear Anna,\n")
    with pytest.raises(UserError, match="letter.txt, line 1, is no line of"):
        report.resume(path, "d")
    assert path.read_text() == "Dear Anna,\n"
    with pytest.raises(UserError, match="cannot be"):
        report.resume(tmp_path, "d")
