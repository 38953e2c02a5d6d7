import numpy as np
import pytest
from sklearn.calibration import calibration_curve

from anl import calibration


def test_equal_mass_error_by_hand():
    # two bins of three: confidences 0.2 on average with one hit in three, 0.8 with one hit in three
    label, probability = [0, 1, 0, 0, 0, 1], [0.1, 0.2, 0.3, 0.7, 0.8, 0.9]
    assert calibration.equal_mass_error(label, probability, bins=2) == pytest.approx((abs(1 / 3 - 0.2) + abs(1 / 3 - 0.8)) / 2)
    table = calibration.reliability(label, probability, bins=2)
    assert table["n"].tolist() == [3, 3] and table["probability"].tolist() == pytest.approx([0.2, 0.8])


def test_bins_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    probability = rng.beta(2, 5, 1002)  # a size at which no edge is an observation: rounding would decide its bin
    label = (rng.random(1002) < probability).astype(int)
    share, mean = calibration_curve(label, probability, n_bins=15, strategy="quantile")
    table = calibration.reliability(label, probability)
    np.testing.assert_allclose(table["share"], share)
    np.testing.assert_allclose(table["probability"], mean)
    assert table["n"].sum() == 1002 and table["n"].between(66, 67).all()


def test_a_calibrated_forecast_errs_little_and_an_overconfident_one_much():
    rng = np.random.default_rng(1)
    logit = rng.normal(0, 2, 20000)
    label = (rng.random(20000) < 1 / (1 + np.exp(-logit))).astype(int)
    assert calibration.equal_mass_error(label, 1 / (1 + np.exp(-logit))) < 0.015
    assert calibration.equal_mass_error(label, 1 / (1 + np.exp(-3 * logit))) > 0.08


def test_order_means_nothing_even_among_equal_scores():
    rng = np.random.default_rng(2)
    probability, label = rng.integers(1, 6, 200) / 6, rng.integers(0, 2, 200)
    order = rng.permutation(200)
    error = calibration.equal_mass_error(label, probability)
    assert calibration.equal_mass_error(label[order], probability[order]) == pytest.approx(error, abs=1e-12)
    assert len(calibration.reliability(label, probability)) == 5


def test_one_probability_for_all_is_one_bin():
    assert calibration.equal_mass_error([1, 0, 0, 0], [0.5] * 4) == pytest.approx(0.25)
