"""Scores of whole experiments: each run once, found again, refused where they belong to other settings."""

import json
import shutil

import pandas as pd
import pytest

from anl.evaluation import runs, tables
from anl.evaluation.compare import compare
from anl.io import UserError
from tests.project import make_project, tiny_config


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("project")
    config = make_project(folder)
    runs.write_experiment(config, "main")
    return folder


def test_an_experiment_is_scored_and_compared(root):
    config = tiny_config(root)
    models = tables.disjoint_models(config)
    assert models["ddim"] == models["ddpm"] == "pixel" and models["latent"] == models["vae"] == "vae" and models["flow"] == "flow"
    scores = tables.read_experiment(config, "main")
    assert set(scores["variant"]) == {"plain", "anl"} and set(scores["seed"]) == {0, 1}
    assert not scores.duplicated(["variant", "seed", "image_id", "view"]).any()
    table = compare(scores, "plain", seen=config.benchmark.seen, disjoint=models, replicates=20)
    assert {"ddim", "ddpm", "vae", "unseen"} <= set(table["generator"])


def test_runs_are_shared_by_experiments_and_trained_once(root):
    config = tiny_config(root)
    before = {path: path.stat().st_mtime_ns for path in (root / "runs" / "tiny").glob("*/detector.safetensors")}
    scores = runs.experiment_scores(config, "step_t")
    after = {path: path.stat().st_mtime_ns for path in (root / "runs" / "tiny").glob("*/detector.safetensors")}
    assert set(scores["variant"]) == {"t=1", "t=100"}
    assert before.items() <= after.items() and len(after) == len(before) + 2  # t=1 is the method of `main`


def test_the_best_run_is_the_one_that_does_best_on_validation_images(root):
    config = tiny_config(root)
    scores = runs.experiment_scores(config, "main")
    found = runs.validation_auroc(config, scores)
    assert set(found["generator"]) == {"ddim"} and set(found["view"]) == {"raw"} and len(found) == 4
    best = found.loc[found["auroc"].idxmax()]
    one = scores[(scores["variant"] == best["variant"]) & (scores["seed"] == best["seed"]) & (scores["split"] == "val")]
    real, fake = (one.loc[one["label"] == label, "logit"].to_numpy() for label in (0, 1))
    assert best["auroc"] == pytest.approx(((fake[:, None] > real) + 0.5 * (fake[:, None] == real)).mean())
    record = json.loads((runs.best_run(config, "main") / "run.json").read_text())
    assert (record["variant"], record["seed"]) == (best["variant"], best["seed"])


def test_scores_of_other_settings_are_refused(root):
    with pytest.raises(UserError, match="another configuration of 'main'"):
        tables.read_experiment(tiny_config(root, training={"steps": 5}), "main")
    with pytest.raises(UserError, match=r"attention.parquet is missing; make it with `dvc repro score@attention`"):
        tables.read_experiment(tiny_config(root), "attention")


def test_another_data_set_is_scored_with_the_threshold_of_the_own_one(root, tmp_path):
    rows = pd.read_parquet(root / "benchmark" / "manifest.parquet")
    other = rows[rows["split"] == "test"].assign(dataset="other", image_id="other/" + rows["image_id"])
    shutil.copytree(root / "benchmark", tmp_path / "benchmark")
    pd.concat([rows, other]).to_parquet(tmp_path / "benchmark" / "manifest.parquet")
    config = tiny_config(root, seeds=[0], benchmark={"folder": str(tmp_path / "benchmark"), "test_sets": {"other": "index"}})
    own, there = (runs.experiment_scores(config, "main", test_set=name) for name in (None, "other"))
    for table, prefix in ((own, False), (there, True)):
        assert set(table.loc[table["split"] == "test", "image_id"].str.startswith("other/")) == {prefix}
        assert not table.loc[table["split"] == "val", "image_id"].str.startswith("other/").any()
