"""`anl verify` on a tiny DVC pipeline whose stages write a line, in a repository made here."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import save_file

from anl import verify
from anl.io import UserError
from anl.verify import DIFFERENT, FAILED, IDENTICAL, INTERVAL, NOTHING, OTHER, TOLERATED, compare, conclusion

# base is kept by DVC; middle is recorded in dvc.lock only; table is in git
PIPELINE = """
stages:
  base:
    cmd: python -c "open('base.txt','w').write('1')"
    outs: [base.txt]
  middle:
    cmd: python code.py middle base.txt
    deps: [base.txt, code.py]
    outs:
      - middle.txt: {cache: false}
  table:
    foreach: {main: {}}
    do:
      cmd: python code.py table middle.txt
      deps: [middle.txt, code.py]
      outs:
        - results/table.csv: {cache: false}
"""
CODE = """
import pathlib, sys
name, source = sys.argv[1:]
value = pathlib.Path(source).read_text()
pathlib.Path("results").mkdir(exist_ok=True)
if name == "table":
    pathlib.Path("results/table.csv").write_text("mean,low,high\\n0.5,0.4,0.6\\n")
else:
    pathlib.Path(f"{name}.txt").write_text(value)
"""


def run(folder, *words):
    settings = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "DVC_NO_ANALYTICS": "1",
                **{f"DVC_{name}_DIR": str(folder / ".cache") for name in ("GLOBAL_CONFIG", "SYSTEM_CONFIG", "SITE_CACHE")}}
    done = subprocess.run(words, cwd=folder, env=settings, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(map(str, words))}\n{done.stdout}\n{done.stderr}"


def git(folder, *words):
    run(folder, "git", "-c", "user.name=t", "-c", "user.email=t@example.org", *words)


def commit(folder, words="change"):
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", words)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A repository whose pipeline was run and committed, its base in the store that comes with it."""
    folder = tmp_path_factory.mktemp("project")
    git(folder, "init", "-q", ".")
    for words in (["init", "-q"], ["remote", "add", "-q", "-d", "store", ".dvc/store"]):
        run(folder, sys.executable, "-m", "dvc", *words)
    (folder / "dvc.yaml").write_text(PIPELINE)
    (folder / "code.py").write_text(CODE)
    (folder / ".gitignore").write_text("/middle.txt\n/base.txt\n/.cache\n")
    for word in ("repro", "push"):
        run(folder, sys.executable, "-m", "dvc", word, "-q")
    commit(folder, "everything")
    return folder


@pytest.fixture
def project(made, tmp_path, monkeypatch):
    """A fresh clone of it, the working folder."""
    git(tmp_path, "clone", "-q", str(made), "project")
    monkeypatch.chdir(tmp_path / "project")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path / "project"


def edit(folder, path, old, new):
    text = (folder / path).read_text()
    assert old in text
    (folder / path).write_text(text.replace(old, new))


def verdicts(table):
    return dict(zip(table["output"], table["verdict"], strict=True))


def test_what_is_committed_is_made_again_and_is_identical(project, tmp_path):
    lines = []
    table = verify.verify(["table"], say=lines.append)
    assert verdicts(table) == {"middle.txt": IDENTICAL, "results/table.csv": IDENTICAL}
    assert table["compared with"].tolist() == ["dvc.lock", "git"] and conclusion(table) == (IDENTICAL, True)
    assert not (project / "middle.txt").exists() and not list(tmp_path.glob("anl-verify-*"))  # nothing is left behind
    assert lines[0].startswith("2 stages to run, 1 to pull")


def test_other_numbers_are_confirmed_within_their_interval_only(project, tmp_path):
    edit(project, "code.py", "write_text(value)", "write_text(value + '!')")
    edit(project, "code.py", "0.5,0.4,0.6", "0.55,0.44,0.66")
    with pytest.raises(UserError, match="code.py is one.*--dirty"):
        verify.verify(["table"])
    keep = tmp_path / "kept"
    table = verify.verify(["table@main"], dirty=True, keep=keep, say=lambda line: None)
    assert verdicts(table) == {"middle.txt": OTHER, "results/table.csv": INTERVAL} and conclusion(table) == (OTHER, True)
    edit(project, "code.py", "0.55,0.44,0.66", "0.7,0.6,0.8")
    table = verify.verify(["table"], dirty=True, say=lambda line: None)
    assert verdicts(table)["results/table.csv"] == DIFFERENT and not conclusion(table)[1]
    with pytest.raises(UserError, match="another folder"):
        verify.verify(["table"], dirty=True, keep=keep)


def test_a_stage_that_fails_stops_what_needs_it_and_a_second_call_continues(project, tmp_path, capsys):
    edit(project, "code.py", "if name", "assert name != 'middle', 'out of order'\nif name")
    commit(project)
    table = verify.verify(keep=tmp_path / "kept", say=lambda line: None)
    assert verdicts(table) == {"middle.txt": FAILED, "results/table.csv": FAILED} and not conclusion(table)[1]
    assert table["note"].tolist() == ["failed; the end of its log is above", "needs middle"] and "out of order" in capsys.readouterr().err
    lines = []
    (tmp_path / "kept/first/code.py").write_text(CODE)
    table = verify.verify(keep=tmp_path / "kept", say=lines.append)
    assert set(verdicts(table).values()) == {IDENTICAL} and len(lines) == 3
    assert verdicts(verify.verify(keep=tmp_path / "kept", say=lines.append)) == verdicts(table) and len(lines) == 4  # nothing ran


def test_what_nothing_is_known_about_is_run_twice(project):
    git(project, "rm", "-q", "results/table.csv", "dvc.lock")
    commit(project)
    table = verify.verify(["base"], say=lambda line: None)
    assert table["compared with"].tolist() == ["first run"] and conclusion(table) == (IDENTICAL, True)


def test_mistakes(project, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="no stage 'tabel'; did you mean 'table'"):
        verify.verify(["tabel"])
    (tmp_path / "plain").mkdir()
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    with pytest.raises(UserError, match="run this in a git repository"):
        verify.verify(root=tmp_path / "plain")


# ---- comparing ---------------------------------------------------------------------------------------------------------
def tables(tmp_path, old, new, suffix=".csv"):
    paths = []
    for name, table in (("old", old), ("new", new)):
        paths.append(tmp_path / f"{name}{suffix}")
        frame = pd.DataFrame(table)
        frame.to_csv(paths[-1], index=False) if suffix == ".csv" else frame.to_parquet(paths[-1])
    return compare(*paths)


BASE = {"variant": ["anl", "plain"], "mean": [0.7, 0.6], "low": [0.6, 0.5], "high": [0.8, 0.7], "difference": [0.1, np.nan],
        "difference_low": [0.05, np.nan], "difference_high": [0.15, np.nan], "p": [0.01, np.nan], "seeds": [3, 3]}


@pytest.mark.parametrize("change, verdict, words", [
    ({}, IDENTICAL, ""), ({"mean": [0.75, 0.55], "low": [0.7, 0.5], "p": [0.04, np.nan]}, INTERVAL, ""),
    ({"mean": [0.7, 0.72]}, DIFFERENT, "row 2, mean: 0.6 -> 0.72"), ({"difference": [0.2, np.nan]}, DIFFERENT, "difference: 0.1 -> 0.2"),
    ({"difference": [np.nan, np.nan]}, DIFFERENT, "difference"), ({"seeds": [3, 4]}, DIFFERENT, "row 2, seeds: 3 -> 4"),
    ({"variant": ["anl", "other"]}, DIFFERENT, "plain -> other"), ({"n": [1, 1]}, DIFFERENT, "or other columns"),
])
def test_tables_with_intervals(tmp_path, change, verdict, words):
    found, note = tables(tmp_path, BASE, BASE | change)
    assert found == verdict and words in note


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_tables_without_intervals(tmp_path, suffix):
    scores = {"image_id": ["a", "b"], "sha256": ["x", "y"], "logit": [1.0, 2.0]}
    assert tables(tmp_path, scores, scores | {"logit": [1.0001, 2.0], "sha256": ["z", "y"]}, suffix)[0] == TOLERATED
    assert tables(tmp_path, scores, scores | {"logit": [1.1, 2.0]}, suffix) == (OTHER, "row 1, logit: 1.0 -> 1.1; 1 of 2 rows")
    assert tables(tmp_path, scores, scores | {"image_id": ["a", "c"]}, suffix)[0] == DIFFERENT


def test_folders_weights_and_notebooks(tmp_path):
    for name, value in (("old", 1.0), ("new", 1.00001), ("other", 2.0)):
        (tmp_path / name).mkdir()
        save_file({"w": np.full(3, value, np.float32)}, tmp_path / name / "w.safetensors")
    assert compare(tmp_path / "old", tmp_path / "new")[0] == TOLERATED
    assert compare(tmp_path / "old", tmp_path / "other")[0] == OTHER
    (tmp_path / "new" / "more.txt").write_text("x")
    assert compare(tmp_path / "old", tmp_path / "new") == (DIFFERENT, "more.txt is in one of the folders only")
    assert compare(tmp_path / "old", tmp_path / "none") == (DIFFERENT, "is not there")
    for name, source, output in (("a", "x", "1"), ("b", "x", "2"), ("c", "y", "1")):
        (tmp_path / f"{name}.ipynb").write_text(f'{{"cells": [{{"source": "{source}", "outputs": "{output}"}}]}}')
    assert compare(tmp_path / "a.ipynb", tmp_path / "b.ipynb")[0] == OTHER
    assert compare(tmp_path / "a.ipynb", tmp_path / "c.ipynb")[0] == DIFFERENT
    (tmp_path / "broken.csv").write_bytes(b"\xff\x00")
    assert compare(tmp_path / "broken.csv", tmp_path / "a.ipynb")[0] == DIFFERENT


@pytest.mark.parametrize("found, expected", [
    ([IDENTICAL, NOTHING], (IDENTICAL, True)), ([NOTHING], (NOTHING, False)), ([], (NOTHING, False)),
    ([OTHER, IDENTICAL], (OTHER, False)), ([OTHER, INTERVAL], (OTHER, True)), ([INTERVAL, DIFFERENT], (DIFFERENT, False)),
    ([TOLERATED, FAILED], (FAILED, False))])
def test_the_conclusion_is_the_worst_verdict(found, expected):
    assert conclusion(pd.DataFrame({"verdict": found})) == expected
