"""The runs with a longer budget: their own profile and benchmark, and what the notebook `longer` makes of them."""

import json

import numpy as np
import pandas as pd
import pytest
import yaml

from anl import analysis, params, predict, runs
from anl.published import benchmark, study
from tests.conftest import ROOT
from tests.published.test_study import scores


@pytest.fixture
def long(public, tmp_path, monkeypatch):
    """The tiny project's folder with both profiles, the long one without the other generators; its Params."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "profiles").mkdir()
    (tmp_path / "profiles/cifake.yaml").write_text(yaml.safe_dump(public.settings))
    change = yaml.safe_load((ROOT / "profiles/cifake_long.yaml").read_text())
    change |= {"use": {"train": 8, "val": 3, "test": 6}, "benchmark": {"folder": str(tmp_path / "long")},
               "training": {**change["training"], "steps": 3, "batch_size": 4}}
    (tmp_path / "profiles/cifake_long.yaml").write_text(yaml.safe_dump(change))
    return params.load(tmp_path / "profiles/cifake_long.yaml")


def test_the_long_profile_leaves_the_other_generators_out():
    settings = params.load(ROOT / "profiles/cifake_long.yaml")
    assert list(settings.families) == ["sd14"] and settings.evaluation.mirrored and settings.training.flip
    assert settings.use.test == 10000 and settings.benchmark.folder != params.load(ROOT / "profiles/cifake.yaml").benchmark.folder


def test_the_notebook_trains_and_tells_what_came_of_it(long, tmp_path, capsys):
    rows = benchmark.build(long)
    assert set(rows["generator"]) == {"real", "sd14"}
    cells = json.loads((ROOT / "notebooks/longer.ipynb").read_text())["cells"]
    (tmp_path / "results/cifake/longer").mkdir(parents=True)
    space = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), space)  # noqa: S102 (the repository's own notebook)
    values = json.loads((tmp_path / "results/cifake/longer/values.json").read_text())
    assert not any("nan" in item["text"] for item in values.values()) and values["images"]["text"] == "12"
    assert values["steps"]["text"] == "3" and values["passes"]["text"] == "0.8" and values["threads"]["text"] == "1"
    table = predict.read_predictions(runs.find_run(study.labelled(long)["plain"][0], long))
    val, test = (table[(table["split"] == split) & (table["view"] == "raw")] for split in ("val", "test"))
    threshold, _ = study.best_threshold(val["label"].to_numpy(), val["logit"].to_numpy())
    assert values["accuracy"]["value"] == pytest.approx(((test["logit"] > threshold) == test["label"]).mean())
    page = (ROOT / "book/committed/cifake/longer.md.txt").read_text()
    for name in ("accuracy", "summary", "controls", "budget"):
        assert f"longer/{name}.html" in page and (tmp_path / f"results/cifake/longer/{name}.csv").is_file()


def test_the_page_speaks_of_the_best_on_validation_images_and_says_whether_it_reached_the_aim(long):
    tables = {"a": scores(0, 2.0), "b": scores(1, 9.0)}
    groups = {"plain": ["a"], "anl": ["b"]}
    views = ("matched", "jpeg96")
    accuracy = pd.concat([study.accuracy(groups, long, view, tables.get) for view in views])
    summary = pd.concat([analysis.summary(groups, long, view, study.LONGER, tables.get) for view in views])
    about = {"spec": {"seed": 0}, "parameters": 1234567, "precision": "bf16", "device": "cpu", "threads": 2,
             "cpu_seconds": 90.0, "wall_seconds": 240.0}
    budget = study.budget(groups, long, lambda path: about)
    assert budget["cpu_minutes"].tolist() == [1.5, 1.5] and budget["passes"].iloc[0] == pytest.approx(3 * 4 / 16)
    values = study.quoted_longer(accuracy, summary, budget, long)
    assert values["method"]["text"] == "`anl`" and values["verdict"]["text"] == "reached"
    assert values["accuracy"] == values["accuracy_anl"] and values["accuracy_gain_anl"]["value"] > 0
    assert values["parameters"]["text"] == "1,234,567" and values["wall_minutes"]["text"] == "4"
    worse = study.quoted_longer(*(table[table["method"] == "plain"] for table in (accuracy, summary, budget)), long)
    assert worse["verdict"]["text"] == "missed" and worse["accuracy"]["value"] < study.AIM


def test_a_summary_of_a_single_generator_has_no_mean_over_unseen_ones(long):
    found = analysis.summary({"plain": ["a"]}, long, "matched", ("AP",), {"a": scores(0, 2.0)}.get)
    assert found["generator"].tolist() == ["sd14"] and np.isfinite(found["mean"]).all()
