import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from anl.detect import platt


def test_midpoint_and_temperature_are_those_of_a_logistic_regression():
    rng = np.random.default_rng(0)
    real, fake = rng.normal(0.5, 1, 4000), rng.normal(2.5, 1, 4000)
    midpoint, temperature = platt.fit([real], [fake], 10**9)
    model = LogisticRegression(C=1e9).fit(np.concatenate([real, fake])[:, None], np.repeat([0, 1], 4000))
    assert temperature == pytest.approx(1 / model.coef_[0, 0], rel=1e-2)
    assert midpoint == pytest.approx(-model.intercept_[0] / model.coef_[0, 0], abs=0.02)


def test_few_pictures_give_no_certainty_and_conditions_count_alike():
    real, fake = np.full(10, -5.0), np.full(10, 5.0)
    midpoint, temperature = platt.fit([real], [fake], 10)
    assert 1 / (1 + np.exp(-(5 - midpoint) / temperature)) == pytest.approx(11 / 12, abs=1e-3)
    once = platt.fit([real, np.zeros(5)], [fake], 10)
    assert platt.fit([real, np.zeros(500)], [fake], 10) == pytest.approx(once, abs=1e-3)
    assert once[0] > midpoint  # photographs with a higher logit move the midpoint up


def test_a_detector_that_tells_nothing_says_one_half():
    same = np.random.default_rng(1).normal(3, 1, 100)
    midpoint, temperature = platt.fit([same], [same], 100)
    assert 1 / (1 + np.exp(-(3 - midpoint) / temperature)) == pytest.approx(0.5, abs=0.02)
