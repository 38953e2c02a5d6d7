"""Scores saved with the results: what is restored gives the same tables, without a model."""

import dataclasses
import shutil

import pandas as pd
import pytest

from anl import families_study, leave_one_out, predict, recompute, robustness, runs, saved
from anl.errors import UserError
from anl.files import read_json, write_json
from anl.verify_compare import DIFFERENT, IDENTICAL
from tests.test_notebooks import write as write_notebook


@pytest.fixture(scope="module")
def params(world):
    evaluation = dataclasses.replace(world.params.evaluation, perturbations={"jpeg": [50.0]})
    return dataclasses.replace(world.params, profile="saving", evaluation=evaluation,
                               runs=dataclasses.replace(world.params.runs, seeds=[0]))


@pytest.fixture(scope="module")
def trained(params, world, tmp_path_factory):
    """A folder with finished runs, plain, ours and a peer's, scored in every way."""
    root = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(world.root)
        for folder in runs.find_or_train(specs(params), params, root / "runs").values():
            robustness.score_run(folder, params)
            families_study.score_run(folder, params)
    return root


@pytest.fixture
def project(trained, world, tmp_path, monkeypatch):
    """The working directory: the runs of `trained`, and links to the data and models of `world`."""
    shutil.copytree(trained / "runs", tmp_path / "runs")
    for name in ("models", "targets"):
        if (world.root / name).exists():
            (tmp_path / name).symlink_to(world.root / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def specs(params):
    return [*runs.main_specs(params), *runs.specs_of(params, baseline="npr")]


def scores(folders, params):
    return {spec: (predict.read_predictions(folder), robustness.read_scores(folder, params),
                   families_study.read_scores(folder, params), saved.cost_of(folder, params))
            for spec, folder in folders.items()}


def test_what_is_restored_has_the_same_scores_and_costs_and_needs_no_weights(project, params, monkeypatch):
    before = scores(runs.find_or_train(specs(params), params), params)
    assert saved.save(params) == saved.folder_of(params)
    shutil.rmtree(project / "runs")
    monkeypatch.setattr(predict.detectors, "load", lambda *_: pytest.fail("a model was loaded"))
    with saved.restored(params):
        after = scores(runs.find_or_train(specs(params), params), params)
    assert not runs.is_restored(params) and not (project / "runs/saving/restored").exists()
    for spec in specs(params):
        for old, new in zip(before[spec][:3], after[spec][:3], strict=True):
            pd.testing.assert_frame_equal(old, new, check_exact=True)
        assert before[spec][3] == after[spec][3]


def test_saving_twice_gives_the_same_bytes_and_what_left_the_disk_stays(project, params):
    folder = saved.save(params)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert set(before) == {"runs.json", "predictions.parquet", "robustness-perturbations.parquet",
                           *(f"families-{name}.parquet" for name in params.more_families)}
    shutil.rmtree(project / "runs/saving/adhoc/npr-s0")
    assert {path.name: path.read_bytes() for path in saved.save(params).iterdir()} == before
    assert "npr-s0" in read_json(folder / "runs.json")


def test_scores_of_the_same_weights_stay_and_those_of_others_go(project, params, monkeypatch):
    folder = saved.save(params)
    run = project / "runs/saving/adhoc/plain-s0"
    table = predict.read_predictions(run)
    predict.write_predictions(run, table.assign(logit=table["logit"] + 0.1))  # no float32 any more
    shutil.rmtree(project / "runs/saving/families/plain-s0")
    saved.save(params)
    wide = pd.read_parquet(folder / "predictions.parquet")
    assert (wide["plain-s0"] == table["logit"] + 0.1).all() and wide["npr-s0"].dtype == "float32"
    assert "plain-s0" in pd.read_parquet(folder / "families-dpm.parquet")
    shutil.copyfile(next((project / "runs/saving/adhoc").glob("prior-*")) / "model.safetensors", run / "model.safetensors")
    saved.save(params)
    assert "plain-s0" not in pd.read_parquet(folder / "families-dpm.parquet")
    assert "npr-s0" in pd.read_parquet(folder / "families-dpm.parquet")
    shutil.rmtree(project / "runs/saving/families")
    for path in (project / "runs/saving/adhoc").glob("*/model.safetensors"):
        path.write_bytes(path.read_bytes() + b" ")
    monkeypatch.setattr(saved, "cost_of", lambda *_: {})  # which would read them
    saved.save(params)
    assert not list(folder.glob("families-*")) and (folder / "robustness-perturbations.parquet").is_file()


def test_runs_of_a_left_out_family_are_saved_and_restored_with_the_profiles(project, params):
    own = leave_one_out.without(params, "vae")
    spec = runs.main_specs(own)[0]
    run = runs.run_folder(own, spec, "adhoc")
    shutil.copytree("runs/saving/adhoc/plain-s0", run)  # what a training without that family would have left
    write_json(run / "run.json", {**read_json(run / "run.json"), "identity": spec.identity(own)})
    folders = saved.save_all(params)
    assert [str(folder) for folder in folders] == ["results/predictions/saving", "results/predictions/saving/leave_one_out/vae"]
    before = predict.read_predictions(run)
    shutil.rmtree("runs")
    with saved.restored(params):
        found = runs.find_or_train([spec], own)[spec]
        pd.testing.assert_frame_equal(predict.read_predictions(found), before, check_exact=True)
        with pytest.raises(UserError, match="prior-t1-affinity-s0 are not saved"):
            leave_one_out.find_or_train(params, "vae")
    assert not list((project / "runs").rglob("*.parquet"))


def test_only_saved_runs_are_found_and_what_is_not_saved_is_named(project, params):
    saved.save(params)
    more = runs.specs_of(params, target="none", pairs=4)
    with saved.restored(params):
        found = runs.find_or_train(specs(params), params)
        assert {folder.parent.name for folder in found.values()} == {"restored"}
        with pytest.raises(UserError, match="the scores of plain-n4-s0 are not saved; `anl notebook` trains"):
            runs.find_or_train(more, params)
        stronger = dataclasses.replace(params, evaluation=dataclasses.replace(params.evaluation, perturbations={"jpeg": [40.0]}))
        with pytest.raises(UserError, match="was saved without what this needs of it"):
            robustness.score_run(next(iter(found.values())), stronger)
    assert {folder.parent.name for folder in runs.find_or_train(specs(params), params).values()} == {"adhoc"}


def test_what_a_killed_recomputation_left_is_not_found(project, params):
    saved.save(params)
    with saved.restored(params):
        shutil.copytree("runs/saving/restored", "kept")
    shutil.copytree("kept", "runs/saving/restored")
    (project / "runs/saving/restored" / runs.PROCESS).write_text("4194304")  # above the largest id of a process
    assert {folder.parent.name for folder in runs.find_or_train(specs(params), params).values()} == {"adhoc"}


def test_nothing_saved_other_parameters_and_damage_are_refused(project, params):
    with pytest.raises(UserError, match="no predictions are saved for profile saving"), saved.restored(params):
        pass
    folder = saved.save(params)
    other = dataclasses.replace(params, training=dataclasses.replace(params.training, steps=5))
    with pytest.raises(UserError, match="saved under other parameters"), saved.restored(other):
        pass
    path = folder / "predictions.parquet"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match=r"predictions.parquet is missing or damaged .*`git checkout"), saved.restored(params):
        pass
    empty = dataclasses.replace(params, profile="empty")
    with pytest.raises(UserError, match="profile empty has no finished run"):
        saved.save(empty)
    assert not saved.folder_of(empty).exists()


def test_runs_scored_on_other_images_are_refused_and_nothing_is_written(project, params):
    table = predict.read_predictions("runs/saving/adhoc/plain-s0")
    predict.write_predictions("runs/saving/adhoc/plain-s0", table.iloc[1:])
    with pytest.raises(UserError, match="was scored on other images, views or strengths than npr-s0"):
        saved.save(params)
    assert not saved.folder_of(params).exists()


def test_results_are_computed_again_compared_and_put_back(project, params, world, monkeypatch):
    (project / "params.yaml").write_text("")
    (project / "notebooks").mkdir()
    monkeypatch.setattr(recompute.params, "load", lambda *_: params)
    monkeypatch.setattr(recompute.notebooks.profiles, "load", lambda *_: params)
    saved.save(params)
    source = ("from pathlib import Path\nPath(f'results/{profile}/demo/table.csv').write_text(f'a\\n{number}\\n')\n"
              "print(Path(f'runs/{profile}/restored').is_dir())")
    write_notebook(project, source, parameters='profile = "saving"\nnumber = 1')
    recompute.notebooks.run_notebook("demo", {"number": 2})
    stored = project / "results/saving/demo/demo.ipynb"
    stored.write_text(stored.read_text().replace("False", "True"))  # no scores were restored then
    assert recompute.settings_of(stored) == {"profile": "saving", "number": 2}
    before = {file.name: file.read_bytes() for file in stored.parent.iterdir()}
    sidecar = (project / "provenance/saving/demo.json").read_bytes()
    assert recompute.recompute("demo", {}).verdict == IDENTICAL
    assert recompute.recompute("demo", {"number": 3}).verdict == DIFFERENT
    assert {file.name: file.read_bytes() for file in stored.parent.iterdir()} == before
    assert recompute.recompute("demo", {"number": 3}, keep=True).verdict == DIFFERENT
    assert (stored.parent / "table.csv").read_text() == "a\n3\n"
    assert (project / "provenance/saving/demo.json").read_bytes() == sidecar
    with pytest.raises(UserError, match="no results of 'other' in results/saving/other"):
        recompute.recompute("other", {})
    write_json(saved.folder_of(params) / "runs.json", {})
    with pytest.raises(UserError, match="under other parameters"):
        recompute.recompute("demo", {})


def test_another_profile_is_active_for_a_while(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text("profile: mine\n")
    with recompute.activated("smoke", path) as found:
        assert found == path and "profile: smoke" in path.read_text()
    assert path.read_text() == "profile: mine\n"


def test_a_profile_with_a_pipeline_of_its_own_is_read_where_it_stands(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text("profile: mine\n")
    with recompute.activated("cifake", path) as found:
        assert found == "profiles/cifake.yaml" and path.read_text() == "profile: mine\n"
    with pytest.raises(UserError, match="another kind"), recompute.activated("paper", path):
        pass
