"""What a manifest tells before a detector is trained: metadata that gives the class away, duplicates, shared reals."""

from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.model_selection import StratifiedGroupKFold

from anl.cli_index import table_text
from anl.data import manifest
from anl.data.duplicates import groups, near_pairs
from anl.errors import UserError
from anl.files import write_csv

REAL = manifest.REAL
FOLDS = 5
PROBED = 5000  # images of a class at most: enough for an interval of about 0.01
REPLICATES = 1000
LEAST = 10  # images of a class below which nothing is said
LISTED = 100_000  # pairs of near-duplicates written at most
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def run(path, seed=0, say=print):
    """Audit a manifest, write CSV files into `<manifest>.audit/` and say a summary; returns the list of suspicions.

    Raises UserError for what is no manifest.
    """
    path = Path(path)
    table = manifest.read(path)
    if table.empty:
        raise UserError(f"{path} holds no images; index the data set again")
    folder = path.with_name(f"{path.name}.audit")
    tables = {"format_probe": format_probe(table, seed), "distributions": distributions(table), "formats": formats(table),
              "shared_reals": shared_reals(table), "duplicates": duplicates(table)}
    tables["near_duplicates"], left_out = near_duplicates(table)
    for name, rows in tables.items():
        if len(rows):
            write_csv(folder / f"{name}.csv", rows.head(LISTED).to_dict("records"))
        else:
            (folder / f"{name}.csv").unlink(missing_ok=True)
    suspects = suspicions(tables)
    _say_summary(table, tables, left_out, suspects, say)
    say(f"{folder}: {', '.join(f'{name}.csv' for name, rows in tables.items() if len(rows))}")
    return suspects


def format_probe(table, seed=0):
    """Balanced accuracy of a classifier that sees metadata alone, a row a generator and set of features; chance is 0.5.

    `declared`: format, width, height and JPEG quality. `bytes`: those and bytes per pixel, which also follow content.
    Gradient boosting, cross-validated by image (equal bytes stay in one fold), on at most PROBED images a class, each
    generator against the reals it is compared with; 95 % bootstrap interval over images.
    """
    declared = pd.DataFrame({"format": table["format"].astype("category").cat.codes.astype(float),
                             "width": table["width"].astype(float), "height": table["height"].astype(float),
                             "quality": table["jpeg_quality"].astype(float).fillna(0)}).to_numpy()
    per_pixel = (table["bytes"] / (table["width"].astype(float) * table["height"])).to_numpy()[:, None]
    label, digest = table["label"].to_numpy(), table["sha256"].to_numpy()
    rows = []
    for generator, fake, real in _compared(table):
        rng = np.random.default_rng([seed, len(rows)])
        index = np.concatenate([rng.permutation(side)[:PROBED] for side in (real, fake)])
        for features, values in (("declared", declared), ("bytes", np.hstack([declared, per_pixel]))):
            row = {"generator": generator, "features": features, "real": len(real), "generated": len(fake)}
            rows.append(row | _cross_validated(values[index], label[index], digest[index], rng))
    return pd.DataFrame(rows)


def _compared(table):
    """(generator, positions of its images, positions of its reals) of every generator with enough of both."""
    source, generator = table["source_real"].astype(str).to_numpy(), table["generator"].astype(str).to_numpy()
    real = table["label"].to_numpy() == 0
    for name in sorted(set(generator[~real])):
        fake = generator == name
        sets = set(source[fake]) - {""}
        mine = real & np.isin(source, list(sets)) if sets and len(sets) == len(set(source[fake])) else real
        if fake.sum() >= LEAST and mine.sum() >= LEAST:
            yield name, np.flatnonzero(fake), np.flatnonzero(mine)


def _cross_validated(values, label, digest, rng):
    called = np.zeros(len(label), bool)
    group = np.unique(digest, return_inverse=True)[1]
    for fit, test in StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0).split(values, label, group):
        model = HistGradientBoostingClassifier(max_iter=50, class_weight="balanced", random_state=0)
        called[test] = model.fit(values[fit], label[fit]).predict(values[test]) == 1
    hits = {side: (called[label == side] == side) for side in (0, 1)}
    # drawing images with replacement makes the number of hits binomial
    drawn = np.mean([rng.binomial(len(hit), hit.mean(), REPLICATES) / len(hit) for hit in hits.values()], 0)
    low, high = np.quantile(drawn, (0.025, 0.975))
    return {"balanced_accuracy": float(np.mean([hit.mean() for hit in hits.values()])), "low": float(low),
            "high": float(high), "suspect": bool(low > 0.5)}


def distributions(table):
    """Quantiles of size, JPEG quality and bytes per pixel, a row a split, generator, class and measure."""
    measures = table[["width", "height", "jpeg_quality"]].astype(float)
    measures["bytes_per_pixel"] = table["bytes"] / (measures["width"] * measures["height"])
    rows = []
    for place, part in measures.groupby([table[name] for name in ("split", "generator", "label")], observed=True):
        for name in measures:
            known = part[name].dropna()
            if len(known):
                rows.append({"split": place[0], "generator": place[1], "label": place[2], "measure": name, "n": len(known),
                             "distinct": known.nunique(), **{f"q{q:.0%}"[:-1]: v for q, v in known.quantile(QUANTILES).items()}})
    return pd.DataFrame(rows)


def formats(table):
    """Images of each format, a row a split, generator, class and format."""
    return table.groupby(["split", "generator", "label", "format"], observed=True).size().rename("images").reset_index()


def shared_reals(table):
    """The sets of reals: how many images, which generators are compared with them, and images whose bytes occur in more
    sets than one."""
    real = table[table["label"] == 0]
    sets = real[["sha256", "source_real"]].astype(str).drop_duplicates()
    shared = set(sets["sha256"][sets["sha256"].duplicated()])
    rows = []
    for name, part in real.groupby("source_real", observed=True):
        users = sorted(set(table["generator"][(table["label"] == 1) & (table["source_real"] == name)].astype(str)))
        rows.append({"source_real": name, "images": len(part), "generators": " ".join(users), "generators_n": len(users),
                     "also_in_other_sets": int(part["sha256"].isin(shared).sum())})
    return pd.DataFrame(rows)


def duplicates(table):
    """Images whose bytes occur more than once, by group, with whether the group spans splits or classes."""
    group = groups(manifest.sha256_prefix(table["sha256"]))
    found = table.loc[group >= 0, ["path", "split", "generator", "label"]].assign(group=group[group >= 0])
    for column, name in (("split", "across_splits"), ("label", "across_classes")):
        spread = found.groupby("group")[column].agg(lambda values: values.nunique() > 1)
        found[name] = found["group"].map(spread).astype(bool)
    return found.sort_values(["group", "path"], ignore_index=True)


def near_duplicates(table):
    """(pairs that look alike and lie in different splits or classes, comparisons left out).

    Hashes at most 3 of 64 bits apart, equal bytes apart. Of images with one hash the first of each split and class
    stands for the others. Empty where images were not decoded.
    """
    known = table[table["phash"].notna()] if "phash" in table else table.iloc[:0]
    looks, member = np.unique(known["phash"].to_numpy(np.uint64), return_inverse=True)
    first = known[["path", "split", "generator", "label", "sha256"]].assign(look=member).drop_duplicates(
        ["look", "split", "label"])
    one, other, bits, left_out = near_pairs(looks)
    pairs = pd.concat([pd.DataFrame({"look": one, "other": other, "bits": bits}),
                       pd.DataFrame({"look": range(len(looks)), "other": range(len(looks)), "bits": 0})])
    joined = pairs.merge(first, on="look").merge(first.rename(columns={"look": "other"}), on="other",
                                                 suffixes=("", "_other"))
    splits = joined["split"].astype(str) != joined["split_other"].astype(str)
    classes = joined["label"] != joined["label_other"]
    found = joined[(splits | classes) & (joined["sha256"] != joined["sha256_other"])]
    found = found[(found["look"] != found["other"]) | (found["path"] < found["path_other"])]
    return found.assign(across_splits=splits, across_classes=classes).drop(
        columns=["look", "other", "sha256", "sha256_other"]).sort_values(["bits", "path"], ignore_index=True), left_out


def suspicions(tables):
    """Sentences, one for each thing that makes a table of results on this set suspect."""
    found = []
    for row in tables["format_probe"].to_dict("records"):
        if row["suspect"]:
            found.append(f"{row['generator']}: metadata alone ({row['features']}) tells the classes apart, balanced accuracy "
                         f"{row['balanced_accuracy']:.3f} ({row['low']:.3f} to {row['high']:.3f}), chance 0.5")
    for name, what in (("duplicates", "images with equal bytes"), ("near_duplicates", "pairs that look alike")):
        for column, where in (("across_splits", "splits"), ("across_classes", "classes")):
            count = int(tables[name][column].sum()) if len(tables[name]) else 0
            if count:
                found.append(f"{count} {what} lie across {where}: {name}.csv")
    return found


def _say_summary(table, tables, left_out, suspects, say):
    counted = table.groupby(["split", "generator", "label"], observed=True).size().reset_index()
    say(table_text(("split", "generator", "label", "images"), counted.astype(object).to_numpy().tolist()))
    probe = tables["format_probe"]
    if len(probe):
        columns = ["generator", "features", "real", "generated", "balanced_accuracy", "low", "high"]
        say("\nformat probe (chance 0.5)\n" + table_text(columns, probe[columns].astype(object).to_numpy().tolist()))
    else:
        say(f"\nformat probe: no generator with {LEAST} images and {LEAST} reals")
    repeated = tables["duplicates"]
    say(f"\nequal bytes: {len(repeated)} images in {repeated['group'].nunique()} groups")
    undecoded = len(table) if "phash" not in table else int(table["phash"].isna().sum())
    if undecoded:
        say(f"looks: {undecoded} images were indexed with --headers; index without it to find near-duplicates")
    say(f"look alike across splits or classes: {len(tables['near_duplicates'])} pairs" +
        (f"; {left_out} comparisons left out where too many images look alike" if left_out else ""))
    shared = tables["shared_reals"]
    if len(shared):
        columns = ["source_real", "images", "generators_n", "also_in_other_sets"]
        say("\nsets of reals\n" + table_text(columns, shared[columns].astype(object).to_numpy().tolist()))
    say("\n" + ("\n".join(f"suspect: {line}" for line in suspects) if suspects else "nothing suspect"))
