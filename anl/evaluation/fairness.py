"""False-positive rates by category of photographs at a common threshold, and the gap between the categories."""

import numpy as np
import pandas as pd

from anl.data import REAL
from anl.evaluation import bootstrap
from anl.evaluation.compare import TABLE_COLUMNS, measure
from anl.io import UserError

GAP = "largest minus smallest"


def category_of(image_id):
    """Category of a photograph: the folder that its patch comes from, such as `Faces` of `real/Faces/image_0001.jpg@0,0`."""
    return image_id.partition("/")[2].rpartition("/")[0].rpartition("/")[2]


def category_errors(scores, baseline, *, view, least=20, level=0.95, **options):
    """False-positive rates by category, and the gap between the largest and the smallest of them.

    Each run has one threshold, fixed on validation images of all categories. With few photographs the gap is far above 0
    even for a fair detector, because the maximum of several noisy rates is biased upwards. Compare the gaps of detectors with
    each other, not with 0.

    Parameters
    ----------
    scores : DataFrame
        Per-image scores; real images are named as `category_of` expects.
    baseline : str
        Variant whose rates and gap the others are compared with.
    view : str
    least : int
        Test photographs that a category must have.
    level : float
        Nominal coverage of the intervals.
    **options
        Arguments of `anl.evaluation.compare.measure`: seen, replicates, seed, target_fpr.

    Returns
    -------
    DataFrame or None
        A comparison table of metric `fpr` whose column `generator` holds the category, with `GAP` last. None if fewer than two
        categories have enough photographs.

    Raises
    ------
    UserError
        If the baseline has no scores.
    """
    if baseline not in set(scores["variant"]):
        raise UserError(f"baseline '{baseline}' has no scores; choose a variant of the scores table")
    test = scores[(scores["split"] == "test") & (scores["generator"] == REAL) & (scores["view"] == view)]
    category = test["image_id"].map(category_of)
    photographs = test["group"].groupby(category).nunique()
    names = [name for name in photographs.index[photographs >= least] if name]
    if len(names) < 2:
        return None
    validation = scores[scores["split"] == "val"]
    measured = {name: measure(pd.concat([validation, test[category == name]]), metrics=("fpr",), views=[view], stream=(name,), **options)
                for name in names}
    found = {}
    for variant in measured[names[0]].seeds:
        key = (variant, REAL, view, "fpr")
        values, drawn = (np.stack([getattr(part, kind)[key] for part in measured.values()]) for kind in ("values", "replicates"))
        found[variant] = {**dict(zip(names, zip(values, drawn))), GAP: (np.ptp(values, 0), np.ptp(drawn, 0))}
    sizes = {name: part.photographs[REAL, view][0] for name, part in measured.items()}
    sizes[GAP] = sum(sizes.values())
    rows = []
    for variant, parts in found.items():
        for name, (values, drawn) in parts.items():
            strata = len(names) if name == GAP else 1
            own = bootstrap.interval(values, drawn, sizes[name], strata=strata, level=level)
            row = {"variant": variant, "generator": name, "view": view, "metric": "fpr", "mean": own.mean,
                   "low": max(own.low, 0), "high": min(own.high, 1), "seeds": len(values), "n": sizes[name]}
            if variant != baseline:
                others, theirs = found[baseline][name]
                gap = bootstrap.interval(values - others, drawn - theirs, sizes[name], strata=strata, level=level)
                row |= {"difference": gap.mean, "difference_low": gap.low, "difference_high": gap.high, "p": gap.p_value}
            rows.append({key: float(value) if isinstance(value, np.ndarray) else value for key, value in row.items()})
    return pd.DataFrame(rows, columns=TABLE_COLUMNS)
