"""The metrics of anl.metrics for every bootstrap replicate at once: row 0 of the weights gives the metric itself.

Each takes label (N,), logit (N,), weights (R, N) of anl.bootstrap and a Calibration, and returns (R,).
"""

import numpy as np

from anl import bootstrap
from anl.calibration import equal_mass_bins


def average_precision(label, logit, weights, _):
    return bootstrap.weighted_average_precision(label, logit, weights)


def auroc(label, logit, weights, _):
    """Area under the ROC curve by trapezoids; tied scores are one point."""
    fpr, tpr = _roc(label, logit, weights)
    return (np.diff(fpr, axis=1) * (tpr[:, 1:] + tpr[:, :-1]) / 2).sum(1)


def tpr_at(most):
    """The metric "true-positive rate at a false-positive rate of at most `most`"."""
    def measure(label, logit, weights, _):
        fpr, tpr = _roc(label, logit, weights)
        return np.where(fpr <= most, tpr, 0).max(1)

    return measure


def accuracy(label, logit, weights, calibration):
    return bootstrap.weighted_rate((logit > calibration.threshold) == label, weights)


def accuracy_at_half(label, logit, weights, _):
    """At a probability of one half, which no temperature moves."""
    return bootstrap.weighted_rate((logit > 0) == label, weights)


def real_accuracy(label, logit, weights, calibration):
    return _class_accuracy(0, label, logit, weights, calibration)


def fake_accuracy(label, logit, weights, calibration):
    return _class_accuracy(1, label, logit, weights, calibration)


def balanced_accuracy(label, logit, weights, calibration):
    return (real_accuracy(label, logit, weights, calibration) + fake_accuracy(label, logit, weights, calibration)) / 2


def nll(label, logit, weights, calibration):
    """Mean of -log p(label) in nats, logits divided by the temperature."""
    return bootstrap.weighted_rate(np.logaddexp(0, np.where(label == 1, -logit, logit) / calibration.temperature), weights)


def ece(label, logit, weights, calibration):
    """Expected calibration error over bins of equal mass, drawn once, from the sample itself."""
    probability = 1 / (1 + np.exp(-logit / calibration.temperature))
    place = equal_mass_bins(probability)
    member = place[:, None] == np.arange(place.max() + 1)  # (N, bins)
    return np.abs(weights @ (member * (label - probability)[:, None])).sum(1) / weights.sum(1)


def before(measure):
    """The same metric with a temperature of 1."""
    return lambda label, logit, weights, calibration: measure(label, logit, weights, calibration._replace(temperature=1.0))


def change(measure):
    """What the temperature changes: the metric minus itself at a temperature of 1."""
    untouched = before(measure)
    return lambda *arguments: measure(*arguments) - untouched(*arguments)


def _class_accuracy(kind, label, logit, weights, calibration):
    return bootstrap.weighted_rate((logit[label == kind] > calibration.threshold) == kind, weights[:, label == kind])


def _roc(label, logit, weights):
    """False- and true-positive rates (R, points) at every distinct score, from (0, 0) to (1, 1)."""
    order = np.argsort(-logit, kind="stable")
    label, logit, weights = label[order], logit[order], weights[:, order]
    last = np.append(np.diff(logit) != 0, True)
    rates = []
    for kind in (0, 1):
        called = np.cumsum(weights * (label == kind), axis=1)[:, last]
        with np.errstate(invalid="ignore"):
            rates.append(np.concatenate([np.zeros((len(weights), 1)), called / called[:, -1:]], axis=1))
    return rates


MEASURES = {"AP": average_precision, "AUROC": auroc, "TPR_at_1": tpr_at(0.01), "TPR_at_5": tpr_at(0.05),
            "accuracy": accuracy, "accuracy_at_half": accuracy_at_half, "balanced_accuracy": balanced_accuracy,
            "real_accuracy": real_accuracy, "fake_accuracy": fake_accuracy, "NLL": nll, "NLL_before": before(nll),
            "NLL_change": change(nll), "ECE": ece, "ECE_before": before(ece), "ECE_change": change(ece)}
