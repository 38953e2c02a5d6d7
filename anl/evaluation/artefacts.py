"""Differences between generated and real images that need no detector: spectra and simple image statistics.

For differences in file formats see `anl.data.audit.format_probe`.
"""

import itertools

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from anl.data import REAL
from anl.evaluation import bootstrap
from anl.evaluation.compare import COLUMNS
from anl.evaluation.metrics import Sample, auroc

RINGS = 16
CELL = 8
FOLDS = 5


def power(pixels):
    """Power spectrum of the grey values of square uint8 (N, H, H, 3) images, float64 (N, H, H), zero frequency first."""
    grey = pixels.astype(np.float64).mean(-1)
    return np.abs(np.fft.fft2(grey - grey.mean((1, 2), keepdims=True))) ** 2


def radial_spectrum(pixels):
    """Log power in rings of equal width up to the Nyquist frequency, of uint8 (N, H, H, 3) images.

    There are RINGS rings, or half the side where that is fewer, so that none is empty.

    Returns
    -------
    frequency : array, (rings,)
        Centre of each ring, in cycles per pixel.
    log_power : array, (N, rings)
        Natural logarithm of the mean power plus 1.
    """
    energy, radius = power(pixels), _radius(pixels.shape[1])
    edges = np.linspace(0, 0.5, min(RINGS, pixels.shape[1] // 2) + 1)
    log_power = [np.log(energy[:, (radius >= low) & (radius < high)].mean(1) + 1) for low, high in itertools.pairwise(edges)]
    return (edges[1:] + edges[:-1]) / 2, np.stack(log_power, 1)


def image_statistics(pixels):
    """Simple statistics of uint8 (N, H, H, 3) images, dict name -> (N, F).

    mean_colour (3), contrast (standard deviation of grey), high_frequency (log power above half the Nyquist frequency),
    spectrum (`radial_spectrum`), `sharpness`.
    """
    high = power(pixels)[:, _radius(pixels.shape[1]) >= 0.25].mean(1)
    return {"mean_colour": pixels.reshape(len(pixels), -1, 3).mean(1),
            "contrast": pixels.astype(np.float64).mean(-1).std((1, 2))[:, None],
            "high_frequency": np.log(high + 1)[:, None], "spectrum": radial_spectrum(pixels)[1],
            "sharpness": sharpness(pixels)[:, None]}


def sharpness(pixels):
    """High-frequency energy over local contrast of uint8 (N, H, W, 3) images, float64 (N,).

    Mean over cells of CELL x CELL pixels of log(mean squared high-pass residual + 1) - log(variance + 1), of grey values.
    """
    grey = pixels.astype(np.float64).mean(-1)
    around = np.pad(grey, ((0, 0), (1, 1), (1, 1)), mode="reflect")
    rows = (around[:, :-2] + 2 * around[:, 1:-1] + around[:, 2:]) / 4
    residual = grey - (rows[..., :-2] + 2 * rows[..., 1:-1] + rows[..., 2:]) / 4
    n, height, width = (side // CELL * CELL if axis else side for axis, side in enumerate(grey.shape))
    cells, fine = (values[:, :height, :width].reshape(n, height // CELL, CELL, width // CELL, CELL) for values in (grey, residual))
    return (np.log(np.square(fine).mean((2, 4)) + 1) - np.log(cells.var((2, 4)) + 1)).mean((1, 2))


def statistic_scores(rows, statistics):
    """Scores of logistic regressions on simple statistics, each used as a detector and trained on the rows of split `train`.

    Parameters
    ----------
    rows : DataFrame
        Manifest rows of all splits: reals and seen generators for training and validation, all generators for the test.
    statistics : dict of str to array, (N, F)
        Such as `image_statistics`, in the order of the rows.

    Returns
    -------
    DataFrame
        Per-image scores in view `raw`, a variant per statistic, seed 0: `anl.evaluation.compare.COLUMNS`.
    """
    train = (rows["split"] == "train").to_numpy()
    tables = []
    for name, values in statistics.items():
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(values[train], rows["label"][train])
        tables.append(rows[~train].assign(variant=name, seed=0, view="raw", logit=model.decision_function(values[~train])))
    return pd.concat(tables, ignore_index=True)[COLUMNS]


def spectrum_table(rows, pixels, *, seed, replicates):
    """Difference of the log spectra of generated and real images, a row per generator and ring.

    Parameters
    ----------
    rows : DataFrame
        Manifest rows of test images.
    pixels : array, uint8 (N, H, H, 3)
        In the order of the rows.

    Returns
    -------
    DataFrame
        generator, frequency (cycles per pixel), mean (of log power, generated minus real), low, high (95 % interval over
        photographs), n (photographs).
    """
    frequency, values = radial_spectrum(pixels)
    draws = bootstrap.draw_groups(rows["group"], replicates, seed, rows["generator"])
    group, real, table = rows["group"].to_numpy(str), (rows["generator"] == REAL).to_numpy(), []
    for generator in dict.fromkeys(rows["generator"][~real]):
        mine = (rows["generator"] == generator).to_numpy()
        # (rings,) of the sample and (rings, R) of the replicates
        drawn = draws.mean(values[mine], group[mine]) - draws.mean(values[real], group[real])
        groups, strata = draws.size(group[mine | real])
        found = bootstrap.interval((values[mine].mean(0) - values[real].mean(0))[:, None], drawn[:, None], groups, strata=strata)
        table.append(pd.DataFrame({"generator": generator, "frequency": frequency, "mean": found.mean, "low": found.low,
                                   "high": found.high, "n": groups}))
    return pd.concat(table, ignore_index=True)


def statistics_table(rows, pixels, *, seed, replicates):
    """AUROC of a logistic regression on each simple statistic, a row per generator and statistic.

    The regression is fitted on test images of the same generator, with cross-validation over photographs. Its AUROC is
    therefore an upper bound for a detector that uses this statistic. Parameters as of `spectrum_table`.

    Returns
    -------
    DataFrame
        generator, statistic, mean, low, high (95 % interval over photographs), n (photographs). Generators with fewer than
        two photographs of each class are left out.
    """
    statistics, table = image_statistics(pixels), []
    generator, label, group = (rows[name].to_numpy() for name in ("generator", "label", "group"))
    for name in dict.fromkeys(generator[label == 1]):
        mine = np.isin(generator, [REAL, name])
        folds = min(FOLDS, *(len(np.unique(group[mine & (label == kind)])) for kind in (0, 1)))
        if folds < 2:
            continue
        draws = bootstrap.draw_groups(group[mine], replicates, seed, generator[mine])
        place, strata = draws.place(group[mine]), len(np.unique(draws.stratum))
        split = list(StratifiedGroupKFold(folds, shuffle=True, random_state=seed % 2**32).split(place, label[mine], place))
        for statistic, values in statistics.items():
            model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
            logit = cross_val_predict(model, values[mine], label[mine], cv=split, method="decision_function")
            sample = Sample.of(label[mine], logit, group=place)
            found = bootstrap.interval([auroc(sample)], auroc(sample, draws.counts)[None], len(draws.names), strata=strata)
            table.append({"generator": name, "statistic": statistic, "mean": float(found.mean),
                          "low": max(0.0, float(found.low)), "high": min(1.0, float(found.high)), "n": len(draws.names)})
    return pd.DataFrame(table)


def _radius(side):
    """Distance of each Fourier coefficient from zero frequency, cycles per pixel, (side, side)."""
    frequency = np.fft.fftfreq(side)
    return np.hypot(*np.meshgrid(frequency, frequency))
