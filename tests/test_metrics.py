import math

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, balanced_accuracy_score, log_loss, roc_auc_score

from anl import metrics
from anl.errors import UserError


def scores(seed=0, n=400):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 2, n)
    return label, rng.normal(size=n) + 1.5 * label


def test_threshold_has_the_asked_false_positive_rate_on_validation_reals():
    label, logit = scores()
    threshold = metrics.calibrate(label, logit, 0.05).threshold
    assert (logit[label == 0] > threshold).mean() <= 0.05
    assert (logit[label == 0] > threshold).mean() > 0.05 - 1 / (label == 0).sum()


def test_temperature_minimises_the_likelihood_loss():
    rng = np.random.default_rng(1)
    logit = rng.normal(0, 2, 4000)
    label = (rng.random(4000) < 1 / (1 + np.exp(-logit))).astype(int)  # calibrated by construction
    assert metrics.calibrate(label, 3 * logit, 0.05).temperature == pytest.approx(3, rel=0.1)


def test_metrics_against_scikit_learn():
    label, logit = scores()
    calibration = metrics.Calibration(threshold=0.7, temperature=1.0)
    found = metrics.evaluate(label, logit, calibration)
    called = logit > 0.7
    assert found["accuracy"] == pytest.approx(accuracy_score(label, called))
    assert found["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(label, called))
    assert found["AUROC"] == pytest.approx(roc_auc_score(label, logit))
    assert found["NLL"] == pytest.approx(log_loss(label, 1 / (1 + np.exp(-logit))))


def test_calibration_error_by_hand():
    # two bins of two: confidence 0.1 with no hit, 0.9 with one hit in two
    found = metrics.expected_calibration_error([0, 0, 1, 0], [0.1, 0.1, 0.9, 0.9], bins=2)
    assert math.isclose(found, (0.1 + 0.4) / 2)


def test_a_missing_class_is_a_clear_error():
    with pytest.raises(UserError, match="lacks real or generated"):
        metrics.calibrate([1, 1], [0.0, 1.0], 0.05)
    with pytest.raises(UserError, match="not finite"):
        metrics.calibrate([1, 0], [0.0, np.nan], 0.05)
