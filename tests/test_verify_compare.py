import base64
import json
import math

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from anl.verify_compare import DIFFERENT, IDENTICAL, VARIES, WITHIN, Tolerance, compare, compare_files, digest, varying
from tests.conftest import ROOT


def both(tmp_path, name, old, new):
    paths = [tmp_path / side / name for side in ("old", "new")]
    for path, content in zip(paths, (old, new)):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return paths


@pytest.mark.parametrize("name, old, new, verdict, words", [
    ("a.json", '{"x": [1.0, 2]}', '{"x": [1.0, 2]}', IDENTICAL, ""),
    ("a.json", '{"x": [1.0, 2]}', '{ "x": [1, 2.0]}', WITHIN, "other bytes, the same content"),
    ("a.json", '{"x": {"low": 0.5}}', '{"x": {"low": 0.50009}}', WITHIN, "x.low: 0.5 -> 0.50009"),
    ("a.json", '{"x": {"low": 0.5}}', '{"x": {"low": 0.502}}', DIFFERENT, "x.low: 0.5 -> 0.502"),
    ("a.json", '{"text": "0.824 [0.760, 0.890]"}', '{"text": "0.8241 [0.760, 0.890]"}', WITHIN, "0.824 -> 0.8241"),
    ("a.json", '{"verdict": "reproduced"}', '{"verdict": "within noise"}', DIFFERENT, "reproduced -> within noise"),
    ("a.json", '{"x": 1}', '{"y": 1}', DIFFERENT, ""), ("a.json", '{"x": true}', '{"x": 1}', DIFFERENT, ""),
    ("a.json", '{"x": null}', '{"x": 0.1}', DIFFERENT, ""), ("a.json", '{"x": 1}', '{"x": 1', DIFFERENT, "cannot be compared"),
    ("a.csv", "m,AP\nanl,0.5\n", "m,AP\nanl,0.5001\n", WITHIN, "line 2, AP"),
    ("a.csv", "m,AP\nanl,0.5\n", "m,AP\nanl,0.6\n", DIFFERENT, "line 2, AP: 0.5 -> 0.6"),
    ("a.csv", "m,AP\nanl,0.5\n", "m,AP\nplain,0.5\n", DIFFERENT, "line 2, m: anl -> plain"),
    ("a.csv", "m,AP\nanl,0.5\n", "m,AP\nanl,0.5\nb,1\n", DIFFERENT, "2 rows -> 3 rows"),
    ("a.csv", "m,AP\nanl,nan\n", "m,AP\nanl,NaN\n", WITHIN, ""), ("a.csv", "m\n1\n", "m\nnan\n", DIFFERENT, ""),
    ("a.html", "<td>\u22120.1440</td>", "<td>\u22120.1441</td>", WITHIN, "-0.144 -> -0.1441"),
    ("a.html", "<td>1</td>", "<th>1</th>", DIFFERENT, ""), ("a.bin", "ab", "abc", DIFFERENT, "other bytes (2 -> 3)"),
])
def test_a_file_is_compared_by_what_it_holds(tmp_path, name, old, new, verdict, words):
    found = compare_files(*both(tmp_path, name, old, new))
    assert found.verdict == verdict and words in found.largest


def test_the_tolerance_is_what_it_says():
    assert str(Tolerance(0.01, 0.1)).startswith("numbers 0.1 + 0.01 of the committed one")


def test_a_wider_tolerance_makes_less_different(tmp_path):
    paths = both(tmp_path, "a.csv", "AP\n0.5\n", "AP\n0.6\n")
    assert compare_files(*paths).verdict == DIFFERENT
    assert compare_files(*paths, Tolerance(absolute=0.2)).verdict == WITHIN


def test_pictures_are_compared_by_pixels(tmp_path):
    pixels = np.full((40, 50, 3), 200, np.uint8)
    other, third = pixels.copy(), pixels.copy()
    other[0, 0], third[:5] = 0, 0
    for name, value in (("old", pixels), ("one", other), ("many", third)):
        Image.fromarray(value).save(tmp_path / f"{name}.png")
    Image.fromarray(pixels).save(tmp_path / "slow.png", compress_level=1)
    Image.fromarray(pixels[:10]).save(tmp_path / "small.png")
    found = {name: compare_files(tmp_path / "old.png", tmp_path / f"{name}.png") for name in ("one", "many", "slow", "small")}
    assert [found[name].verdict for name in found] == [WITHIN, DIFFERENT, WITHIN, DIFFERENT]
    assert "0.05 % of pixels" in found["one"].largest and "50 x 40 -> 50 x 10 pixels" in found["small"].largest


def notebook(path, source, text, image=b"", minutes=1):
    outputs = [nbformat.v4.new_output("stream", text=text)]
    if image:
        outputs.append(nbformat.v4.new_output("display_data", {"image/png": base64.b64encode(image).decode()}))
    cell = nbformat.v4.new_code_cell(source, outputs=outputs, execution_count=minutes, id="c",
                                     metadata={"execution": {"time": f"{minutes}"}})
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), path)
    return path


def test_notebooks_are_compared_by_source_and_output_and_not_by_times(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    Image.new("RGB", (8, 8), "white").save(tmp_path / "b.png")
    first = notebook(tmp_path / "first.ipynb", "print(x)", "AP 0.5\n", (tmp_path / "a.png").read_bytes())
    for name, change, verdict, words in (
            ("times", {"minutes": 9}, WITHIN, "same content"), ("near", {"text": "AP 0.5001\n"}, WITHIN, "0.5 -> 0.5001"),
            ("far", {"text": "AP 0.7\n"}, DIFFERENT, "cell 1: 0.5 -> 0.7"),
            ("source", {"source": "print(y)"}, DIFFERENT, "cell 1, source"),
            ("drawn", {"image": (tmp_path / "b.png").read_bytes()}, DIFFERENT, "100 % of pixels"),
            ("fewer", {"image": b""}, DIFFERENT, "2 outputs -> 1 outputs")):
        given = {"source": "print(x)", "text": "AP 0.5\n", "image": (tmp_path / "a.png").read_bytes(), **change}
        found = compare_files(first, notebook(tmp_path / f"{name}.ipynb", **given))
        assert (found.verdict, words in found.largest) == (verdict, True), (name, found)


def test_scores_and_weights_are_compared_cell_by_cell(tmp_path):
    for side, logit in (("old", 1.0), ("near", 1.0005), ("far", 2.0)):
        pd.DataFrame({"id": ["a", "b"], "logit": [0.0, logit]}).to_parquet(tmp_path / f"{side}.parquet")
        save_file({"w": torch.tensor([0.0, logit]).bfloat16() if side == "far" else torch.tensor([0.0, logit])},
                  tmp_path / f"{side}.safetensors")
    for suffix, place in (("parquet", "logit[1]"), ("safetensors", "w[1]")):
        near, far = (compare_files(tmp_path / f"old.{suffix}", tmp_path / f"{side}.{suffix}") for side in ("near", "far"))
        assert near.verdict == WITHIN and far.verdict == DIFFERENT and far.largest == f"{place}: 1 -> 2"


def test_a_folder_is_as_good_as_its_worst_file(tmp_path):
    for side, second, last in (("old", "0.5", "x"), ("new", "0.50001", "x"), ("bad", "0.6", "x")):
        (tmp_path / side / "in").mkdir(parents=True)
        (tmp_path / side / "a.txt").write_text("same")
        (tmp_path / side / "in" / "b.csv").write_text(f"AP\n{second}\n")
    near, far = (compare(tmp_path / "old", tmp_path / side) for side in ("new", "bad"))
    assert near.verdict == WITHIN and far.verdict == DIFFERENT and far.largest.startswith("in/b.csv: line 2, AP")
    (tmp_path / "new" / "more.txt").write_text("")
    found = compare(tmp_path / "old", tmp_path / "new")
    assert found.verdict == DIFFERENT and found.largest == "more.txt is only in the new run" and found.worst == math.inf


def test_what_varies_is_left_out_of_hash_and_comparison(tmp_path):
    for side, seconds, loss in (("old", 10.0, 0.5), ("new", 99.0, 0.5), ("bad", 10.0, 0.7)):
        (tmp_path / side).mkdir()
        (tmp_path / side / "run.json").write_text(json.dumps({"wall_seconds": seconds, "versions": {"torch": side}, "loss": loss}))
        (tmp_path / side / "provenance.md.txt").write_text(f"commit {side}")
    assert compare(tmp_path / "old", tmp_path / "new").verdict == IDENTICAL
    assert digest(tmp_path / "old") == digest(tmp_path / "new") != digest(tmp_path / "bad")
    assert compare(tmp_path / "old", tmp_path / "bad").verdict == DIFFERENT
    assert digest(tmp_path / "nothing") is None and "wall_seconds" in varying()


def test_what_dvc_is_told_to_leave_out_is_left_out_here_too():
    lines = [line for line in (ROOT / ".dvcignore").read_text().splitlines() if line.startswith(("runs/", "book/generated"))]
    assert lines and {line.rpartition("/")[2] for line in lines} == set(VARIES)
