"""The metrics of a detector, each defined once: on a test set, and on all its bootstrap replicates at the same time.

A metric takes a `Sample`, the scores of one test set, and optionally `counts`, how often each group of images was drawn
in each replicate. Scores are logits; a higher one means "generated".
"""

import functools

import numpy as np
from scipy.special import expit

from anl.io import UserError

ECE_BINS = 15


class Scores:
    """Scores of the images of one class, sorted from the highest to the lowest.

    Parameters
    ----------
    logit : array, (n,)
    group : array of int, (n,)
        Row of `counts` that holds the weight of each image.
    """

    def __init__(self, logit, group):
        order = np.argsort(-np.asarray(logit, float), kind="stable")
        self.logit, self.group = np.asarray(logit, float)[order], np.asarray(group)[order]
        self._cumulative = (None, None)

    def __len__(self):
        return len(self.logit)

    def cumulative(self, counts):
        """Weight of the k highest scores in each replicate, (n + 1, R). The last result is cached: generators share reals."""
        if self._cumulative[0] is not counts:
            sums = np.zeros((len(self) + 1, counts.shape[1]), counts.dtype)
            for place, group in enumerate(self.group):  # faster than np.cumsum and than a matrix product
                np.add(sums[place], counts[group], out=sums[place + 1])
            self._cumulative = (counts, sums)
        return self._cumulative[1]

    def weighted_sum(self, values, counts):
        """Sum over images of weight times `values` (n,), in each replicate: (R,)."""
        return np.bincount(self.group, values, minlength=len(counts)).astype(counts.dtype) @ counts

    def weighted_mean(self, values, counts):
        """Mean of `values` (n,) under the weights, (R,); NaN where nothing was drawn."""
        return self.weighted_sum(values, counts) / self.total(counts)

    def share_above(self, threshold, counts):
        """Share of the images above a threshold, one number or one per replicate, (R,); NaN where nothing was drawn."""
        above = np.searchsorted(-self.logit, -np.broadcast_to(threshold, counts.shape[1]), side="left")
        return self.cumulative(counts)[above, np.arange(counts.shape[1])] / self.total(counts)

    def total(self, counts):
        """Sum of the weights of all images in each replicate, (R,)."""
        return self.weighted_sum(np.ones(len(self)), counts)


class Sample:
    """Scores of one test set, with the other inputs of the metrics.

    Parameters
    ----------
    real, fake : Scores
        Scores of the real and the generated images.
    wins : Scores or None
        For paired images, one entry per generated image: `logit` is 1 if it scored above the real image of its pair, 0 if
        below, 1/2 for a tie; see `paired_wins`.
    threshold : float or array, (R,)
        Logit above which an image is called generated, in each replicate if there are several.
    temperature : float
        Divisor of the logits before they become probabilities.
    groups : int
        Number of rows of `counts`.
    """

    def __init__(self, real, fake, *, groups, wins=None, threshold=0.0, temperature=1.0):
        self.real, self.fake, self.wins, self.groups = real, fake, wins, groups
        self.threshold, self.temperature = threshold, temperature
        self._curve = (None, None)

    @classmethod
    def of(cls, label, logit, *, group=None, pair=None, threshold=0.0, temperature=1.0):
        """The sample of a mixed list of images.

        Parameters
        ----------
        label, logit : array, (N,)
            1 for generated, 0 for real; and the scores.
        group : array of int, (N,), optional
            Row of `counts` of each image. By default every image is a separate group.
        pair : array of str, (N,), optional
            Name shared by a real image and its regenerations; "" where unpaired.

        Raises
        ------
        UserError
            If a score is not finite or a label is not 0 or 1.
        """
        label, logit = np.asarray(label), np.asarray(logit, float)
        group = np.arange(len(label)) if group is None else np.asarray(group)
        check(label, logit)
        real, fake = label == 0, label == 1
        if pair is not None:  # names as integers, -1 where unpaired
            pair = np.where(np.asarray(pair) == "", -1, np.unique(pair, return_inverse=True)[1])
        wins = None if pair is None else paired_wins(label, logit, group, pair)
        return cls(Scores(logit[real], group[real]), Scores(logit[fake], group[fake]), wins=wins, threshold=threshold,
                   temperature=temperature, groups=int(group.max(initial=-1)) + 1)

    def curve(self, counts):
        """Weights at every distinct score of a generated image, from the highest: four arrays (U, R).

        Generated images at this score; generated images at or above it; real images at or above it; real images above it.
        """
        if self._curve[0] is not counts:
            fake, real = self.fake, self.real
            scores, first = np.unique(-fake.logit, return_index=True)
            positive = fake.cumulative(counts)[np.append(first[1:], len(fake))]
            gain = positive - fake.cumulative(counts)[first]
            at_or_above, above = (real.cumulative(counts)[np.searchsorted(-real.logit, scores, side)] for side in ("right", "left"))
            self._curve = (counts, (gain, positive, at_or_above, above))
        return self._curve[1]

    def probability(self, scores):
        """Calibrated probability of being generated, in [0, 1]."""
        return expit(scores.logit / self.temperature)


def check(label, logit):
    """Raise UserError if a score is not finite or a label is neither 0 nor 1."""
    if len(label) != len(logit) or not np.isin(label, (0, 1)).all():
        raise UserError("labels must be 0 (real) or 1 (generated), one for each score")
    if not np.isfinite(logit).all():
        raise UserError(f"{int((~np.isfinite(logit)).sum())} scores are not finite; train the run again")


def paired_wins(label, logit, group, pair):
    """Wins of generated images over the real image of their pair, as `Scores` of 1, 1/2 or 0; None where none is paired.

    pair: names as integers (N,), -1 where unpaired. A pair with several real images counts the mean over them.
    """
    fake, real = (np.flatnonzero((label == side) & (pair >= 0)) for side in (1, 0))
    real = real[np.argsort(pair[real], kind="stable")]
    first, last = (np.searchsorted(pair[real], pair[fake], side) for side in ("left", "right"))
    fake, first, size = fake[last > first], first[last > first], (last - first)[last > first]
    if not len(fake):
        return None
    which = np.repeat(np.arange(len(fake)), size)  # one entry per (generated, real) of a pair
    partner = real[np.arange(size.sum()) - np.repeat(np.cumsum(size) - size, size) + first[which]]
    won = (np.sign(logit[fake[which]] - logit[partner]) + 1) / 2
    return Scores(np.bincount(which, won) / size, group[fake])


def _metric(function):
    """Make `counts` optional: without it every image counts once, and the metric is a float."""
    @functools.wraps(function)
    def measured(sample, counts=None, **options):
        with np.errstate(invalid="ignore", divide="ignore"):
            if counts is None:
                return float(function(sample, np.ones((sample.groups, 1)), **options)[0])
            return function(sample, counts, **options)
    return measured


@_metric
def auroc(sample, counts):
    """Area under the ROC curve: the share of (generated, real) pairs of images in which the generated one scores higher.

    Ties count one half. Equals `sklearn.metrics.roc_auc_score` with `sample_weight`.

    Parameters
    ----------
    sample : Sample
    counts : array, (groups, R), optional
        Weight of each group in each of R replicates. By default every image counts once.

    Returns
    -------
    float or array, (R,)
        In [0, 1]; NaN where a class is missing.
    """
    gain, _, at_or_above, above = sample.curve(counts)
    lost = (np.einsum("ur,ur->r", gain, at_or_above) + np.einsum("ur,ur->r", gain, above)) / 2
    return 1 - lost / (sample.fake.total(counts) * sample.real.total(counts))


@_metric
def pairwise_accuracy(sample, counts):
    """Share of generated images that score above the real image of their pair. Ties count one half; NaN without pairs."""
    return np.full(counts.shape[1], np.nan) if sample.wins is None else sample.wins.weighted_mean(sample.wins.logit, counts)


@_metric
def average_precision(sample, counts):
    """Sum over recall steps of precision; equals `sklearn.metrics.average_precision_score` with `sample_weight`.

    Depends on the share of generated images in the sample.
    """
    gain, positive, negative, _ = sample.curve(counts)
    precision = np.maximum(positive + negative, np.finfo(positive.dtype).tiny)  # where nothing is drawn, the gain is 0
    np.divide(positive, precision, out=precision)
    return np.einsum("ur,ur->r", gain, precision) / sample.fake.total(counts)


@_metric
def tpr(sample, counts):
    """True-positive rate at the threshold: the share of generated images that are called generated."""
    return sample.fake.share_above(sample.threshold, counts)


@_metric
def fpr(sample, counts):
    """False-positive rate at the threshold: the share of real images that are called generated."""
    return sample.real.share_above(sample.threshold, counts)


@_metric
def balanced_accuracy(sample, counts):
    """Mean of the accuracies on real and on generated images at the threshold."""
    return (tpr(sample, counts) + 1 - fpr(sample, counts)) / 2


@_metric
def nll(sample, counts):
    """Negative log-likelihood of the labels after temperature scaling: a mean over images, in nats."""
    return _mean_of_both(sample, np.logaddexp(0, sample.real.logit / sample.temperature),
                         np.logaddexp(0, -sample.fake.logit / sample.temperature), counts)


@_metric
def brier(sample, counts):
    """Brier score: mean squared difference between the calibrated probability and the label, in [0, 1]."""
    return _mean_of_both(sample, sample.probability(sample.real) ** 2, (1 - sample.probability(sample.fake)) ** 2, counts)


@_metric
def ece(sample, counts, *, bins=ECE_BINS):
    """Expected calibration error over bins of equal mass, in [0, 1].

    The mean over bins, weighted by their mass, of the distance between the share of generated images and the mean
    probability. The edges are quantiles of the sample and the same in every replicate.

    References
    ----------
    Naeini, Cooper and Hauskrecht, AAAI 2015; equal mass: Nguyen and O'Connor, EMNLP 2015.
    """
    real, fake = sample.probability(sample.real), sample.probability(sample.fake)
    place = equal_mass_bins(np.concatenate([real, fake]), bins)
    gap = np.zeros((place.max(initial=-1) + 1, len(counts)))
    np.add.at(gap, (place[:len(real)], sample.real.group), -real)
    np.add.at(gap, (place[len(real):], sample.fake.group), 1 - fake)
    return np.abs(gap @ counts).sum(0) / (sample.real.total(counts) + sample.fake.total(counts))


def equal_mass_bins(probability, bins=ECE_BINS):
    """Bin of each probability, int (N,). Equal values share a bin, so there may be fewer than `bins`."""
    if not len(probability):
        return np.zeros(0, int)
    edges = np.quantile(probability, np.linspace(0, 1, bins + 1)[1:-1])
    return np.unique(np.searchsorted(edges, probability, side="left"), return_inverse=True)[1]


METRICS = {"auroc": auroc, "pairwise_accuracy": pairwise_accuracy, "average_precision": average_precision,
           "balanced_accuracy": balanced_accuracy, "tpr": tpr, "fpr": fpr, "nll": nll, "brier": brier, "ece": ece}
THRESHOLDED = {"balanced_accuracy", "tpr", "fpr"}
CALIBRATED = THRESHOLDED | {"nll", "brier", "ece"}  # need the validation threshold or temperature


def metric(name):
    """The metric called `name`, a function of (sample, counts). Raises UserError on an unknown name."""
    if name not in METRICS:
        raise UserError(f"unknown metric '{name}'; choose from {', '.join(METRICS)}")
    return METRICS[name]


def evaluate(label, logit, *, pair=None, threshold=0.0, temperature=1.0, metrics=tuple(METRICS)):
    """Metrics of one test set, dict name -> float. Parameters as of `Sample.of`."""
    sample = Sample.of(label, logit, pair=pair, threshold=threshold, temperature=temperature)
    return {name: metric(name)(sample) for name in metrics}


def _mean_of_both(sample, real, fake, counts):
    """Mean over all images of the values `real` (n,) and `fake` (m,), (R,)."""
    total = sample.real.weighted_sum(real, counts) + sample.fake.weighted_sum(fake, counts)
    return total / (sample.real.total(counts) + sample.fake.total(counts))
