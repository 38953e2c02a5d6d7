import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import average_precision_score, recall_score

from anl import analysis, detector, predict, robustness
from anl.benchmark import REAL, read_images, read_manifest, use_rows
from anl.data import perturb
from anl.errors import UserError
from anl.files import write_json

STRENGTHS = {"jpeg": [50.0], "noise": [2.0, 10.0]}


@pytest.fixture
def params(world):
    return dataclasses.replace(world.params, evaluation=dataclasses.replace(world.params.evaluation,
                                                                            perturbations=STRENGTHS))


def run(root, params, slug, seed=0):
    """A run folder of an untrained detector, with its scores."""
    folder = root / "runs/tiny/main" / slug
    torch.manual_seed(seed)
    made = detector.Detector("test_resnet", 8, 8, 4, 32, attention_dim=8).eval()
    detector.save(made, folder / "model.safetensors")
    write_json(folder / "run.json", {"spec": {"seed": seed, "formats": "lossless"}})
    predict.write_predictions(folder, predict.score_benchmark(made, params))
    return folder


def test_every_test_image_is_scored_once_at_every_strength_as_perturbed(tmp_path, params):
    folder = run(tmp_path, params, "plain-s0")
    path = robustness.score_run(folder, params)
    assert path == tmp_path / "runs/tiny/robustness/plain-s0/perturbations.parquet"
    table = pd.read_parquet(path)
    rows = use_rows(read_manifest(params.benchmark.folder), params)
    rows = rows[rows["split"] == "test"]
    assert list(table.columns) == robustness.COLUMNS and np.isfinite(table["logit"]).all()
    for _, part in table.groupby(["perturbation", "strength"]):
        assert sorted(part["sample_id"]) == sorted(rows["sample_id"])
    assert set(zip(table["perturbation"], table["strength"])) == set(robustness.strengths_of(params))
    last = rows.tail(1)  # alone, so that its score depends on no other image
    pixels = read_images(params.benchmark.folder, last)[0]
    sample = last["sample_id"].item()
    for kind, strength in robustness.strengths_of(params):
        image = perturb.apply(kind, strength, pixels, params.seed, sample)
        stored = table[(table["perturbation"] == kind) & (table["strength"] == strength) & (table["sample_id"] == sample)]
        alone = predict.score(detector.load(folder / "model.safetensors"), np.stack([image]))
        assert stored["logit"].item() == pytest.approx(alone.item(), abs=1e-5)


def test_what_is_current_is_kept_and_what_is_not_is_made_again(tmp_path, params):
    folder = run(tmp_path, params, "plain-s0")
    path = robustness.score_run(folder, params)
    before = path.read_bytes()
    path.touch()
    stamp = path.stat().st_mtime_ns
    assert robustness.score_run(folder, params) == path and path.stat().st_mtime_ns == stamp
    fewer = dataclasses.replace(params, evaluation=dataclasses.replace(params.evaluation, perturbations={"jpeg": [50.0]}))
    assert len(pd.read_parquet(robustness.score_run(folder, fewer))) == len(pd.read_parquet(path))
    assert set(pd.read_parquet(path)["perturbation"]) == {"jpeg"}
    robustness.score_run(folder, params)
    assert path.read_bytes() == before
    run(tmp_path, params, "plain-s0", seed=1)  # other weights under the same name
    other = pd.read_parquet(robustness.score_run(folder, params))
    assert path.read_bytes() != before and len(other)
    path.write_bytes(before[:100])
    assert pd.read_parquet(robustness.score_run(folder, params)).equals(other)


def test_a_run_or_a_profile_that_lacks_something_is_named(tmp_path, params, world):
    with pytest.raises(UserError, match="run.json is missing"):
        robustness.score_run(tmp_path / "nothing", params)
    folder = run(tmp_path, params, "plain-s0")
    none = dataclasses.replace(params, evaluation=dataclasses.replace(params.evaluation, perturbations={}))
    with pytest.raises(UserError, match="no evaluation.perturbations"):
        robustness.score_run(folder, none)


def test_perturbations_are_no_part_of_a_run(world, params):
    from anl.runs import main_specs

    for spec in main_specs(world.params):
        assert spec.identity(params) == spec.identity(world.params)


@pytest.fixture
def study(tmp_path, params):
    groups = {name: [run(tmp_path, params, f"{name}-s{seed}", 10 * index + seed) for seed in range(2)]
              for index, name in enumerate(("plain", "anl"))}
    return params, groups, *robustness.curves(groups, "plain", params)


def test_curves_agree_with_scikit_learn_at_the_threshold_of_untouched_validation(study):
    params, groups, means, differences = study
    threshold = {folder: analysis.calibration_of(predict.read_predictions(folder), params).threshold
                 for folders in groups.values() for folder in folders}

    def point(folder, generator, metric):
        table = pd.read_parquet(robustness.score_run(folder, params))
        table = table[(table["perturbation"] == "noise") & (table["strength"] == 10)]
        both = table[table["generator"].isin([REAL, generator])]
        if metric == "AP":
            return average_precision_score(both["label"], both["logit"])
        return recall_score(both["label"], both["logit"] > threshold[folder], pos_label=int(metric == "fake_accuracy"))

    here = (means["perturbation"] == "noise") & (means["strength"] == 10)
    for metric, generator, shown in (("AP", "vae", "vae"), ("fake_accuracy", "flow", "flow"), ("real_accuracy", "vae", REAL)):
        wanted = {name: np.mean([point(folder, generator, metric) for folder in folders])
                  for name, folders in groups.items()}
        rows = means[here & (means["metric"] == metric) & (means["generator"] == shown)].set_index("method")
        assert rows["mean"].to_dict() == pytest.approx(wanted) and (rows["seeds"] == 2).all()
        row = differences[(differences["perturbation"] == "noise") & (differences["strength"] == 10)
                          & (differences["metric"] == metric) & (differences["generator"] == shown)]
        assert row["difference"].item() == pytest.approx(wanted["anl"] - wanted["plain"])
    assert (means[means["metric"] == "real_accuracy"]["generator"] == REAL).all()


def test_tables_to_read(study):
    params, _, means, differences = study
    table = robustness.unseen_table(means, differences, "AP")
    assert table["perturbation"].tolist() == ["untouched", "jpeg 50", "noise 2", "noise 10"]
    assert {"plain", "anl_low", "anl_minus_plain", "anl_minus_plain_high", "n"} <= set(table.columns)
    np.testing.assert_allclose(table["anl"] - table["plain"], table["anl_minus_plain"], atol=1e-12)
    rates = robustness.rates(means, params)
    assert len(rates) == 8 and list(rates.columns[2:]) == [REAL, *params.families, "unseen"]
    assert not rates.isna().any(axis=None)


def test_the_verdict_counts_gains_whose_interval_lies_above_zero(study):
    _, _, means, differences = study
    gains = (differences["metric"] == "AP") & (differences["generator"] == "unseen")
    differences.loc[gains, "low"] = np.where(differences.loc[gains, "perturbation"] == "noise", 0.01, -0.01)
    values = robustness.verdict(means, differences)
    assert values["gains_held"]["text"] == "2 of 3" and values["gains_lost"]["text"] == "jpeg 50"
    lowest = means[(means["metric"] == "AP") & (means["generator"] == "unseen") & (means["method"] == "anl")]["mean"].min()
    assert values["AP_anl_lowest"]["value"] == pytest.approx(lowest)
