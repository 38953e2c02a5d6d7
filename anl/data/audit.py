"""What a benchmark tells before a detector is trained: duplicates, shared images, formats that reveal the class, JPEG grids.

Every function returns a tidy DataFrame; `findings` puts what makes results suspect into sentences.
"""

import itertools

import numpy as np
import pandas as pd
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.model_selection import StratifiedGroupKFold

from anl.data.duplicates import near_pairs
from anl.data.manifest import REAL

GRID = 8  # pixels between the block boundaries of JPEG
FOLDS = 5
PROBED = 5000  # images per class in the format probe at most: enough for an interval of about 0.01
REPLICATES = 1000
LEAST = 10  # images per class below which a generator is not probed
PRIORITY = ("test", "val", "train")  # where a group of duplicates goes that spans splits


# ---- duplicates --------------------------------------------------------------------------------------------------------
def duplicate_groups(rows, near=True):
    """A number for each row that equal images, near-duplicates and rows of one `group` share.

    Parameters
    ----------
    rows : DataFrame
        sha256; `group` and `phash` (uint64, null if unknown) if available.
    near : bool
        Whether near-duplicates by `phash` are joined.

    Returns
    -------
    ndarray
        int64 (N,), from 0.
    """
    parent = np.arange(len(rows))

    def root(node):
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    def join(nodes):
        for one, other in itertools.pairwise(nodes):
            low, high = sorted((root(one), root(other)))
            parent[high] = low

    rows = rows.reset_index(drop=True)
    for column in ("sha256", "group"):
        if column in rows:
            for nodes in rows.groupby(rows[column].astype(str), sort=False).indices.values():
                join(nodes.tolist())
    if near and "phash" in rows and rows["phash"].notna().any():
        known = np.flatnonzero(rows["phash"].notna())
        looks, member = np.unique(rows["phash"].iloc[known].to_numpy(np.uint64), return_inverse=True)
        order = np.argsort(member, kind="stable")
        for nodes in np.split(known[order], np.flatnonzero(np.diff(member[order])) + 1):
            join(nodes.tolist())
        representative = known[order[np.searchsorted(member[order], np.arange(len(looks)))]]
        for one, other in zip(*near_pairs(looks)[:2]):
            join([int(representative[one]), int(representative[other])])
    return np.unique([root(node) for node in range(len(rows))], return_inverse=True)[1].astype(np.int64)


def one_side(rows, near=True):
    """Move images so that (near-)duplicates lie in one split: a group that spans splits goes to test before val before train.

    Returns
    -------
    DataFrame
        The rows with changed `split`, and `group` renamed so that duplicates share it (the bootstrap draws them together).
    moved : DataFrame
        image_id or path, split and split_before of rows that moved.
    """
    number = pd.Series(duplicate_groups(rows, near), rows.index)
    rank = {name: place for place, name in enumerate(PRIORITY)}
    order = rows["split"].astype(str).map(rank).fillna(len(PRIORITY))
    best = order.groupby(number).transform("min").astype(int)
    target = best.map(dict(enumerate(PRIORITY))).fillna(rows["split"].astype(str))
    changed = rows.assign(split=target)
    if "group" in rows:
        changed["group"] = rows["group"].astype(str).groupby(number).transform("min")
    name = "image_id" if "image_id" in rows else "path"
    before = rows["split"].astype(str)
    moved = changed.loc[target != before, [name, "split"]].assign(split_before=before[target != before])
    return changed, moved.reset_index(drop=True)


def duplicates(rows):
    """Images whose bytes occur more than once: path, split, generator, label, number of the group, and whether the group
    spans splits (`across_splits`) or classes (`across_classes`)."""
    size = rows.groupby("sha256")["sha256"].transform("size")
    found = rows.loc[size > 1, ["path", "split", "generator", "label", "sha256"]]
    found = found.assign(number=found.groupby("sha256").ngroup())
    for column, name in (("split", "across_splits"), ("label", "across_classes")):
        values = found[column].astype(str)
        found[name] = values.groupby(found["number"]).transform("nunique") > 1
    return found.drop(columns="sha256").sort_values(["number", "path"], ignore_index=True)


def near_duplicates(rows):
    """Pairs of different images that look alike and lie in different splits or classes.

    A real image and its own regeneration (equal `pair`) are not listed. Of images with one perceptual hash, the first of
    each split and class represents the others.

    Returns
    -------
    DataFrame
        path, split, generator, label, the same with the suffix `_other`, bits, across_splits, across_classes.
    left_out : int
        Comparisons given up, see `near_pairs`.
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
    found = joined[(joined["across_splits"] | joined["across_classes"]) & (joined["sha256"] != joined["sha256_other"]) & ~partners]
    found = found[(found["look"] != found["other"]) | (found["path"] < found["path_other"])]
    found = found.drop(columns=["look", "other", "sha256", "sha256_other", "pair", "pair_other"])
    return found.sort_values(["bits", "path"], ignore_index=True), left_out


def disjointness(sets):
    """How many images sets of rows share, for example the prior's training photographs and those of the test split.

    Parameters
    ----------
    sets : mapping of str to DataFrame or iterable of str
        Rows with sha256 (and phash), or hex digests only.

    Returns
    -------
    DataFrame
        A row for each pair of sets: first, second, first_n, second_n (different images), shared (equal bytes), near
        (images of the second that look like one of the first without being equal; null without hashes of looks).
    """
    found = []
    for (one, first), (other, second) in itertools.combinations(sets.items(), 2):
        digests = [set(part["sha256"] if isinstance(part, pd.DataFrame) else part) for part in (first, second)]
        shared = digests[0] & digests[1]
        looks = [part[part["phash"].notna()] if isinstance(part, pd.DataFrame) and "phash" in part else None
                 for part in (first, second)]
        near = pd.NA if looks[0] is None or looks[1] is None else _near_count(*looks, shared)
        found.append({"first": one, "second": other, "first_n": len(digests[0]), "second_n": len(digests[1]),
                      "shared": len(shared), "near": near})
    return pd.DataFrame(found, columns=["first", "second", "first_n", "second_n", "shared", "near"])


def _near_count(first, second, shared):
    """Different images of `second`, outside `shared`, whose hash is at most NEAR bits from one of `first`."""
    mine = second[~second["sha256"].isin(shared)].drop_duplicates("sha256")
    left, right = (np.unique(part["phash"].to_numpy(np.uint64)) for part in (first, mine))
    looks = np.unique(np.concatenate([left, right]))
    in_left, in_right = np.isin(looks, left), np.isin(looks, right)
    alike = set(looks[in_left & in_right].tolist())
    for one, other in zip(*near_pairs(looks)[:2]):
        alike |= {int(looks[b]) for a, b in ((one, other), (other, one)) if in_left[a] and in_right[b]}
    return int(mine["phash"].isin(alike).sum())


def split_disjointness(rows):
    """`disjointness` of the splits of one manifest, for real and generated images separately: with the column label."""
    tables = []
    for label, part in rows.groupby("label"):
        splits = {name: part[part["split"].astype(str) == name] for name in sorted(set(part["split"].astype(str)))}
        tables.append(disjointness(splits).assign(label=label))
    return pd.concat(tables, ignore_index=True) if tables else disjointness({}).assign(label=0)


# ---- formats -----------------------------------------------------------------------------------------------------------
def format_counts(rows):
    """Images of each split, generator, label, format, jpeg_quality (0 = none), width and height, in the column `images`."""
    table = rows.assign(jpeg_quality=rows["jpeg_quality"].fillna(0).astype(int))
    keys = ["split", "generator", "label", "format", "jpeg_quality", "width", "height"]
    table = table.assign(**{name: table[name].astype(str) for name in ("split", "generator", "format")})
    return table.groupby(keys).size().rename("images").reset_index()


def format_probe(rows, seed=0):
    """How well metadata alone separate the classes: chance is 0.5, and anything above it is a leak.

    Gradient boosting, cross-validated with equal bytes and groups kept in one fold, each generator against the reals of
    its `source_real` (all reals if it has none). Feature set `declared`: format, width, height and JPEG quality; `bytes`:
    these and bytes per pixel, which also follow from content.

    Parameters
    ----------
    rows : DataFrame
        Manifest rows.
    seed : int
        Of the sample of at most PROBED images per class.

    Returns
    -------
    DataFrame
        generator, features, real, generated (numbers of images), balanced_accuracy with a 95 % bootstrap interval (low,
        high), suspect (low > 0.5).
    """
    declared = pd.DataFrame({"format": rows["format"].astype("category").cat.codes.astype(float),
                             "width": rows["width"].astype(float), "height": rows["height"].astype(float),
                             "quality": rows["jpeg_quality"].astype(float).fillna(0)}).to_numpy()
    per_pixel = (rows["bytes"] / (rows["width"].astype(float) * rows["height"])).to_numpy()[:, None]
    label, block = rows["label"].to_numpy(), duplicate_groups(rows, near=False)
    found = []
    for generator, fake, real in _compared(rows):
        rng = np.random.default_rng([seed, len(found)])
        index = np.concatenate([rng.permutation(side)[:PROBED] for side in (real, fake)])
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
        if fake.sum() >= LEAST and mine.sum() >= LEAST:
            yield name, np.flatnonzero(fake), np.flatnonzero(mine)


def _cross_validated(values, label, block, rng):
    called = np.zeros(len(label), bool)
    folds = StratifiedGroupKFold(min(FOLDS, len(np.unique(block))), shuffle=True, random_state=0)
    for fit, test in folds.split(values, label, block):
        model = HistGradientBoostingClassifier(max_iter=50, class_weight="balanced", random_state=0)
        called[test] = model.fit(values[fit], label[fit]).predict(values[test]) == 1
    hits = [called[label == side] == side for side in (0, 1)]
    # drawing images with replacement makes the number of hits binomial
    drawn = np.mean([rng.binomial(len(hit), hit.mean(), REPLICATES) / len(hit) for hit in hits], 0)
    low, high = np.quantile(drawn, (0.025, 0.975))
    return {"balanced_accuracy": float(np.mean([hit.mean() for hit in hits])), "low": float(low), "high": float(high),
            "suspect": bool(low > 0.5)}


def shared_reals(rows):
    """Sets of reals: source_real, images, the generators compared with it, and images whose bytes occur in other sets."""
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
    """How far the strongest of the 8 grid phases exceeds the others; 0 without a JPEG grid, wherever the grid lies.

    Parameters
    ----------
    pixels : ndarray
        uint8 (N, H, W, 3), sides of at least 16.

    Returns
    -------
    ndarray
        float (N,): mean absolute step between neighbouring pixels per phase, largest over median, minus 1; the mean of
        rows and columns.
    """
    grey = np.asarray(pixels, np.float32).mean(-1)
    found = []
    for steps in (np.abs(np.diff(grey, axis=2)).mean(1), np.abs(np.diff(grey, axis=1)).mean(2)):  # (N, side - 1)
        phases = np.stack([steps[:, phase::GRID].mean(1) for phase in range(GRID)], 1)
        found.append(phases.max(1) / (np.median(phases, 1) + 1e-6) - 1)
    return np.mean(found, 0).astype(float)


def grid_probe(sets):
    """Blockiness of sets of images.

    Parameters
    ----------
    sets : mapping of str to ndarray
        uint8 (N, H, W, 3); for example originals, real patches, and real patches through JPEG 50 as a positive control.

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
    """All tables of a manifest: format_probe, format_counts, shared_reals, duplicates, near_duplicates, splits (a dict)."""
    return {"format_probe": format_probe(rows, seed), "format_counts": format_counts(rows), "shared_reals": shared_reals(rows),
            "duplicates": duplicates(rows), "near_duplicates": near_duplicates(rows)[0], "splits": split_disjointness(rows)}


def findings(tables):
    """Sentences, one for each result of `audit` that makes scores on the benchmark suspect."""
    found = [f"{row.generator}: metadata alone ({row.features}) separate the classes, balanced accuracy "
             f"{row.balanced_accuracy:.3f} ({row.low:.3f} to {row.high:.3f}), chance 0.5"
             for row in tables["format_probe"].itertuples() if row.suspect]
    for name, what in (("duplicates", "images with equal bytes"), ("near_duplicates", "pairs of similar images")):
        for column, where in (("across_splits", "splits"), ("across_classes", "classes")):
            count = int(tables[name][column].sum())
            if count:
                found.append(f"{count} {what} lie in different {where} (table {name})")
    return found
