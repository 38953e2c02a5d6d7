import errno
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pandas as pd
import pytest
import typer
import yaml
from PIL import Image

from anl import cli
from anl.cli import console
from anl.cli.limit import limited
from anl.config import load_config, profiles
from anl.data import registry
from anl.io import UserError
from tests.conftest import ROOT


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def anl(capsys):
    """Run one command; returns (exit status, standard output, standard error)."""
    def run(*words):
        return (cli.main([str(word) for word in words]), *capsys.readouterr())

    return run


def one_line(text):
    return text.count("\n") == 1 and "Traceback" not in text


def test_help_appears_without_the_libraries(folder):
    code = "import sys; from anl import cli; sys.exit(cli.main(['--help']) or 'torch' in sys.modules or 'pandas' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in ("profile", "train", "score", "notebook", "claims", "verify", "detect", "export",
                                                "bench", "data", "make", "--limit"))


@pytest.mark.parametrize("command", ["data list", "data fetch", "data index", "data audit", "make prior", "make generator",
                                     "make benchmark", "make targets", *(command.name or command.callback.__name__
                                                                        for command in cli.app.registered_commands)])
def test_every_command_has_help(anl, command):
    status, out, _ = anl(*command.split(), "--help")
    assert status == 0 and f"anl {command}" in out


@pytest.mark.parametrize("words, status, expected", [
    ("trian", 2, "anl: No such command 'trian'. Did you mean 'train'?"), ("data", 2, "anl data: Missing command"),
    ("train --jbos 2", 2, "anl train: No such option: --jbos (Possible options: --jobs)"),
    ("train", 2, "anl train: Missing argument 'EXP'; see `anl train --help`"),
    ("train x --jobs two", 2, "anl train: Invalid value for '--jobs'"),
    ("--limit 1 train main", 2, "Invalid value for '--limit': must be greater than or equal to 2"),
    ("export --to onxn", 2, "Invalid value for '--to': 'onxn' is not one of 'folder', 'onnx', 'demo'"),
    ("--profile smal train main", 2, "anl train: unknown profile 'smal'; did you mean 'small'?"),
    ("--profile small train step", 2, "anl train: there is no experiment 'step'; did you mean 'step_t'?"),
    ("--profile small score zzz", 2, "choose one of main, step_t"),
    ("--profile small train main --seeds 1;2", 2, "--seeds 1;2: write whole numbers with commas"),
    ("--profile small train main --seeds -1", 2, "--seeds -1: a seed is from 0 to 2^32 - 1"),
    ("--profile small --set profile=../x train main", 2, "'profile' names a folder: at most 100 letters"),
    ("--profile smal verify", 2, "anl verify: unknown profile 'smal'"),
    ("--profile small --set method.stp=1 train main", 2, "unknown key 'stp'; did you mean 'step'?"),
    ("train main", 2, "params.yaml cannot be read; write it with `anl profile small`"),
    ("data fetch cifak", 2, "anl data fetch: there is no data set 'cifak'; did you mean 'cifake'?"),
    ("data index . --layout genimge", 2, "did you mean 'genimage'?"), ("data index nowhere", 2, "'nowhere' is not a folder"),
    ("data index . --columns image", 2, "give IMAGE,LABEL or"), ("data audit nowhere.parquet", 2, "nowhere.parquet is missing"),
    ("notebook data", 2, "there is no notebook 'data'; none are here"),
    ("detect", 2, "name files or folders"), ("detect x --format xml", 2, "--format"),
    ("export", 2, "--out is missing"), ("--limit 8 verify", 2, "leave out --limit and --set"),
])
def test_a_mistake_is_one_line_with_status_2(anl, words, status, expected):
    found, _, error = anl(*words.split())
    assert found == status and expected in error and one_line(error)


def test_no_command_shows_the_help(anl):
    status, out, _ = anl()
    assert status == 2 and "Usage: anl" in out


@pytest.mark.parametrize("problem, status, words", [
    (UserError("the problem; the fix"), 2, "anl data list: the problem; the fix"),
    (KeyboardInterrupt(), 130, "interrupted; run the same command again"),
    (OSError(errno.ENOSPC, "No space left on device", "models/x"), 2, "no space left on the disk while writing models/x"),
    (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 640 vs 534"), 2, "no space left"),  # torch
    (Exception("Error while serializing: I/O error: No space left on device (os error 28)"), 2, "no space left"),
    (OSError("100000 requested and 8176 written"), 2, "no space left on the disk; free some"),  # numpy
    (PermissionError(errno.EACCES, "Permission denied", "out/x"), 2, "out/x: Permission denied; check the path"),
])
def test_an_error_that_a_person_can_correct_is_one_line(anl, monkeypatch, problem, status, words):
    monkeypatch.setattr(registry, "load", lambda: (_ for _ in ()).throw(problem))
    found, _, error = anl("data", "list")
    assert found == status and words in error and one_line(error)


@pytest.mark.parametrize("problem", [OSError(errno.EIO, "input/output error"), RuntimeError("a bug"), KeyError("a bug")])
def test_a_bug_keeps_its_traceback(monkeypatch, problem):
    monkeypatch.setattr(registry, "load", lambda: (_ for _ in ()).throw(problem))
    with pytest.raises(type(problem)):
        cli.main(["data", "list"])


def test_an_edit_during_a_stage_is_reported_and_its_result_kept(anl, monkeypatch):
    Path("claims.yaml").write_text((ROOT / "claims.yaml").read_text())
    anl("profile", "smoke")
    monkeypatch.setattr("anl.report.claims.write_ledger", lambda path, ledger: Path("params.yaml").write_text("changed"))
    status, _, error = anl("claims")
    assert status == 0 and "params.yaml changed during the run" in error


# ---- profiles ----------------------------------------------------------------------------------------------------------
def test_profile_activates_and_shows(anl):
    assert anl("profile")[1].startswith("active: none")
    assert anl("profile", "smoke")[1] == "profile smoke is now active\n"
    assert anl("profile", "smoke")[1] == "profile smoke is already active\n"
    out = anl("profile")[1]
    assert out.startswith("active: smoke\n") and all(name in out for name in profiles())
    assert "did you mean 'smoke'" in anl("profile", "smoek")[2]


def options(**values):
    return SimpleNamespace(find_root=lambda: SimpleNamespace(obj=console.Options(**values)))


def test_changed_settings_have_results_of_their_own(capsys):
    config = console.configuration(options(profile="small", settings=("method.step=7",)))
    assert config.method.step == 7 and config.profile.startswith("small-") and "with method.step=7" in capsys.readouterr().err
    assert console.configuration(options(profile="small", settings=("run.jobs=2",))).profile == "small"
    assert console.configuration(options(profile="small", settings=("method.step=7", "profile=mine"))).profile == "mine"


@pytest.mark.parametrize("name", profiles())
def test_a_limit_applies_to_every_profile_and_variant(name):
    whole = load_config(profile=name)
    config = limited(whole, 4)
    assert config.profile == f"{name}-limit4" and len(config.seeds) == 1 and config.benchmark.limit == 4
    for experiment in config.experiments:
        variants = config.variants(experiment)
        assert len(variants) == len(whole.variants(experiment))
        for variant in variants.values():
            assert variant.training.steps <= 4 + len(variants) and variant.training.batch_size <= 8
            assert len(variant.seeds) == 1 and max(variant.benchmark.use.model_dump().values()) <= 4 + len(variants)
    assert all(section.steps <= 4 for section in [config.prior, *config.other_priors.values(), *config.models.values()])


def test_a_limit_never_writes_to_the_real_models_and_benchmark(folder):
    small = load_config(profile="small")
    assert limited(small, 4).run.models == "models" and limited(small, 4).benchmark.folder == "data/benchmark"
    making = limited(small, 4, ("run.models", "benchmark.folder"))
    assert (making.run.models, making.benchmark.folder) == ("models-limit4", "data/benchmark-limit4")
    Path(making.benchmark.folder).mkdir(parents=True)  # made once, it is used
    assert limited(small, 4).benchmark.folder == "data/benchmark-limit4"


# ---- data --------------------------------------------------------------------------------------------------------------
def test_the_list_and_json_hold_every_data_set(anl):
    status, out, _ = anl("data", "list")
    assert status == 0 and [name for name in registry.load() if f" {name} " not in out] == []
    assert [row["id"] for row in json.loads(anl("data", "list", "--json")[1])] == list(registry.load())


@pytest.mark.parametrize("name", ["cifake", "forensynths", "synthbuster"])
def test_licence_and_terms_are_shown_and_nothing_is_fetched_without_consent(anl, folder, name):
    status, out, error = anl("data", "fetch", name)
    source = registry.load()[name]
    assert status == 2 and "nothing was fetched" in error and "--accept-licence" in error
    assert source.licence in out and all(word in out for word in ("terms", "format trap", "cite", "evidence"))
    assert ("by hand" in out) == (source.access == "manual") and not list(folder.iterdir())


def make_tree(root):
    for split in ("train", "test"):
        for index, label in enumerate(("REAL", "FAKE")):
            (root / split / label).mkdir(parents=True)
            for number in range(3):
                Image.effect_noise((32, 32), 20 + 9 * number + 50 * index + (split == "test")).convert("RGB").save(
                    root / split / label / f"{number}.png")


def test_a_local_folder_is_fetched_indexed_and_audited(anl, folder):
    make_tree(folder / "mine")
    status, out, _ = anl("data", "fetch", "cifake", "--from", "mine", "--accept-licence")
    assert status == 0 and "stays where it is" in out and "12 images" in out and out.endswith(f"next: anl data index {folder / 'mine'}\n")
    assert "was there already" in anl("data", "fetch", "cifake", "--accept-licence")[1]
    status, out, _ = anl("data", "index", "mine", "--workers", "1")
    assert status == 0 and "mine.parquet: 12 images" in out and "layout cifake" in out
    status, out, _ = anl("data", "audit", "mine.parquet")
    assert status == 0 and "images with equal bytes" in out and "tables: mine.parquet.audit" in out
    assert {path.stem for path in Path("mine.parquet.audit").glob("*.csv")} >= {"format_probe", "duplicates", "near_duplicates"}
    (folder / "mine/train/REAL/copy.png").write_bytes((folder / "mine/test/REAL/0.png").read_bytes())
    anl("data", "index", "mine", "--workers", "1")
    status, out, _ = anl("data", "audit", "mine.parquet", "--check")
    assert status == 1 and "suspect: 2 images with equal bytes lie in different splits" in out


# ---- train, score, notebook, claims ------------------------------------------------------------------------------------
def test_train_and_score_write_their_records(anl, folder, monkeypatch):
    from tests.project import make_project

    config = make_project(folder)
    Path("params.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json", exclude_none=True)))
    experiment, variants = next((name, found) for name in config.experiments if (found := config.variants(name)))
    status, out, error = anl("train", experiment, "--jobs", 0, "--seeds", 0)
    assert status == 0, error
    record = pd.read_csv(folder / "results/tiny/runs" / f"{experiment}.csv")
    assert set(record["variant"]) == set(variants) and set(record["seed"]) == {0} and f"{len(record)} runs" in out
    monkeypatch.setattr("anl.evaluation.runs.write_experiment", lambda config, name: None)
    assert anl("score", experiment)[1].endswith(f"results/tiny/scores/{experiment}.parquet\n")


def test_under_a_launcher_the_processes_share_a_training(anl, monkeypatch):
    called = {}
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr("anl.training.runs.train_experiment", lambda *words, **settings: called.update(settings))
    assert anl("--profile", "smoke", "train", "main", "--jobs", 3)[0] == 0
    assert called["jobs"] == 0 and not Path("results").exists()  # rank 0 writes
    assert "anl train (process 1): there is no experiment" in anl("--profile", "smoke", "train", "x")[2]


def test_processes_of_the_profile_are_launched(anl, monkeypatch):
    called = []
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setattr("anl.training.runs.make_all_targets", lambda variants: None)
    monkeypatch.setattr("subprocess.call", lambda command: called.append(command) or 3)
    assert anl("--profile", "smoke", "--set", "run.processes=2", "train", "main")[0] == 3
    assert called[0][-6:] == ["anl.cli", "--profile", "smoke", "--set", "run.processes=2", "train", "main"][-6:]
    assert "--nproc-per-node=2" in called[0]


@pytest.fixture
def notebooks(folder):
    source = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("x = 1")])
    (folder / "notebooks").mkdir()
    nbformat.write(source, folder / "notebooks/step_t.ipynb")
    cli.main(["profile", "smoke"])


@pytest.mark.parametrize("before, after, target, parameters", [
    ((), (), "book/pages/step_t.ipynb", {"save_to": "results/smoke/tables"}),
    ((), ("--set", "steps=[1, 10]"), "results/smoke/notebooks/step_t.ipynb", {"steps": [1, 10]}),
    ((), ("--out", "here.ipynb"), "here.ipynb", {"save_to": "results/smoke/tables"}),
    (("--profile", "small"), (), "results/small/notebooks/step_t.ipynb", {"save_to": "results/small/tables", "profile": "small"}),
])
def test_a_notebook_is_a_page_or_an_experiment(anl, notebooks, monkeypatch, before, after, target, parameters):
    called = []
    monkeypatch.setattr("anl.report.notebooks.run_notebook", lambda *words, **_: called.append(words))
    assert anl(*before, "notebook", "step_t", *after)[0] == 0
    assert called == [("notebooks/step_t.ipynb", Path(target), parameters)]
    assert "did you mean 'step_t'" in anl("notebook", "step")[2]


@pytest.mark.parametrize("out", ["README.md", "notebooks/step_t.ipynb", "notebooks/../notebooks/new.ipynb", "folder.ipynb"])
def test_a_notebook_replaces_neither_its_source_nor_another_file(anl, notebooks, monkeypatch, out):
    Path("folder.ipynb").mkdir()
    monkeypatch.setattr("anl.report.notebooks.run_notebook", None)
    status, _, error = anl("notebook", "step_t", "--out", out)
    assert status == 2 and "name a file that ends in .ipynb, outside of notebooks/" in error and one_line(error)


def test_a_notebook_sees_the_limited_profile(anl, notebooks, monkeypatch):
    called = []
    monkeypatch.setattr("anl.report.notebooks.run_notebook", lambda *words, **_: called.append(words[2]))
    assert anl("--limit", 4, "notebook", "step_t")[0] == 0
    config = load_config(profile=called[0]["profile"])
    assert config == limited(load_config(), 4) and called[0]["save_to"] == "results/smoke-limit4/tables"


def write_claim(mean):
    claim = {"id": "gain", "title": "It helps", "sentence": "It helps.", "source": "abstract", "kind": "exploratory",
             "benchmark": "embedded", "profiles": ["smoke"], "seeds": 1,
             "rules": [{"measure": "gain", "table": "main", "column": "mean", "above": 0}]}
    Path("claims.yaml").write_text(yaml.safe_dump({"claims": [claim]}))
    Path("results/smoke/tables").mkdir(parents=True, exist_ok=True)
    pd.DataFrame({"mean": [mean], "low": [mean - 0.1], "high": [mean + 0.1], "seeds": [3], "n": [9]}).to_csv(
        "results/smoke/tables/main.csv", index=False)


def test_claims_are_decided_and_checked_against_the_ledger(anl, folder):
    anl("profile", "smoke")
    write_claim(0.3)
    Path("README.md").write_text("<!-- claims:start -->\n<!-- claims:end -->\n")
    status, out, _ = anl("claims", "--readme")
    assert status == 0 and "It helps" in out and "supported" in out
    assert pd.read_csv("results/smoke/claims.csv")["verdict"].tolist() == ["supported"]
    assert "**Held.** It helps. Gain: 0.300" in Path("README.md").read_text()
    assert anl("claims", "--check")[0] == 0
    write_claim(-0.3)
    status, _, error = anl("claims", "--check")
    assert status == 1 and "is contradicted: gain: 'gain' was supported, is contradicted" in error
    assert pd.read_csv("results/smoke/claims.csv")["verdict"].tolist() == ["supported"]  # --check writes nothing
    assert "profile small decides no claim; see results/smoke/claims.csv" in anl("--profile", "small", "claims")[1]


# ---- use ---------------------------------------------------------------------------------------------------------------
def stub(monkeypatch, module, **functions):
    monkeypatch.setitem(sys.modules, module, SimpleNamespace(**functions))


def test_detect_passes_its_options_and_status_on(anl, monkeypatch):
    called = []
    stub(monkeypatch, "anl.detect.command", run_detect=lambda paths, **settings: called.append((paths, settings)) or 1)
    status, _, _ = anl("detect", "a.png", "b", "--format", "json", "--device", "cpu", "--no-recursive", "--map", "out")
    assert status == 1 and called[0][0] == ["a.png", "b"]
    assert {"form": "json", "device": "cpu", "recursive": False, "maps": "out", "detector": None}.items() <= called[0][1].items()
    assert anl("detect", "--explain")[0] == 1 and called[1] == ([], {**called[1][1], "explain": True})


def test_export_prints_what_was_written(anl, monkeypatch):
    called = {}
    stub(monkeypatch, "anl.detect.export", export=lambda source, **settings: called.update(source=source, **settings) or ["done"])
    status, out, _ = anl("export", "runs/x", "--to", "onnx", "--out", "x.onnx")
    assert (status, out) == (0, "done\n") and called["source"] == "runs/x" and called["config"] is None
    assert anl("--profile", "small", "export", "--to", "demo")[0] == 0 and called["config"].profile == "small"


def test_bench_measures_the_sections_that_are_named(anl, monkeypatch):
    called = {}
    stub(monkeypatch, "anl.bench", SECTIONS=("inference", "training"), bench=lambda config, out, **settings: called.update(settings))
    monkeypatch.setattr("anl.bench", sys.modules["anl.bench"], raising=False)
    assert anl("--profile", "small", "bench", "--only", "training", "--quick")[0] == 0
    assert called["sections"] == ["training"] and called["quick"]
    assert "did you mean 'training'" in anl("--profile", "small", "bench", "--only", "trainig")[2]


def test_tables_hold_any_text_and_none(capsys):
    console.print_table(("a", "b"), [("[bold]x[/]\x1b", None), ("long " * 40, 1)])
    out = capsys.readouterr().out
    assert "[bold]x[/]\\x1b" in out and "long " * 39 in out
    console.print_frame(pd.DataFrame({"x": [0.123456, None], "n": [1, pd.NA], "s": ["a", None]}), "title")
    assert "0.123" in (out := capsys.readouterr().out) and not re.search("nan|None|NA", out)


def test_the_entry_point_is_main():
    project = (ROOT / "pyproject.toml").read_text()
    assert 'anl = "anl.cli:main"' in project and isinstance(typer.main.get_command(cli.app).name, str | None)
