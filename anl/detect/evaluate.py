"""How a packaged detector does on whole pictures: as files, re-encoded and resized, with the verdicts that people get."""

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from anl.data import processing
from anl.data.decode import decode
from anl.detect.card import FILES
from anl.evaluation import bootstrap
from anl.evaluation.metrics import Sample, auroc

CONDITIONS = (FILES, "jpeg_90", "jpeg_70", "scale_0.5")


def score_pictures(detector, pictures, conditions=CONDITIONS):
    """Score pictures in several conditions.

    Parameters
    ----------
    detector : anl.detect.detector.ImageDetector
    pictures : DataFrame
        path, and columns that are kept.
    conditions : sequence of str
        FILES, or names of `anl.data.processing.apply`. `scale_0.5` halves a picture; nothing is put around it.

    Returns
    -------
    DataFrame
        `pictures` with condition, logit and verdict, a row per picture and condition.

    Raises
    ------
    UserError
        If a picture cannot be read, or a condition is unknown.
    """
    def treated():
        for path in tqdm(pictures["path"], desc="pictures", disable=None):
            pixels = decode(path)
            for condition in conditions:
                yield pixels if condition == FILES else in_condition(condition, pixels, str(path))

    scores = detector.score(treated())
    rows = pictures.loc[np.repeat(pictures.index, len(conditions))].reset_index(drop=True)
    return rows.assign(condition=list(conditions) * len(pictures), logit=[score.logit for score in scores],
                       verdict=[score.verdict for score in scores])


def in_condition(name, pixels, key=""):
    """A picture, uint8 (H, W, 3), in a condition; its size changes where it is scaled."""
    for part in name.split("+"):
        kind, strength = processing.parse(part)
        pixels = processing.rescale(pixels, strength) if kind == "scale" else processing.apply(part, pixels, 0, key)
    return pixels


def results(scores, reals, *, replicates=1000, seed=0):
    """How well sets of generated pictures are told from sets of photographs.

    Parameters
    ----------
    scores : DataFrame
        Of `score_pictures`, with the columns set (name) and label (1 for generated).
    reals : list of str
        Sets of photographs that every generated set is compared with.
    replicates, seed : int
        Of the bootstrap over pictures.

    Returns
    -------
    DataFrame
        A row per set and condition: auroc with low and high (95 %; of generated sets), accuracy (share of right verdicts among
        those that are not `undecided`), generated, undecided and real (shares of verdicts), n.
    """
    found = []
    for (name, condition), part in scores.groupby(["set", "condition"], sort=False):
        generated, shares = bool(part["label"].iloc[0]), part["verdict"].value_counts(normalize=True)
        row = {"set": name, "condition": condition, "auroc": np.nan, "low": np.nan, "high": np.nan}
        if generated:
            real = scores[scores["set"].isin(reals) & (scores["condition"] == condition)]
            both = pd.concat([real, part])
            group = np.arange(len(both))
            draws = bootstrap.draw_groups(group, replicates, seed, both["label"])
            sample = Sample.of(both["label"].to_numpy(), both["logit"].to_numpy(), group=draws.place(group))
            span = bootstrap.interval([auroc(sample)], auroc(sample, draws.counts)[None], len(group), strata=2)
            row |= {"auroc": float(span.mean), "low": max(0.0, float(span.low)), "high": min(1.0, float(span.high))}
        said = {verdict: float(shares.get(verdict, 0.0)) for verdict in ("generated", "undecided", "real")}
        decided = 1 - said["undecided"]
        right = said["generated" if generated else "real"]
        found.append(row | {"accuracy": right / decided if decided > 0 else np.nan, **said, "n": len(part)})
    return pd.DataFrame(found)
