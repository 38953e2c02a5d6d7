"""`anl verify` on tiny DVC pipelines whose stages write a line, in repositories made here."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from anl import cli, cli_verify, verify, verify_clone, verify_stages
from anl.errors import UserError
from anl.verify_compare import DIFFERENT, IDENTICAL, WITHIN
from tests.conftest import ROOT

# base is kept by DVC; middle is recorded in dvc.lock alone; table is in git; alone is recorded, and in git no more
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
    cmd: python code.py table middle.txt
    deps: [middle.txt, code.py]
    outs:
      - results/table.csv: {cache: false}
  alone:
    cmd: python code.py alone base.txt
    deps: [base.txt, code.py]
    outs:
      - alone.txt: {cache: false}
"""
CODE = """
import pathlib, sys
name, source = sys.argv[1:]
value = pathlib.Path(source).read_text()
pathlib.Path("results").mkdir(exist_ok=True)
if name == "table":
    pathlib.Path("results/table.csv").write_text("AP\\n0.5\\n")
else:
    pathlib.Path(f"{name}.txt").write_text(value)
"""


def run(folder, *words):
    done = subprocess.run(words, cwd=folder, env=verify_clone.environment(folder), capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(map(str, words))}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def dvc(folder, *words):
    return run(folder, sys.executable, "-m", "dvc", *words)


def git(folder, *words):
    return run(folder, "git", "-c", "user.name=t", "-c", "user.email=t@example.org", *words)


def commit(folder, words="change"):
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", words)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A repository whose pipeline was run and committed, its base in the store that comes with it."""
    folder = tmp_path_factory.mktemp("project")
    git(folder, "init", "-q", ".")
    dvc(folder, "init", "-q")
    dvc(folder, "remote", "add", "-q", "-d", "store", ".dvc/store")
    (folder / "dvc.yaml").write_text(PIPELINE)
    (folder / "code.py").write_text(CODE)
    (folder / ".gitignore").write_text("/middle.txt\n/alone.txt\n/base.txt\n/.cache\n")
    dvc(folder, "repro", "-q")
    dvc(folder, "push", "-q")
    commit(folder, "everything")
    return folder


@pytest.fixture
def project(made, tmp_path, monkeypatch):
    """A fresh clone of it, the working folder."""
    git(tmp_path, "clone", "-q", str(made), "project")
    folder = tmp_path / "project"
    for key in ("user.name", "user.email"):
        git(folder, "config", key, "t@example.org")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return folder


def edit(folder, path, old, new):
    text = (folder / path).read_text()
    assert old in text
    (folder / path).write_text(text.replace(old, new))


def verdicts(report):
    return {row.output: row.verdict for row in report.rows}


def test_everything_is_made_again_and_is_identical(project, tmp_path, capsys):
    lines = []
    report = verify.run(stages=["table"], say=lines.append)
    assert verdicts(report) == {"middle.txt": IDENTICAL, "results/table.csv": IDENTICAL}
    assert report.passed and report.verdict == IDENTICAL and not report.twice
    assert {row.output: row.against for row in report.rows} == {"middle.txt": verify.IN_LOCK, "results/table.csv": verify.IN_GIT}
    assert not (project / "middle.txt").exists()  # the reader's own folder is left alone
    assert not list(tmp_path.glob("anl-verify-*"))
    assert [line for line in lines if line.startswith("[2/2] table: ")] and "pulling 1 outputs" in "\n".join(lines)
    text = "\n".join(cli_verify.lines(report))
    assert re.search(r"^table +results/table.csv +git +\w{10} +\w{10} +identical$", text, re.MULTILINE)
    assert "tolerance: numbers" in text and "left out: run.json" in text and text.endswith("verdict: identical")


def test_other_numbers_are_named_with_their_cell_and_within_tolerance_they_pass(project):
    edit(project, "code.py", "0.5", "0.50002")
    commit(project)
    report = verify.run(stages=["table"], say=lambda line: None)
    row = report.rows[-1]
    assert (row.verdict, row.note, report.passed) == (WITHIN, "line 2, AP: 0.5 -> 0.50002", True)
    edit(project, "code.py", "0.50002", "0.6")
    commit(project)
    report = verify.run(stages=["table"], say=lambda line: None)
    assert report.rows[-1].verdict == report.verdict == DIFFERENT and not report.passed


def test_an_output_of_which_only_the_hash_is_known_names_the_input_that_changed(project):
    edit(project, "code.py", "write_text(value)", "write_text(value + '!')")
    commit(project)
    report = verify.run(stages=["middle", "table"], say=lambda line: None)
    assert verdicts(report) == {"middle.txt": DIFFERENT, "results/table.csv": IDENTICAL} and not report.passed
    assert report.rows[0].note == "recorded with another code.py"


def test_what_was_made_once_is_run_only_if_named(project):
    report = verify.run(stages=["base", "alone"], say=lambda line: None)
    assert [row.stage for row in report.rows] == ["base", "alone"]
    report = verify.run(say=lambda line: None)
    assert {row.stage for row in report.rows} == {"middle", "table", "alone"}  # the default: all but that


def test_where_nothing_is_in_git_two_runs_are_compared(project):
    edit(project, "code.py", 'write_text(value)', 'write_text(value + __import__("uuid").uuid4().hex)')
    commit(project)
    report = verify.run(stages=["alone"], say=lambda line: None)
    assert report.twice and verdicts(report) == {"alone.txt": DIFFERENT} and report.rows[0].against == verify.FIRST_RUN
    edit(project, "code.py", '__import__("uuid").uuid4().hex', '"!"')
    commit(project)
    report = verify.run(stages=["alone"], say=lambda line: None)
    assert report.verdict == IDENTICAL and report.rows[0].note == "dvc.lock's record is of another code.py"
    assert "two runs of the same commit" in "\n".join(cli_verify.lines(report))


def test_uncommitted_changes_are_refused_or_taken_along(project):
    edit(project, "code.py", "0.5", "0.7")
    with pytest.raises(UserError, match=r"1 file\(s\) have uncommitted changes \(code.py, ...\); commit them, or .* --dirty"):
        verify.run(stages=["table"])
    report = verify.run(stages=["table"], dirty=True, say=lambda line: None)
    assert report.dirty and report.verdict == DIFFERENT and "0.5 -> 0.7" in report.rows[-1].note
    assert "0.7" in (project / "code.py").read_text() and "uncommitted changes" in "\n".join(cli_verify.lines(report))


@pytest.mark.parametrize("target, words", [("code.py", "code.py changed while it ran"), ("base.txt", "base.txt changed")])
def test_an_input_edited_under_a_stage_makes_it_not_verified(project, target, words):
    edit(project, "code.py", "value = ", f"name == 'middle' and pathlib.Path('{target}').open('a').write('\\n')\nvalue = ")
    commit(project)
    report = verify.run(stages=["table"], say=lambda line: None)
    assert verdicts(report) == dict.fromkeys(("middle.txt", "results/table.csv"), verify.NOT_VERIFIED) and not report.passed
    assert words in report.rows[0].note and report.rows[1].note == "needs middle, which could not be verified"


def test_a_failing_stage_is_shown_and_the_next_call_goes_on_from_there(project, tmp_path, capsys):
    flag = tmp_path / "flag"
    edit(project, "code.py", "value = ", f"assert name != 'table' or pathlib.Path('{flag}').exists(), 'no flag'\nvalue = ")
    commit(project)
    report = verify.run(stages=["table"], keep=tmp_path / "kept", say=lambda line: None)
    assert report.rows[-1].verdict == verify.NOT_VERIFIED and "no flag" in capsys.readouterr().err
    flag.touch()
    lines = []
    report = verify.run(stages=["table"], keep=tmp_path / "kept", say=lines.append)
    assert report.rows[-1].verdict == IDENTICAL and "[1/2] middle: done before" in lines
    assert (tmp_path / "kept/logs/first-table.log").is_file()
    edit(project, "code.py", "0.5", "0.7")
    commit(project)
    with pytest.raises(UserError, match="another commit"):
        verify.run(stages=["table"], keep=tmp_path / "kept")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.tex").touch()
    with pytest.raises(UserError, match="holds something else"):
        verify.run(stages=["table"], keep=tmp_path / "mine")


def test_an_interrupted_call_leaves_nothing_behind(project, tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(verify, "run_stage", interrupted)
    with pytest.raises(KeyboardInterrupt):
        verify.run(stages=["table"], say=lambda line: None)
    assert not list(tmp_path.glob("anl-verify-*"))


def ended(pid):
    """Whether a process is gone, or waits for nothing but being collected by one that has not started it."""
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_a_call_that_is_terminated_stops_its_stage_and_leaves_nothing_behind(project, tmp_path):
    edit(project, "code.py", "name, source", "import os, time; open(os.environ['STAGE_PID'], 'w').write(str(os.getpid())); "
         "time.sleep(60)\nname, source")
    commit(project)
    told = tmp_path / "pid"
    called = subprocess.Popen([sys.executable, "-m", "anl.cli", "verify", "middle"], cwd=project, stderr=subprocess.PIPE, text=True,
                              env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path), "STAGE_PID": str(told)})
    while not (told.is_file() and told.read_text()):
        assert called.poll() is None, called.stderr.read()
        time.sleep(0.1)
    called.terminate()
    assert called.wait(timeout=30) == 143
    assert not list(tmp_path.glob("anl-verify-*"))
    for _ in range(100):
        if ended(int(told.read_text())):
            break
        time.sleep(0.1)
    assert ended(int(told.read_text()))


def test_mistakes_are_one_line(project, tmp_path, monkeypatch, capsys):
    def refused(*words):
        assert cli.main(["verify", *words]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and "Traceback" not in error
        return error

    assert "there is no stage 'tabel'; choose of base, middle, table, alone" in refused("tabel")
    assert "cannot be negative" in refused("--absolute=-1")
    git(project, "rm", "-q", "dvc.lock")
    git(project, "commit", "-q", "-m", "no lock")
    assert "dvc.lock is not in git here" in refused()
    (tmp_path / "bare").mkdir()
    monkeypatch.chdir(tmp_path / "bare")
    assert "is no git repository" in refused()


def test_the_report_can_be_read_by_a_program(project, capsys):
    assert cli.main(["verify", "table", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["verdict"] == IDENTICAL and report["rows"][1]["output"] == "results/table.csv" and report["left_out"]


def test_a_matrix_is_chosen_whole_or_by_its_place():
    def stage(address, *needs, kept=False):
        return verify_stages.Stage(address, (), (), kept, True, needs)

    stages = {item.address: item for item in (
        stage("prior", kept=True), stage("train@small-0", "prior"), stage("train@small-1", "prior"),
        stage("table@small", "train@small-0", "train@small-1"), stage("other/dvc.yaml:index"))}
    chosen, pulled = verify_stages.choose(stages, ["train"])
    assert [item.address for item in chosen] == ["train@small-0", "train@small-1"] and pulled[0].address == "prior"
    assert len(verify_stages.choose(stages, ["train@small-1"])[0]) == 1
    assert [item.address for item in verify_stages.choose(stages, ["index"])[0]] == ["other/dvc.yaml:index"]
    assert len(verify_stages.choose(stages, [])[0]) == 3


def test_what_the_store_does_not_hold_is_made_not_pulled(project):
    assert [stage.name for stage in verify_stages.choose(verify_stages.read(project), ["middle"])[1]] == ["base"]
    edit(project, "dvc.yaml", "outs: [base.txt]", "outs: [{base.txt: {push: false}}]")
    run_, pulled = verify_stages.choose(verify_stages.read(project), ["middle"])
    assert [stage.name for stage in run_] == ["base", "middle"] and not pulled
