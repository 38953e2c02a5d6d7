"""Threshold and temperature from validation images, and the reliability diagram."""

import numpy as np
import pandas as pd
import pytest

from anl.evaluation import calibration
from anl.evaluation.metrics import Sample, ece, evaluate
from anl.io import UserError
from tests.evaluation.synthetic import scores_table


@pytest.mark.parametrize(("target", "size"), [(0.01, 20), (0.05, 33), (0.3, 101)])
def test_the_threshold_is_the_lowest_real_score_that_keeps_the_rate(target, size):
    rng = np.random.default_rng(size)
    logit, label = rng.standard_normal(2 * size), np.repeat([0, 1], size)
    threshold = calibration.calibrate(label, logit, target).threshold
    real = np.sort(logit[:size])
    assert (real > threshold).mean() <= target
    below = real[real < threshold]
    assert not len(below) or (real > below[-1]).mean() > target


@pytest.mark.parametrize("factor", [0.3, 1.0, 5.0])
def test_the_temperature_undoes_a_scale(factor):
    rng = np.random.default_rng(0)
    logit = 2 * rng.standard_normal(20000)
    label = (rng.random(20000) < 1 / (1 + np.exp(-logit))).astype(int)
    found = calibration.calibrate(label, factor * logit, 0.05).temperature
    assert found == pytest.approx(factor, rel=0.05)
    best, *others = (evaluate(label, factor * logit, temperature=t, metrics=["nll"])["nll"]
                     for t in (found, found * 1.05, found / 1.05))
    assert best < min(others)


def test_only_raw_validation_images_of_the_seen_generator_count():
    scores = scores_table({"anl": 1.0}, seeds=(0,))
    found = calibration.calibrate_run(scores, "ddim", 0.05)
    changed = scores.copy()
    changed.loc[(changed["split"] == "test") | (changed["view"] != "raw"), "logit"] += 100
    other = scores[scores["generator"] == "ddim"].assign(generator="vae", split="val", logit=-50.0)
    changed = pd.concat([changed, other])
    assert calibration.calibrate_run(changed, ["ddim"], 0.05) == found


@pytest.mark.parametrize(("label", "logit"), [([0, 0], [0.0, 1.0]), ([], []), ([0, 1], [0.0, np.inf])])
def test_scores_that_cannot_calibrate_are_refused(label, logit):
    with pytest.raises(UserError):
        calibration.calibrate(label, logit, 0.05)


def test_the_reliability_table_of_scores_balances_the_classes_of_each_generator():
    scores = scores_table({"anl": 1.0}, photographs=20, seeds=(0, 1))
    table = calibration.reliability_table(scores, seen="ddim", view="jpeg96", replicates=50, bins=5)
    sizes = table.groupby(["generators", "temperature"])["n"].sum()
    assert sizes["seen", "before"] == 2 * 2 * 60 and sizes["unseen", "after"] == 2 * 2 * 2 * 60
    assert ((table["low"] <= table["share"]) & (table["share"] <= table["high"])).all()
    for (generators, temperature), rows in table.groupby(["generators", "temperature"]):
        if (generators, temperature) == ("seen", "before"):  # the same bins as those of the calibration error
            chosen = scores[(scores["split"] == "test") & (scores["view"] == "jpeg96") & scores["generator"].isin(["real", "ddim"])]
            gap = (rows["n"] * (rows["share"] - rows["probability"]).abs()).sum() / rows["n"].sum()
            assert gap == pytest.approx(ece(Sample.of(chosen["label"], chosen["logit"]), bins=5))
        assert rows["probability"].is_monotonic_increasing
        assert (rows["share"] * rows["n"]).sum() == pytest.approx(rows["n"].sum() / 2)
