import errno
import re
import subprocess
import sys
import types

import pytest
import yaml

from anl import cli, params
from anl.errors import UserError
from tests.conftest import ROOT

COMMANDS = ["profile", "photos", "fetch", "prior", "generate", "benchmark", "index", "audit", "target", "train", "predict",
            "perturb", "families", "evaluate", "predictions", "recompute", "notebook", "claims", "verify", "paper", "budget",
            "bench", "detect", "card", "export", "compare", "book"]


def subparser(name):
    (actions,) = [action for action in cli.make_parser()._actions if hasattr(action, "choices") and action.choices]
    return actions.choices[name]


def test_the_commands_are_these():
    (actions,) = [action for action in cli.make_parser()._actions if hasattr(action, "choices") and action.choices]
    assert list(actions.choices) == COMMANDS


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_an_example_that_parses(name):
    text = subparser(name).format_help()
    example = re.search(r"example: anl (.*)", text)[1]
    words = re.findall(r"(?:[^\s']|'[^']*')+", example)
    assert cli.make_parser().parse_args([word.replace("'", "") for word in words]).command == name


def test_help_does_not_import_torch():
    code = "import sys; from anl import cli; cli.make_parser().format_help(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=ROOT).returncode == 0


def test_help_exits_0_and_a_wrong_command_2(capsys):
    for arguments, status in ((["--help"], 0), (["tarin"], 2), ([], 2), (["target"], 2)):
        with pytest.raises(SystemExit) as end:
            cli.main(arguments)
        assert end.value.code == status
    assert "Traceback" not in capsys.readouterr().err


def test_an_audit_is_of_one_thing(capsys):
    assert cli.main(["audit", "set.parquet", "--more"]) == 2
    assert "--more" in capsys.readouterr().err


def test_missing_profile_is_one_line(tmp_path, capsys):
    assert cli.main(["--params", str(tmp_path / "none.yaml"), "benchmark"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "none.yaml is missing" in error and error.startswith("anl benchmark: ")


def test_a_notebook_under_other_parameters_than_params_yaml_is_refused(tmp_path, capsys):
    assert cli.main(["--params", str(tmp_path / "mine.yaml"), "notebook", "step_t"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "reads params.yaml, not" in error and "anl profile NAME" in error


def test_a_published_sets_notebook_runs_under_its_own_profile(monkeypatch):
    called = {}
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("anl.notebooks.run_notebook", lambda *words: called.update(words=words))
    assert cli.main(["--params", "profiles/cifake.yaml", "notebook", "longer", "--set", "methods=[anl]"]) == 0
    assert called["words"] == ("longer", {"params_file": "profiles/cifake.yaml", "methods": ["anl"]}, "profiles/cifake.yaml")


def test_the_same_commands_make_a_published_sets_models_and_benchmark(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("anl.published.making.make_model", lambda name, settings: f"{settings.models_folder}/{name}")
    monkeypatch.setattr("anl.published.making.make_prior", lambda settings, name: f"{settings.models_folder}/{name}")
    assert cli.main(["--params", "profiles/cifake.yaml", "generate", "gan"]) == 0
    assert cli.main(["--params", "profiles/cifake.yaml", "prior"]) == 0
    assert capsys.readouterr().out == "models/cifake/gan\nmodels/cifake/prior\n"


@pytest.mark.parametrize("problem, status, words", [
    (UserError("the thing; the mend"), 2, "the thing; the mend"),
    (KeyboardInterrupt(), 130, "interrupted; run the same command again"),
    (OSError(errno.ENOSPC, "No space left on device", "models/x"), 2, "no space left on the disk while writing models/x"),
    (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 640 vs 534"), 2, "no space left"),  # torch
    (Exception("Error while serializing: I/O error: No space left on device (os error 28)"), 2, "no space left"),
    (OSError("100000 requested and 8176 written"), 2, "no space left on the disk; free some"),  # numpy
])
def test_what_goes_wrong_is_one_line_and_a_status(monkeypatch, capsys, problem, status, words):
    def fail(options):
        raise problem

    monkeypatch.setattr(cli, "book", fail)
    assert cli.main(["book"]) == status
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


@pytest.mark.parametrize("problem", [OSError(errno.EIO, "input/output error"), RuntimeError("a bug"), KeyError("a bug")])
def test_bugs_keep_their_traceback(monkeypatch, problem):
    def fail(options):
        raise problem

    monkeypatch.setattr(cli, "book", fail)
    with pytest.raises(type(problem)):
        cli.main(["book"])


def test_profile_sets_and_shows(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    path = str(tmp_path / "params.yaml")
    assert cli.main(["--params", path, "profile", "smoke"]) == 0
    assert cli.main(["--params", path, "profile"]) == 0
    assert capsys.readouterr().out == "profile smoke is now active\nsmoke\n"
    assert cli.main(["--params", path, "profile", "smoek"]) == 2
    assert "there is no profile 'smoek'; choose one of cifake, cifake_long, full, paper, small, smoke" in capsys.readouterr().err


def test_train_takes_what_is_left_out_from_the_profile(tmp_path, monkeypatch, capsys):
    from anl import runs

    seen = []
    monkeypatch.setattr(runs, "train_run", lambda spec, params, group: seen.append((spec, group)))
    path = str(tmp_path / "params.yaml")
    params.activate("small", ROOT / "profiles", path)
    assert cli.main(["--params", path, "train", "--target", "prior", "--seed", "4"]) == 0
    assert cli.main(["--params", path, "train", "--group", "step_t", "--target", "prior", "--step", "10", "--attention",
                     "gate", "--loss-weight", "0.5", "--seed", "0"]) == 0
    method = params.load(path).method
    assert seen == [(runs.RunSpec("prior", method.step, method.attention, method.loss_weight, 4), "adhoc"),
                    (runs.RunSpec("prior", 10, "gate", 0.5, 0), "step_t")]


def test_one_detector_is_trained_scored_again_and_evaluated(world, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(world.root)
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(world.settings))
    assert cli.main(["--params", str(path), "train", "--target", "none", "--seed", "7"]) == 0
    folder = capsys.readouterr().out.strip()
    assert folder == "runs/tiny/adhoc/plain-s7"
    assert cli.main(["--params", str(path), "predict", folder]) == 0
    assert "predictions.parquet: " in capsys.readouterr().out
    assert cli.main(["--params", str(path), "evaluate", folder]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert len(rows) == 1 + len(world.params.families) * len(world.params.evaluation.views) and ",AP," in rows[0]
    assert cli.main(["--params", str(path), "evaluate", "nowhere"]) == 2
    assert "nowhere/run.json is missing" in capsys.readouterr().err


def test_a_run_scored_again_has_the_same_scores(world, monkeypatch):
    from anl import predict, runs

    monkeypatch.chdir(world.root)
    folder = runs.train_run(runs.make_spec(world.params, "none", 1, "none", 1, 8), world.params, "adhoc")
    first = predict.read_predictions(folder)
    assert predict.score_run(folder, world.params)["logit"].equals(first["logit"])


def test_a_family_left_out_makes_benchmark_targets_and_run_of_its_own(world, monkeypatch, capsys):
    monkeypatch.chdir(world.root)
    path = world.root / "left_out.yaml"
    path.write_text(yaml.safe_dump(world.settings))
    for words, said in ((["benchmark"], " images of 8 generators, the reals among them"),
                        (["target", "--step", "1"], "targets/tiny/leave_one_out/vq/prior-t1.safetensors"),
                        (["train", "--group", "main", "--target", "none", "--seed", "0"],
                         "runs/tiny/leave_one_out/vq/main/plain-s0")):
        assert cli.main(["--params", str(path), *words, "--leave-out", "vq"]) == 0
        assert capsys.readouterr().out.strip().endswith(said.strip())
    assert cli.main(["--params", str(path), "train", "--seed", "0", "--leave-out", "gan"]) == 2
    assert "no family 'gan' to leave out" in capsys.readouterr().err


def test_claims_pass_their_status_on(tmp_path, monkeypatch):
    stub = types.ModuleType("anl.claims")
    stub.run = lambda params, check: int(check)
    monkeypatch.setitem(sys.modules, "anl.claims", stub)
    monkeypatch.setattr("anl.claims", stub, raising=False)
    path = str(tmp_path / "params.yaml")
    params.activate("small", ROOT / "profiles", path)
    assert cli.main(["--params", path, "claims"]) == 0
    assert cli.main(["--params", path, "claims", "--check"]) == 1


def test_settings_are_read_as_yaml():
    assert cli.parse_settings(["steps=[1, 10]", "profile=small", "flag=false", "x=1e-3", "none="]) == {
        "steps": [1, 10], "profile": "small", "flag": False, "x": yaml.safe_load("1e-3"), "none": None}


@pytest.mark.parametrize("pairs, words", [(["steps"], "write KEY=VALUE"), (["=3"], "write KEY=VALUE"),
                                          (["a=[1"], "not valid YAML"), (["a=1", "a=2"], "set twice")])
def test_settings_that_cannot_be_read(pairs, words):
    with pytest.raises(UserError, match=words):
        cli.parse_settings(pairs)


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("words", [["train", "--group", "adhoc", "--seed", "0"], ["paper", "train"]])
def test_inputs_edited_during_a_stage_are_named_and_the_finished_work_is_kept(words, processes, monkeypatch, tmp_path, capsys):
    """Of several processes this is one, which a launcher has started; that it joins the others is left out."""
    monkeypatch.chdir(ROOT)
    copied = tmp_path / "profile.yaml"
    copied.write_text((ROOT / "profiles/paper.yaml" if words[0] == "paper" else ROOT / "params.yaml").read_text())
    monkeypatch.setattr("anl.processes.join", lambda: None)
    for module in ("anl.cli_runs.train", "anl.cli_paper.paper"):
        monkeypatch.setattr(module, lambda options: copied.write_text(copied.read_text() + " ") and None)
    (monkeypatch.setenv("WORLD_SIZE", "2") if processes == 2 else monkeypatch.delenv("WORLD_SIZE", raising=False))
    monkeypatch.setattr("anl.launch._first", lambda: True)
    assert cli.main(["--params", str(copied), *words]) == 0
    assert "profile.yaml changed during the run; the output may mix two versions" in capsys.readouterr().err


def test_one_line_tells_of_an_interruption_however_many_processes_there_were(monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("anl.launch.share", interrupted)
    monkeypatch.setenv("WORLD_SIZE", "2")
    for ours, lines in ((True, 0), (False, 1)):  # started by us: the launcher speaks
        (monkeypatch.setenv("ANL_LAUNCHED", "1") if ours else monkeypatch.delenv("ANL_LAUNCHED", raising=False))
        assert cli.main(["train", "--group", "adhoc", "--seed", "0"]) == 130
        assert capsys.readouterr().err.count("interrupted") == lines
