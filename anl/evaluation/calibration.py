"""Threshold and temperature from validation scores of the seen generator, and reliability diagrams."""

from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.optimize import minimize_scalar
from scipy.special import expit

from anl.data import REAL
from anl.evaluation import bootstrap
from anl.evaluation.metrics import ECE_BINS, Sample, check, equal_mass_bins, nll
from anl.io import UserError


class Calibration(NamedTuple):
    """threshold: logit above which an image is called generated; temperature: divisor of the logits."""

    threshold: float
    temperature: float


def calibrate(label, logit, target_fpr):
    """Fix a detector's threshold and temperature on validation images.

    Parameters
    ----------
    label : array, (N,)
        1 for generated, 0 for real.
    logit : array, (N,)
    target_fpr : float
        False-positive rate that the threshold may reach on the validation reals, in (0, 1).

    Returns
    -------
    Calibration
        The smallest threshold among the reals' scores with a false-positive rate of at most `target_fpr`, and the
        temperature of least negative log-likelihood, between exp(-4) and exp(4).

    Raises
    ------
    UserError
        If a class is missing or a score is not finite.

    References
    ----------
    Guo et al., On calibration of modern neural networks, ICML 2017.
    """
    label, logit = np.asarray(label), np.asarray(logit, float)
    check(label, logit)
    if len(np.unique(label)) < 2:
        raise UserError("validation scores lack real or generated images; score validation images of both classes")
    sample = Sample.of(label, logit)
    threshold = float(thresholds(sample.real, target_fpr, np.ones((sample.groups, 1)))[0])

    def loss(log_temperature):
        sample.temperature = np.exp(log_temperature)
        return nll(sample)

    best = minimize_scalar(loss, bounds=(-4, 4), method="bounded")
    return Calibration(threshold, float(np.exp(best.x)))


def thresholds(real, target_fpr, counts):
    """The smallest of the scores of real images with a false-positive rate of at most `target_fpr`, in each replicate, (R,).

    real: `anl.evaluation.metrics.Scores`. counts: array (groups, R), the weight of each group in each replicate.
    """
    allowed = target_fpr * real.total(counts) + 1e-9
    return real.logit[np.minimum((real.cumulative(counts)[1:] <= allowed).sum(0), len(real) - 1)]


def calibrate_run(scores, seen, target_fpr):
    """Apply `calibrate` to the validation scores of one run: real images and those of seen generators, in view `raw`.

    Raises UserError as `calibrate`.
    """
    chosen = validation_rows(scores, [REAL, *as_list(seen)])
    return calibrate(chosen["label"], chosen["logit"], target_fpr)


def validation_rows(scores, generators):
    """The rows that a run is calibrated on: validation images of these generators in view `raw`."""
    return scores[(scores["split"] == "val") & (scores["view"] == "raw") & scores["generator"].isin(generators)]


def as_list(seen):
    """The seen generators as a list; a single name may be given as a string."""
    return [seen] if isinstance(seen, str) else list(seen)


def reliability_table(scores, *, seen, unseen=None, view, replicates=1000, seed=0, bins=ECE_BINS):
    """Reliability diagrams of every variant, before and after temperature scaling.

    Parameters
    ----------
    scores : DataFrame
        Scores table with validation and test rows.
    seen : str or list of str
        Generators in training.
    unseen : list of str, optional
        Generators that are pooled as `unseen`, for example those that share no model with a seen one. Default: all others.
    view : str
        View of the test images.

    Returns
    -------
    DataFrame
        A row per variant, `generators` (`seen`, `unseen`), `temperature` (`before`, `after`) and bin: probability (mean
        in the bin), share (of generated images) with its 95 % interval low, high over photographs, seeds, n.
        Seeds are pooled, each with its own temperature. The reals are repeated for each generator, so that the classes
        have the same balance as in a comparison with one generator.
    """
    test = scores[(scores["split"] == "test") & (scores["view"] == view)]
    tables = []
    for variant, rows in test.groupby("variant", sort=False):
        logits = []
        for run, part in rows.groupby("seed", sort=False):
            own = scores[(scores["variant"] == variant) & (scores["seed"] == run)]
            temperature = calibrate_run(own, seen, target_fpr=0.05).temperature
            logits.append(part.assign(before=part["logit"], after=part["logit"] / temperature))
        rows = pd.concat(logits)
        generators = [name for name in rows["generator"].unique() if name != REAL]
        sets = {"seen": [name for name in generators if name in as_list(seen)],
                "unseen": [name for name in generators if name not in as_list(seen) and (unseen is None or name in unseen)]}
        for where, names in sets.items():
            if not names:
                continue
            pooled = pd.concat([rows[rows["generator"].isin([REAL, name])] for name in names])
            draws = bootstrap.draw_groups(pooled["group"], replicates, seed, pooled["generator"])
            group = draws.place(pooled["group"])
            for when in ("before", "after"):
                table = _bins(pooled["label"].to_numpy(), expit(pooled[when].to_numpy()), group, draws.counts, bins)
                tables.append(table.assign(variant=variant, generators=where, temperature=when,
                                           seeds=rows["seed"].nunique()))
    columns = ["variant", "generators", "temperature", "probability", "share", "low", "high", "seeds", "n"]
    return pd.concat(tables, ignore_index=True)[columns]


def _bins(label, probability, group, counts, bins):
    """Bins of equal mass with percentile intervals: shares can be near 0 or 1, where symmetric intervals fail."""
    place = equal_mass_bins(probability, bins)
    grouped = pd.DataFrame({"probability": probability, "share": label.astype(float)}).groupby(place)
    table = grouped.mean().assign(n=grouped.size()).reset_index(drop=True)
    generated, images = (np.zeros((len(table), len(counts))) for _ in range(2))
    np.add.at(generated, (place, group), label)
    np.add.at(images, (place, group), 1)
    with np.errstate(invalid="ignore"):
        low, high = np.nanquantile((generated @ counts) / (images @ counts), [0.025, 0.975], axis=1)
    return table.assign(low=low, high=high)
