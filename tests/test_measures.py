import numpy as np
import pytest
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    balanced_accuracy_score,
    log_loss,
    recall_score,
    roc_auc_score,
    roc_curve,
)

from anl import bootstrap, metrics
from anl.calibration import equal_mass_error
from anl.measures import MEASURES

CALIBRATION = metrics.Calibration(threshold=0.4, temperature=1.7)


def scores(seed=0, n=300, digits=None):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 2, n)
    logit = rng.normal(size=n) + 1.2 * label
    return label, logit if digits is None else logit.round(digits)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def reference(label, logit, calibration):
    """Every measure by scikit-learn."""
    called = logit > calibration.threshold
    fpr, tpr, _ = roc_curve(label, logit, drop_intermediate=False)
    found = {"AP": average_precision_score(label, logit), "AUROC": roc_auc_score(label, logit),
             "TPR_at_1": tpr[fpr <= 0.01].max(), "TPR_at_5": tpr[fpr <= 0.05].max(),
             "accuracy": accuracy_score(label, called), "accuracy_at_half": accuracy_score(label, sigmoid(logit) > 0.5),
             "balanced_accuracy": balanced_accuracy_score(label, called),
             "real_accuracy": recall_score(label, called, pos_label=0), "fake_accuracy": recall_score(label, called),
             "NLL": log_loss(label, sigmoid(logit / calibration.temperature)), "NLL_before": log_loss(label, sigmoid(logit))}
    return {**found, "NLL_change": found["NLL"] - found["NLL_before"]}


@pytest.mark.parametrize("digits", [None, 1])  # 1: many tied scores
def test_row_0_is_the_metric_itself(digits):
    label, logit = scores(digits=digits)
    found = {name: measure(label, logit, np.ones((1, len(label))), CALIBRATION)[0] for name, measure in MEASURES.items()}
    wanted = reference(label, logit, CALIBRATION)
    wanted |= {"ECE": equal_mass_error(label, sigmoid(logit / 1.7)), "ECE_before": equal_mass_error(label, sigmoid(logit))}
    wanted["ECE_change"] = wanted["ECE"] - wanted["ECE_before"]
    assert found == pytest.approx(wanted)


def test_a_replicate_is_the_metric_of_the_drawn_images():
    label, logit = scores(1)
    clusters = np.arange(len(label)) // 10
    weights = bootstrap.cluster_weights(clusters, 3, 0)
    for row in range(1, 4):
        drawn = np.repeat(np.arange(len(label)), weights[row].astype(int))
        assert (weights[row] != 1).any()
        wanted = reference(label[drawn], logit[drawn], CALIBRATION)
        found = {name: MEASURES[name](label, logit, weights, CALIBRATION)[row] for name in wanted}
        assert found == pytest.approx(wanted)


def test_agrees_with_the_table_of_a_run():
    label, logit = scores(2)
    table = metrics.evaluate(label, logit, CALIBRATION)
    for name in set(table) - {"ECE"}:  # that one is over bins of equal width
        assert MEASURES[name](label, logit, np.ones((1, len(label))), CALIBRATION)[0] == pytest.approx(table[name]), name
