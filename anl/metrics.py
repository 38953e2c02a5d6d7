"""What a table of scores says: ranking, thresholded and probabilistic metrics, threshold and temperature from validation.

Scores are logits; label 1 is generated. The threshold and the temperature are fixed on the validation split of the
seen generator and carried to every test set; an oracle threshold appears nowhere.
"""

from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize_scalar
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from anl.errors import UserError

ECE_BINS = 15


class Calibration(NamedTuple):
    """threshold: logit above which an image is called generated. temperature: what logits are divided by."""

    threshold: float
    temperature: float


def calibrate(label, logit, target_fpr):
    """Threshold at `target_fpr` false positives on validation reals, and the temperature of least NLL (Guo et al. 2017).

    Raises UserError if a class is missing or a logit is not finite.
    """
    label, logit = np.asarray(label), np.asarray(logit, float)
    if len(np.unique(label)) < 2:
        raise UserError("the validation split lacks real or generated images; raise use.val")
    if not np.isfinite(logit).all():
        raise UserError("a validation score is not finite; train the run again")
    threshold = float(np.quantile(logit[label == 0], 1 - target_fpr, method="higher"))
    best = minimize_scalar(lambda log_t: negative_log_likelihood(label, logit / np.exp(log_t)), bounds=(-4, 4),
                           method="bounded")
    return Calibration(threshold, float(np.exp(best.x)))


def negative_log_likelihood(label, logit):
    """Mean of -log p(label), in nats."""
    return float(np.mean(np.logaddexp(0, np.where(np.asarray(label) == 1, -logit, logit))))


def expected_calibration_error(label, probability, bins=ECE_BINS):
    """Mean gap between confidence that an image is generated and how often it is, over equal-width bins."""
    label, probability = np.asarray(label), np.asarray(probability)
    place = np.minimum((probability * bins).astype(int), bins - 1)
    gaps = [abs(label[place == b].mean() - probability[place == b].mean()) * (place == b).mean()
            for b in range(bins) if (place == b).any()]
    return float(sum(gaps))


def evaluate(label, logit, calibration):
    """All metrics of one test set (both classes), a dict of floats."""
    label, logit = np.asarray(label), np.asarray(logit, float)
    called = logit > calibration.threshold
    real_accuracy, fake_accuracy = float((~called[label == 0]).mean()), float(called[label == 1].mean())
    probability = 1 / (1 + np.exp(-logit / calibration.temperature))
    fpr, tpr, _ = roc_curve(label, logit)
    return {"AP": float(average_precision_score(label, logit)), "AUROC": float(roc_auc_score(label, logit)),
            "accuracy": float((called == label).mean()), "accuracy_at_half": float(((logit > 0) == label).mean()),
            "balanced_accuracy": (real_accuracy + fake_accuracy) / 2, "real_accuracy": real_accuracy,
            "fake_accuracy": fake_accuracy, "TPR_at_1": float(tpr[fpr <= 0.01].max()),
            "TPR_at_5": float(tpr[fpr <= 0.05].max()),
            "NLL": negative_log_likelihood(label, logit / calibration.temperature),
            "ECE": expected_calibration_error(label, probability)}
