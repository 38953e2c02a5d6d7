"""How far a probability can be taken at its word: bins of equal mass, their error, the reliability diagram.

Temperature and threshold themselves are anl.metrics.calibrate's, from validation images of the seen generator.
"""

import numpy as np
import pandas as pd

BINS = 15  # of equal mass, as many as the bins of equal width in anl.metrics


def equal_mass_bins(probability, bins=BINS):
    """(N,) of int: the bin of each probability, the edges being quantiles of the sample. Equal values share a bin, so that
    the order of the images means nothing; bins may then be fewer."""
    edges = np.quantile(probability, np.linspace(0, 1, bins + 1)[1:-1])
    return np.unique(np.searchsorted(edges, probability, side="left"), return_inverse=True)[1]


def equal_mass_error(label, probability, bins=BINS):
    """Expected calibration error (Naeini et al. 2015) over bins of equal mass (Nguyen and O'Connor 2015), from 0 to 1.

    The mean over bins, weighted by their size, of |share of generated images - mean probability|.
    """
    table = reliability(label, probability, bins)
    return float((table["n"] * (table["share"] - table["probability"]).abs()).sum() / table["n"].sum())


def reliability(label, probability, bins=BINS):
    """DataFrame, a row a bin: probability (mean), share (of generated images), n."""
    frame = pd.DataFrame({"probability": np.asarray(probability, float), "share": np.asarray(label, float)})
    grouped = frame.groupby(equal_mass_bins(frame["probability"].to_numpy(), bins))
    return grouped.mean().assign(n=grouped.size()).reset_index(drop=True)
