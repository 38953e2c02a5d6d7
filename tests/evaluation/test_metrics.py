"""Metrics equal scikit-learn's, with and without weights and ties, and by hand where scikit-learn has none."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as reference

from anl.evaluation import metrics
from anl.io import UserError


def reference_tpr(limit):
    def measured(label, logit, sample_weight):
        fpr, tpr, _ = reference.roc_curve(label, logit, sample_weight=sample_weight, drop_intermediate=False)
        return tpr[fpr <= limit].max()
    return measured


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
    "tpr_at_fpr_0.01": reference_tpr(0.01), "tpr_at_fpr_0.05": reference_tpr(0.05),
    "balanced_accuracy": at(THRESHOLD, reference.balanced_accuracy_score),
    "accuracy": at(THRESHOLD, reference.accuracy_score),
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


@pytest.mark.parametrize("size", [70, 300])
@pytest.mark.parametrize("name", sorted(metrics.METRICS))
def test_replicates_equal_the_metric_of_a_repeated_sample(name, size):
    label, logit, _ = drawn(3, size, 4)
    rng = np.random.default_rng(0)
    group = rng.permutation(np.arange(size) // 2)
    pair = np.char.add("p", (np.arange(size) // 5).astype(str))
    counts = rng.integers(0, 3, (group.max() + 1, 5)).astype(np.float32)
    options = {"threshold": THRESHOLD, "temperature": TEMPERATURE}
    replicates = metrics.metric(name)(metrics.Sample.of(label, logit, group=group, pair=pair, **options), counts)
    if name == "ece":  # its bins are those of the whole sample
        return
    for column in range(counts.shape[1]):
        index = np.repeat(np.arange(size), counts[group, column].astype(int))
        if name == "pairwise_accuracy":  # repeating an image would also add pairs
            wins = metrics.paired_wins(label, logit, group, metrics.pair_codes(pair))
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


@pytest.mark.parametrize("pair", [None, np.array(["", "", ""]), np.array(["a", "b", "b"])])
def test_pairwise_accuracy_of_unpaired_images_is_nan(pair):
    assert np.isnan(metrics.pairwise_accuracy(metrics.Sample.of([0, 1, 1], [0.0, 1.0, 2.0], pair=pair)))


def test_ece_by_hand():
    label = np.array([0, 1, 0, 1, 1, 1])
    probability = np.array([0.1, 0.2, 0.3, 0.7, 0.8, 0.9])
    sample = metrics.Sample.of(label, np.log(probability / (1 - probability)))
    assert metrics.ece(sample, bins=2) == pytest.approx((abs(1 / 3 - 0.2) + abs(1 - 0.8)) / 2)
    weights = np.array([[1.0, 2, 1, 0, 0, 1]]).T
    expected = (abs(0.1 - 2 * 0.8 + 0.3) + 0.1) / 5  # |sum of weight (probability - label)| in each bin
    assert metrics.ece(sample, weights, bins=2) == pytest.approx([expected])


def test_ece_does_not_depend_on_the_order_of_equal_scores():
    label, logit, _ = drawn(5, 200, 2)
    order = np.random.default_rng(1).permutation(200)
    assert metrics.ece(metrics.Sample.of(label, logit)) == pytest.approx(
        metrics.ece(metrics.Sample.of(label[order], logit[order])), abs=1e-12)


def test_calibrated_probabilities_have_a_small_ece_and_overconfident_ones_a_large_one():
    rng = np.random.default_rng(0)
    logit = 2 * rng.standard_normal(20000)
    label = (rng.random(20000) < 1 / (1 + np.exp(-logit))).astype(int)
    assert metrics.evaluate(label, logit, metrics=["ece"])["ece"] < 0.015
    assert metrics.evaluate(label, 4 * logit, metrics=["ece"])["ece"] > 0.05
    assert metrics.evaluate(label, 4 * logit, temperature=4.0, metrics=["ece"])["ece"] < 0.015


def test_a_missing_class_gives_nan_and_no_warning(recwarn):
    for label in ([1, 1], [0, 0]):
        values = metrics.evaluate(label, [0.5, 1.5])
        assert np.isnan([values[name] for name in ("auroc", "tpr_at_fpr_0.05", "balanced_accuracy")]).all()
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


def test_an_unknown_metric_names_the_known_ones():
    with pytest.raises(UserError, match="auroc"):
        metrics.metric("auc")
