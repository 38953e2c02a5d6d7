"""Audit of a benchmark before any training: duplicates, shared images, formats that reveal the class, JPEG grids.

The tables are tidy DataFrames; `findings` summarises what makes results suspect.
"""

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.model_selection import StratifiedGroupKFold

from anl.data import REAL
from anl.data.duplicates import near_pairs

GRID = 8  # pixels between the block boundaries of JPEG
FOLDS = 5
PROBED = 5000  # images per class in the format probe at most: enough for an interval of about 0.01
REPLICATES = 1000
MIN_IMAGES = 10  # per class for a generator to be probed


# ---- duplicates --------------------------------------------------------------------------------------------------------
def duplicate_groups(rows):
    """A number (from 0) for each row, shared by rows with equal bytes (sha256) or the same `group`: int64 (N,)."""
    keys = [name + rows[name].astype(str) for name in ("sha256", "group") if name in rows]
    names, column = np.unique(np.concatenate(keys), return_inverse=True)
    row = np.tile(np.arange(len(rows)), len(keys))
    nodes = len(rows) + len(names)  # rows and values, joined by an edge where a row has the value
    graph = coo_array((np.ones(len(row), bool), (row, len(rows) + column)), (nodes, nodes))
    component = connected_components(graph, directed=False)[1][:len(rows)]
    return np.unique(component, return_inverse=True)[1].astype(np.int64)


def duplicates(rows):
    """Images whose bytes occur more than once: path, split, generator, label, number of the group, across_splits and
    across_classes (whether the group spans several of them)."""
    size = rows.groupby("sha256")["sha256"].transform("size")
    found = rows.loc[size > 1, ["path", "split", "generator", "label", "sha256"]]
    found = found.assign(number=found.groupby("sha256").ngroup())
    for column, name in (("split", "across_splits"), ("label", "across_classes")):
        values = found[column].astype(str)
        found[name] = values.groupby(found["number"]).transform("nunique") > 1
    return found.drop(columns="sha256").sort_values(["number", "path"], ignore_index=True)


def near_duplicates(rows):
    """Pairs of different images that look alike and lie in different splits or classes.

    A real image and its own regeneration (equal `pair`) are not listed. Images with the same perceptual hash are
    represented by the first one of each split, class and pair.

    Returns
    -------
    DataFrame
        path, split, generator, label, the same with the suffix `_other`, bits, across_splits, across_classes.
    left_out : int
        Number of comparisons skipped, see `near_pairs`.
    """
    known = rows[rows["phash"].notna()] if "phash" in rows else rows.iloc[:0].assign(phash=np.zeros(0, np.uint64))
    looks, member = np.unique(known["phash"].to_numpy(np.uint64), return_inverse=True)
    columns = ["path", "split", "generator", "label", "sha256"]
    first = known[columns].assign(pair=known.get("pair", ""), look=member)
    first = first.drop_duplicates(["look", "split", "label", "pair"])
    one, other, bits, left_out = near_pairs(looks)
    pairs = pd.concat([pd.DataFrame({"look": one, "other": other, "bits": bits}),
                       pd.DataFrame({"look": range(len(looks)), "other": range(len(looks)), "bits": 0})])
    joined = pairs.merge(first, on="look").merge(first.rename(columns={"look": "other"}), on="other", suffixes=("", "_other"))
    joined["across_splits"] = joined["split"].astype(str) != joined["split_other"].astype(str)
    joined["across_classes"] = joined["label"] != joined["label_other"]
    partners = (joined["pair"] == joined["pair_other"]) & (joined["pair"] != "")
    crossing = joined["across_splits"] | joined["across_classes"]
    found = joined[crossing & (joined["sha256"] != joined["sha256_other"]) & ~partners]
    found = found[(found["look"] != found["other"]) | (found["path"] < found["path_other"])]
    found = found.drop(columns=["look", "other", "sha256", "sha256_other", "pair", "pair_other"])
    return found.sort_values(["bits", "path"], ignore_index=True), left_out


# ---- formats -----------------------------------------------------------------------------------------------------------
def format_counts(rows):
    """Number of images for each split, generator, label, format, jpeg_quality (0: none), width and height."""
    table = rows.assign(jpeg_quality=rows["jpeg_quality"].fillna(0).astype(int))
    keys = ["split", "generator", "label", "format", "jpeg_quality", "width", "height"]
    table = table.assign(**{name: table[name].astype(str) for name in ("split", "generator", "format")})
    return table.groupby(keys).size().rename("images").reset_index()


def format_probe(rows, seed=0):
    """Balanced accuracy of a classifier that reads metadata only. Chance is 0.5; a higher value reveals a leak.

    Each generator is compared with the real images of its `source_real` (all real images if it has none). The classifier
    is gradient boosting. It is cross-validated, and images with equal bytes or the same group stay in one fold. There are
    two feature sets. `declared`: format, width, height and JPEG quality. `bytes`: these and bytes per pixel, which also
    depend on the image's content.

    Parameters
    ----------
    rows : DataFrame
        Manifest rows.
    seed : int
        Decides which images are used if a class has more than PROBED.

    Returns
    -------
    DataFrame
        generator, features, real, generated (numbers of images), balanced_accuracy with a 95 % bootstrap interval (low,
        high), suspect (low > 0.5). Generators whose images form a single group with the reals are left out.
    """
    declared = pd.DataFrame({"format": rows["format"].astype("category").cat.codes.astype(float),
                             "width": rows["width"].astype(float), "height": rows["height"].astype(float),
                             "quality": rows["jpeg_quality"].astype(float).fillna(0)}).to_numpy()
    per_pixel = (rows["bytes"] / (rows["width"].astype(float) * rows["height"])).to_numpy()[:, None]
    label, block = rows["label"].to_numpy(), duplicate_groups(rows)
    found = []
    for generator, fake, real in _compared(rows):
        rng = np.random.default_rng([seed, len(found)])
        index = np.concatenate([rng.permutation(side)[:PROBED] for side in (real, fake)])
        if len(set(block[index])) < 2:
            continue  # one group cannot be cross-validated
        for features, values in (("declared", declared), ("bytes", np.hstack([declared, per_pixel]))):
            found.append({"generator": generator, "features": features, "real": len(real), "generated": len(fake),
                          **_cross_validated(values[index], label[index], block[index], rng)})
    return pd.DataFrame(found, columns=["generator", "features", "real", "generated", "balanced_accuracy", "low", "high",
                                        "suspect"])


def _compared(rows):
    """(generator, positions of its images, positions of its reals) of every generator with enough of both."""
    source, generator = rows["source_real"].astype(str).to_numpy(), rows["generator"].astype(str).to_numpy()
    real = rows["label"].to_numpy() == 0
    for name in sorted(set(generator[~real])):
        fake = generator == name
        mine = real & np.isin(source, source[fake])
        mine = real if "" in source[fake] or not mine.any() else mine
        if fake.sum() >= MIN_IMAGES and mine.sum() >= MIN_IMAGES:
            yield name, np.flatnonzero(fake), np.flatnonzero(mine)


def _cross_validated(values, label, block, rng):
    called = np.zeros(len(label), bool)
    folds = StratifiedGroupKFold(min(FOLDS, len(np.unique(block))), shuffle=True, random_state=0)
    for fit, test in folds.split(values, label, block):
        model = HistGradientBoostingClassifier(max_iter=50, class_weight="balanced", random_state=0)
        called[test] = model.fit(values[fit], label[fit]).predict(values[test]) == 1
    hits = [called[label == side] == side for side in (0, 1)]
    # a bootstrap over images: the number of hits is binomial
    drawn = np.mean([rng.binomial(len(hit), hit.mean(), REPLICATES) / len(hit) for hit in hits], 0)
    low, high = np.quantile(drawn, (0.025, 0.975))
    return {"balanced_accuracy": float(np.mean([hit.mean() for hit in hits])), "low": float(low), "high": float(high),
            "suspect": bool(low > 0.5)}


def shared_reals(rows):
    """For each set of reals: source_real, images, generators compared with it, and images that are also in other sets."""
    real = rows[rows["generator"] == REAL]
    sets = real[["sha256", "source_real"]].astype(str).drop_duplicates()
    shared = set(sets["sha256"][sets["sha256"].duplicated()])
    found = []
    for name, part in real.groupby("source_real", observed=True):
        users = sorted(set(rows["generator"][(rows["label"] == 1) & (rows["source_real"] == name)].astype(str)))
        found.append({"source_real": name, "images": len(part), "generators": " ".join(users),
                      "also_in_other_sets": int(part["sha256"].isin(shared).sum())})
    return pd.DataFrame(found, columns=["source_real", "images", "generators", "also_in_other_sets"])


# ---- earlier compression -----------------------------------------------------------------------------------------------
def blockiness(pixels):
    """Strength of the 8-pixel block grid that JPEG compression leaves, at any offset; about 0 if there is none.

    The absolute differences between neighbouring pixels are averaged for each of the 8 offsets. The result is their
    largest mean divided by their median, minus 1, averaged over rows and columns.

    Parameters
    ----------
    pixels : ndarray
        uint8 (N, H, W, 3).

    Returns
    -------
    ndarray
        float (N,).
    """
    grey = np.asarray(pixels, np.float32).mean(-1)
    found = []
    for steps in (np.abs(np.diff(grey, axis=2)).mean(1), np.abs(np.diff(grey, axis=1)).mean(2)):  # (N, side - 1)
        phases = np.stack([steps[:, phase::GRID].mean(1) for phase in range(GRID)], 1)
        found.append(phases.max(1) / (np.median(phases, 1) + 1e-6) - 1)
    return np.mean(found, 0).astype(float)


def grid_probe(sets):
    """Distribution of `blockiness` in sets of images. Real images compressed as JPEG are a suitable positive control.

    Parameters
    ----------
    sets : mapping of str to ndarray
        Name -> uint8 (N, H, W, 3).

    Returns
    -------
    DataFrame
        set, n, blockiness (median), quartile_low, quartile_high.
    """
    found = []
    for name, pixels in sets.items():
        values = blockiness(pixels)
        low, middle, high = np.quantile(values, (0.25, 0.5, 0.75))
        found.append({"set": name, "n": len(values), "blockiness": middle, "quartile_low": low, "quartile_high": high})
    return pd.DataFrame(found)


# ---- all of it ---------------------------------------------------------------------------------------------------------
def audit(rows, seed=0):
    """All tables of a manifest, a dict: format_probe, format_counts, shared_reals, duplicates, near_duplicates."""
    return {"format_probe": format_probe(rows, seed), "format_counts": format_counts(rows), "shared_reals": shared_reals(rows),
            "duplicates": duplicates(rows), "near_duplicates": near_duplicates(rows)[0]}


def findings(tables):
    """A list of sentences, one for each result of `audit` that makes scores on the benchmark suspect."""
    found = [f"{row.generator}: metadata alone ({row.features}) separate the classes, balanced accuracy "
             f"{row.balanced_accuracy:.3f} ({row.low:.3f} to {row.high:.3f}), chance 0.5"
             for row in tables["format_probe"].itertuples() if row.suspect]
    for name, what in (("duplicates", "images with equal bytes"), ("near_duplicates", "pairs of similar images")):
        for column, where in (("across_splits", "splits"), ("across_classes", "classes")):
            count = int(tables[name][column].sum())
            if count:
                found.append(f"{count} {what} lie in different {where} (table {name})")
    return found
