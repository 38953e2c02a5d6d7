import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from anl import bootstrap


def test_weighted_average_precision_equals_scikit_learn_with_ties():
    rng = np.random.default_rng(0)
    label = rng.integers(0, 2, 300)
    score = np.round(rng.normal(size=300) + label, 1)
    weights = bootstrap.cluster_weights(rng.integers(0, 30, 300), 25, seed=1)
    found = bootstrap.weighted_average_precision(label, score, weights)
    expected = [average_precision_score(label, score, sample_weight=w) for w in weights]
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_clusters_are_drawn_whole_and_the_same_for_every_generator():
    clusters = np.array(["a", "a", "b", "c", "c", "c"])
    weights = bootstrap.cluster_weights(clusters, 50, seed=3)
    assert (weights[0] == 1).all()
    assert (weights[:, 0] == weights[:, 1]).all() and (weights[:, 3] == weights[:, 5]).all()
    assert (weights[1:, [0, 2, 3]].sum(1) == 3).all()  # three photographs drawn, three drawn again
    again = bootstrap.cluster_weights(np.array(["c", "b", "a"]), 50, seed=3)
    assert (again[:, 0] == weights[:, 3]).all() and (again[:, 2] == weights[:, 0]).all()


def test_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(5)
    hits = 0
    for trial in range(120):
        effect = rng.normal(0, 1, 40)                      # 40 photographs, 5 patches each, correlated within
        values = np.repeat(effect, 5) + rng.normal(0, 0.1, 200)
        weights = bootstrap.cluster_weights(np.repeat(np.arange(40), 5), 200, seed=trial)
        low, high = bootstrap.interval(bootstrap.weighted_rate(values, weights))
        hits += low <= 0 <= high
    assert 0.85 <= hits / 120 <= 1.0  # a bootstrap that ignored clusters would cover about six in ten


def test_weighted_rate():
    weights = np.array([[1.0, 1.0], [3.0, 1.0]])
    assert bootstrap.weighted_rate([1, 0], weights).tolist() == pytest.approx([0.5, 0.75])
