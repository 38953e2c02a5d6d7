"""Cluster bootstrap by photograph: whole photographs are drawn, with all their real and regenerated patches.

Reals shared between generators are drawn once per replicate, and methods compared on the same draw, so differences are
paired. A replicate is a row of weights: how often each image's photograph was drawn.
"""

import numpy as np

from anl import seeds


def cluster_weights(clusters, replicates, seed):
    """float64 (replicates + 1, N): row 0 is the sample itself (all ones), the others are bootstrap draws of clusters.

    clusters: (N,) names, one per image. Draws depend on the seed and the sorted cluster names only, so two tables of the
    same photographs get the same draw.
    """
    names, member = np.unique(np.asarray(clusters, str), return_inverse=True)
    rng = seeds.generator(seed, "bootstrap")
    counts = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=replicates)
    return np.concatenate([np.ones((1, len(names))), counts])[:, member].astype(float)


def seed_weights(count, replicates, seed):
    """float64 (replicates + 1, count): how often each training seed was drawn; row 0 all ones."""
    rng = seeds.generator(seed, "bootstrap", "seeds")
    return np.concatenate([np.ones((1, count)), rng.multinomial(count, np.full(count, 1 / count), size=replicates)])


def weighted_average_precision(label, score, weights):
    """AP for every row of `weights` (R, N) at once; equals scikit-learn's with sample_weight. Returns (R,).

    NaN where a replicate drew no generated image.
    """
    order = np.argsort(-np.asarray(score), kind="stable")
    label, score, weights = np.asarray(label)[order], np.asarray(score)[order], weights[:, order]
    last = np.append(np.diff(score) != 0, True)  # the end of each run of tied scores
    hits = np.cumsum(weights * label, axis=1)[:, last]
    called = np.cumsum(weights, axis=1)[:, last]
    gained = np.diff(hits, axis=1, prepend=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        precision = np.where(called > 0, hits / called, 0)
        return (precision * gained).sum(1) / hits[:, -1]


def weighted_rate(hit, weights):
    """Share of hits (N,) for every row of weights (R, N). Returns (R,)."""
    with np.errstate(invalid="ignore"):
        return weights @ np.asarray(hit, float) / weights.sum(1)


def interval(replicates, level=0.95):
    """(low, high): the percentile interval of bootstrap replicates (row 0 left out), NaN replicates ignored."""
    tail = (1 - level) / 2
    low, high = np.nanquantile(np.asarray(replicates)[1:], [tail, 1 - tail])
    return float(low), float(high)
