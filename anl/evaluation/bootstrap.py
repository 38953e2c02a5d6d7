"""Confidence intervals over photographs (cluster bootstrap) and training seeds (Student's t), combined.

A metric is measured for n seeds on the same test photographs. This is the crossed design of multi-reader, multi-case
studies in radiology, with seeds for readers and photographs for cases. With independent effects of the photographs (c),
of the seed (a) and of their interaction (d),

    metric of seed s = mu + c + a_s + d_s,        Var(mean over seeds) = Var(c) + (Var(a) + Var(d)) / n.

The sample variance S^2 over seeds estimates Var(a) + Var(d). The bootstrap over photographs, same draw for every seed,
gives a covariance matrix between seeds: off the diagonal Var(c), on it Var(c) + Var(d). Adding the bootstrap variance of
the seed average, Var(c) + Var(d) / n, to S^2 / n would count Var(d) / n twice. The estimate is therefore

    V = max(C, 0) + max(S^2, D) / n,

with C the mean covariance between seeds and D the mean variance minus C. (S^2 is at least D in expectation; the maximum
keeps V from falling below the photographs' own share when a few seeds agree by chance.) The half-width is sqrt(V) times
a quantile between those of the two parts, weighted by their variances (Cochran and Cox):

    t = (C t(G - 1) + (V - C) t(f)) / V,     f = n - 1 where S^2 is larger, (n - 1)(G - 1) where D is,

G being the number of photographs. Where the seeds dominate, this is Student's t with n - 1 degrees of freedom. With one
quantile of Satterthwaite's degrees of freedom in place of t, nominal 95 % intervals of 3 seeds cover as little as 92 %;
with this one 93 to 97.6 % (tests/evaluation/test_bootstrap.py). With one seed V is the bootstrap variance, with
G - 1 degrees of freedom, and the interval says nothing about other seeds.

References
----------
Obuchowski and Rockette, Communications in Statistics - Simulation and Computation 24(2), 1995: the model.
Hillis, Statistics in Medicine 26(3), 2007: the variance, with Satterthwaite's degrees of freedom.
Cochran and Cox, Experimental Designs, 2nd edition, 1957, section 4.14: the quantile.
Field and Welsh, Journal of the Royal Statistical Society B 69(3), 2007: the cluster bootstrap.
"""

from typing import NamedTuple

import numpy as np
from scipy import stats

from anl import seeds as streams

SMALL_STRATUM = 20


class Draws(NamedTuple):
    """Bootstrap draws of groups: names (G,), sorted; counts (G, R), float32: how often each was drawn; stratum (G,) int."""

    names: np.ndarray
    counts: np.ndarray
    stratum: np.ndarray

    def place(self, group):
        """Row of `counts` of each image, from the names of their groups."""
        return np.searchsorted(self.names, np.asarray(group, str))

    def size(self, group):
        """(number of groups, number of strata) among the images whose groups are given."""
        place = np.unique(self.place(group))
        return len(place), len(np.unique(self.stratum[place]))

    def mean(self, values, group):
        """Mean of per-image values, (N,) or (N, F), in each replicate: (R,) or (F, R)."""
        place, values = self.place(group), np.asarray(values)
        sums = [np.bincount(place, column, len(self.names)) for column in values.reshape(len(values), -1).T]
        means = np.array(sums) @ self.counts / (np.bincount(place, minlength=len(self.names)) @ self.counts)
        return means.reshape(*values.shape[1:], -1)


class Interval(NamedTuple):
    """A mean over seeds with its confidence interval: numbers, or arrays of one shape.

    over_photographs and over_seeds are the two parts of its variance, with their degrees of freedom.
    """

    mean: np.ndarray
    over_photographs: np.ndarray
    over_seeds: np.ndarray
    photographs_freedom: np.ndarray
    seeds_freedom: np.ndarray
    level: float = 0.95

    @property
    def low(self):
        return self.mean - self._half_width((1 - self.level) / 2)

    @property
    def high(self):
        return self.mean + self._half_width((1 - self.level) / 2)

    @property
    def p_value(self):
        """Two-sided p-value of the hypothesis that the mean is 0: 1 - the level at which the interval reaches 0."""
        low, high = np.full(np.shape(self.mean), -300.0), np.zeros(np.shape(self.mean))  # log10 of p
        for _ in range(60):
            middle = (low + high) / 2
            covers = self._half_width(10**middle / 2) > np.abs(self.mean)
            low, high = np.where(covers, middle, low), np.where(covers, high, middle)
        known = np.isfinite(self.mean + self._half_width(0.25))
        return np.where(known, np.where(self.mean == 0, 1.0, 10**high), np.nan)

    def _half_width(self, tail):
        """Half-width of an interval that leaves `tail` on each side."""
        by_photographs, by_seeds = stats.t.isf(tail, self.photographs_freedom), stats.t.isf(tail, self.seeds_freedom)
        error = np.sqrt(self.over_photographs + self.over_seeds)
        with np.errstate(invalid="ignore", divide="ignore"):
            width = (self.over_photographs * by_photographs + self.over_seeds * by_seeds) / error
        return np.where(error > 0, width, error)


def stack(intervals):
    """Several intervals as one `Interval` of arrays, whose ends and p-values are computed at once."""
    return Interval(*map(np.array, zip(*intervals)))


def draw_groups(group, replicates, seed, kind=None, stream=()):
    """Draw whole groups with replacement.

    The draw depends only on the seed, the stream and the sorted names, so two tables of the same photographs get the same draw.

    Parameters
    ----------
    group : array of str, (N,)
        Group of each image: the photograph that it shows, or the name of the image.
    replicates : int
        Number R of draws.
    seed : int
    kind : array of str, (N,), optional
        Kind of each image, for example its generator. Groups with the same set of kinds form a stratum and are resampled
        within it, so that in an unpaired benchmark the size of each class stays fixed. Strata with fewer than 20 groups
        are merged into the largest one.
    stream : tuple of str
        Further names of the random stream. Draws of different photographs are independent only if their streams differ.

    Returns
    -------
    Draws
    """
    names, member = np.unique(np.asarray(group, str), return_inverse=True)
    stratum = np.zeros(len(names), int) if kind is None else _strata(member, np.asarray(kind, str), len(names))
    rng = streams.generator(seed, "bootstrap", *stream)
    counts = np.empty((len(names), replicates), np.float32)
    for value in np.unique(stratum):
        inside = np.flatnonzero(stratum == value)
        counts[inside] = rng.multinomial(len(inside), np.full(len(inside), 1 / len(inside)), size=replicates).T
    return Draws(names, counts, stratum)


def _strata(member, kind, groups):
    """Stratum of each group, int (G,): groups with the same set of kinds; small strata join the largest."""
    kinds, index = np.unique(kind, return_inverse=True)
    present = np.zeros((groups, len(kinds)), bool)
    present[member, index] = True
    _, stratum, size = np.unique(present, axis=0, return_inverse=True, return_counts=True)
    return np.where(size[stratum] < SMALL_STRATUM, size.argmax(), stratum)


def interval(values, replicates, groups, *, strata=1, level=0.95):
    """Mean over seeds with an interval for new seeds and new photographs.

    Parameters
    ----------
    values : array, (..., n)
        The metric, or a paired difference of two, for each of n seeds.
    replicates : array, (..., n, R)
        The same in each bootstrap replicate; all seeds share the draws of photographs. A replicate with NaN is left out.
    groups, strata : int
        Number of groups drawn, and of strata among them.
    level : float
        Nominal coverage.

    Returns
    -------
    Interval
        Arrays of shape (...). The module's docstring has the formula.
    """
    values, replicates = np.asarray(values, float), np.asarray(replicates, float)
    if replicates.ndim == 2:
        replicates = replicates[:, np.isfinite(replicates).all(0)]
    if replicates.shape[-1] == 0:
        replicates = np.full((*replicates.shape[:-1], 1), np.nan)
    n, mean = values.shape[-1], values.mean(-1)
    photographs = max(groups - strata, 1)
    centred = replicates - replicates.mean(-1, keepdims=True)
    # the bootstrap of G groups has (G - 1) / G of the variance
    scale = groups / photographs / max(replicates.shape[-1] - 1, 1)
    average = scale * np.square(centred.mean(-2)).sum(-1)      # variance of the mean over seeds
    single = scale * np.square(centred).sum(-1).mean(-1)       # mean variance of one seed
    if n == 1:
        shared, over_seeds, freedom = average, np.zeros(mean.shape), np.ones(mean.shape)
    else:
        shared = np.maximum((n * average - single) / (n - 1), 0)   # C
        interaction, sample = single - shared, values.var(-1, ddof=1)   # D, S^2
        over_seeds = np.maximum(sample, interaction) / n
        freedom = np.where(sample >= interaction, n - 1, (n - 1) * photographs)
    return Interval(mean, shared, over_seeds, photographs, freedom, level)
