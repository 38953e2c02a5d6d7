"""The sidecar holds what the book reads, and nothing of a run is mistaken for another's."""

import json
import os
import subprocess

import pytest

from anl import origins, params, provenance
from tests.conftest import tiny_settings


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def tiny(root, **changes):
    value = tiny_settings(root)
    value["data"]["folder"], value["benchmark"]["folder"] = "data/photos", "data/benchmark"
    return params.from_dict(value | changes, "tiny")


def git(*words):
    subprocess.run(["git", "-c", "user.name=n", "-c", "user.email=e@example.org", *words], check=True,
                   capture_output=True)


def test_sidecar_holds_what_the_book_reads(project):
    folder = project / "results/tiny/demo"
    folder.mkdir(parents=True)
    (folder / "old.csv").write_text("old")
    os.utime(folder / "old.csv", (1, 1))
    (folder / "new.csv").write_text("new")
    (project / "params.yaml").write_text("profile: tiny\n")
    path = provenance.record("demo", tiny(project), 12.5, ["params.yaml"], {"profile": "tiny"}, since_ns=10**10)
    sidecar = json.loads(path.read_text())
    assert str(path) == "provenance/tiny/demo.json"
    assert list(sidecar["files"]) == ["results/tiny/demo/new.csv"] and len(sidecar["params_sha256"]) == 64
    assert sidecar["sources"]["params.yaml"] == sidecar["params_sha256"]
    assert (sidecar["seeds"], sidecar["commit"], sidecar["dirty"]) == ([0, 1], None, None)
    assert sidecar["command"] == "anl notebook demo"
    some = provenance.record("demo", tiny(project), 1, ["params.yaml"], {"profile": "tiny", "seeds": [1]})
    assert json.loads(some.read_text())["seeds"] == [1]  # the notebook was asked for some of the profile's seeds
    facts = origins.facts(sidecar)
    assert facts["Wall time"] == "12 s" and facts["Device"] == sidecar["device"] and "papermill" in facts["Versions"]


def test_code_state_ignores_results_only(project):
    assert provenance.code_state() == {"commit": None, "dirty": None}
    git("init", "-q")
    for name in ("code.py", "results/a.csv", "dvc.lock"):
        (project / name).parent.mkdir(exist_ok=True)
        (project / name).write_text("1")
    git("add", ".")
    git("commit", "-qm", "First")
    for name, dirty in (("results/a.csv", False), ("dvc.lock", False), ("code.py", True)):
        (project / name).write_text("2")
        state = provenance.code_state()
        assert state["dirty"] is dirty and len(state["commit"]) == 40


def test_data_hashes_are_those_of_dvc(project):
    nothing = {"data/photos": None, "data/benchmark": None}
    assert provenance.data_hashes(tiny(project)) == nothing
    (project / "data.dvc").write_text("outs:\n- {md5: aa.dir, path: data/photos}\n")
    (project / "dvc.lock").write_text("schema: '2.0'\nstages:\n  claims: {cmd: x}\n  benchmark:\n    outs:\n"
                                      "    - {path: data/benchmark, md5: bb.dir}\n")
    assert provenance.data_hashes(tiny(project)) == {"data/photos": "aa.dir", "data/benchmark": "bb.dir"}


def test_command_quotes_its_settings(project):
    settings = {"profile": "other", "steps": [1, 10], "word": "it's"}
    text = provenance.command("step_t", tiny(project), settings, "mine.yaml")
    assert text.startswith("anl --params mine.yaml notebook step_t --set 'profile=\"other\"' --set 'steps=[1, 10]'")
