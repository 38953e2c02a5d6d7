"""Metrics equal scikit-learn's, with and without weights and ties, and by hand where scikit-learn has none."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as reference

from anl.evaluation import metrics
from anl.io import UserError


def at(threshold, function):
    return lambda label, logit, sample_weight: function(label, logit > threshold, sample_weight=sample_weight)


def proper(function, temperature):
    return lambda label, logit, sample_weight: function(label, 1 / (1 + np.exp(-logit / temperature)),
                                                        sample_weight=sample_weight)


THRESHOLD, TEMPERATURE = 0.4, 1.7
REFERENCES = {
    "auroc": lambda label, logit, sample_weight: reference.roc_auc_score(label, logit, sample_weight=sample_weight),
    "average_precision": lambda label, logit, sample_weight: reference.average_precision_score(
        label, logit, sample_weight=sample_weight),
    "balanced_accuracy": at(THRESHOLD, reference.balanced_accuracy_score),
    "tpr": at(THRESHOLD, reference.recall_score),
    "fpr": lambda label, logit, sample_weight: 1 - reference.recall_score(
        label, logit > THRESHOLD, pos_label=0, sample_weight=sample_weight),
    "nll": proper(reference.log_loss, TEMPERATURE), "brier": proper(reference.brier_score_loss, TEMPERATURE)}


def drawn(seed, size, levels, shift=0.7):
    """Labels (both classes), logits (rounded to `levels` per unit, 0 = not at all) and integer weights."""
    rng = np.random.default_rng(seed)
    label = np.concatenate([[0, 1], rng.integers(0, 2, size - 2)])
    logit = rng.standard_normal(size) + shift * label
    return label, np.round(logit * levels) / levels if levels else logit, rng.integers(0, 4, size).astype(float)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.integers(2, 60), st.sampled_from([0, 1, 5]))
def test_metrics_equal_scikit_learns(seed, size, levels):
    label, logit, weights = drawn(seed, size, levels)
    sample = metrics.Sample.of(label, logit, threshold=THRESHOLD, temperature=TEMPERATURE)
    weights[:2] = 1  # scikit-learn needs both classes
    for name, function in REFERENCES.items():
        assert metrics.metric(name)(sample) == pytest.approx(function(label, logit, None), abs=1e-12), name
        counts = np.stack([weights, np.ones(size)], axis=1)
        assert metrics.metric(name)(sample, counts) == pytest.approx(
            [function(label, logit, weights), function(label, logit, None)], abs=1e-12), name


@pytest.mark.parametrize("name", sorted(metrics.METRICS.keys() - {"ece"}))  # its bins are those of the whole sample
def test_replicates_equal_the_metric_of_a_repeated_sample(name, size=150):
    label, logit, _ = drawn(3, size, 4)
    rng = np.random.default_rng(0)
    group = rng.permutation(np.arange(size) // 2)
    pair = np.char.add("p", (np.arange(size) // 5).astype(str))
    counts = rng.integers(0, 3, (group.max() + 1, 5)).astype(np.float32)
    options = {"threshold": THRESHOLD, "temperature": TEMPERATURE}
    replicates = metrics.metric(name)(metrics.Sample.of(label, logit, group=group, pair=pair, **options), counts)
    for column in range(counts.shape[1]):
        index = np.repeat(np.arange(size), counts[group, column].astype(int))
        if name == "pairwise_accuracy":  # repeating an image would also add pairs
            wins = metrics.paired_wins(label, logit, group, np.arange(size) // 5)
            weight = counts[wins.group, column]
            expected = (weight * wins.logit).sum() / weight.sum()
        else:
            expected = metrics.metric(name)(metrics.Sample.of(label[index], logit[index], **options))
        assert replicates[column] == pytest.approx(expected, abs=2e-6)


def test_pairwise_accuracy_by_hand():
    label = np.array([0, 1, 1, 0, 1, 1, 0, 0, 1])
    logit = np.array([1.0, 2.0, 1.0, 3.0, 2.0, 9.0, 1.0, 5.0, 4.0])
    pair = np.array(["a", "a", "a", "b", "b", "", "c", "c", "c"])
    # a: won, tied; b: lost; unpaired: out; c: above one real image and below the other
    assert metrics.pairwise_accuracy(metrics.Sample.of(label, logit, pair=pair)) == pytest.approx((1 + 0.5 + 0 + 0.5) / 4)
    for unpaired in (None, np.array(["", "", ""]), np.array(["a", "b", "b"])):
        assert np.isnan(metrics.pairwise_accuracy(metrics.Sample.of([0, 1, 1], [0.0, 1.0, 2.0], pair=unpaired)))


def test_ece_by_hand():
    label = np.array([0, 1, 0, 1, 1, 1])
    probability = np.array([0.1, 0.2, 0.3, 0.7, 0.8, 0.9])
    sample = metrics.Sample.of(label, np.log(probability / (1 - probability)))
    assert metrics.ece(sample, bins=2) == pytest.approx((abs(1 / 3 - 0.2) + abs(1 - 0.8)) / 2)
    weights = np.array([[1.0, 2, 1, 0, 0, 1]]).T
    expected = (abs(0.1 - 2 * 0.8 + 0.3) + 0.1) / 5  # |sum of weight (probability - label)| in each bin
    assert metrics.ece(sample, weights, bins=2) == pytest.approx([expected])


def test_a_missing_class_gives_nan_and_no_warning(recwarn):
    for label in ([1, 1], [0, 0]):
        values = metrics.evaluate(label, [0.5, 1.5])
        assert np.isnan([values[name] for name in ("auroc", "balanced_accuracy")]).all()
    replicate = metrics.Sample.of([0, 1], [0.0, 1.0])
    assert np.isnan(metrics.auroc(replicate, np.array([[0.0, 1.0], [1.0, 1.0]]))).tolist() == [True, False]
    assert not recwarn.list


def test_extreme_logits_stay_finite():
    values = metrics.evaluate([0, 1, 0, 1], [-2000.0, 2000.0, 2000.0, -2000.0])
    assert values["nll"] == pytest.approx(1000) and values["brier"] == pytest.approx(0.5)


@pytest.mark.parametrize(("label", "logit"), [([0, 1], [0.0, np.nan]), ([0, 2], [0.0, 1.0]), ([0, 1, 1], [0.0, 1.0])])
def test_bad_scores_are_refused(label, logit):
    with pytest.raises(UserError):
        metrics.Sample.of(label, logit)
