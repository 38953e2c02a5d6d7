"""A trained run's test images, real and generated, scored under every perturbation of the profile.

Scores lie beside the runs, in runs/<profile>/robustness/, and change nothing in them: threshold and temperature stay those
of the run's own validation scores. Curves are computed from the files.
"""

import sys
from pathlib import Path

import pandas as pd
import torch
from tqdm import tqdm

from anl import analysis, processes
from anl.benchmark import REAL, read_images, read_manifest, use_rows
from anl.data import perturb
from anl.data.formats import as_published
from anl.errors import UserError
from anl.files import identity, read_json
from anl.params import LOSSLESS
from anl.predict import beside, key_of, load_run, read_predictions, score_treated, weights_hash, write_keyed

COLUMNS = ["sample_id", "photo", "cluster", "generator", "split", "perturbation", "strength", "label", "logit"]
FILE = "perturbations.parquet"
NONE = "none"
METRICS = ("AP", "balanced_accuracy", "fake_accuracy", "real_accuracy")


def strengths_of(params):
    """[(kind, strength)] in the profile's order. Raises UserError if it has none."""
    pairs = [(kind, strength) for kind, strengths in params.evaluation.perturbations.items() for strength in strengths]
    if not pairs:
        raise UserError(f"profile {params.profile} has no evaluation.perturbations; name some, for example "
                        "{jpeg: [90, 50]}")
    return pairs


def score_run(folder, params):
    """Score a run's test images under every perturbation; returns the path of the table.

    Writes runs/<profile>/robustness/<run>/perturbations.parquet (COLUMNS), or leaves it alone if it was made from the
    same weights, images and strengths. folder: runs/<profile>/<group>/<run>. Raises UserError on a run without weights.
    """
    folder, pairs = Path(folder), strengths_of(params)
    path = beside(folder, "robustness") / FILE
    spec = read_json(folder / "run.json")["spec"]
    rows = use_rows(read_manifest(params.benchmark.folder), params)
    rows = rows[rows["split"] == "test"].reset_index(drop=True)
    formats = spec.get("formats", LOSSLESS)
    key = identity({"weights": weights_hash(folder), "seed": params.seed, "formats": formats,
                    "samples": list(rows["sha256"]), "perturbations": pairs,
                    **({"mirrored": True} if params.evaluation.mirrored else {})})
    if processes.agreed(lambda: key_of(path)) == key:
        return path
    loaded = load_run(folder)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    pixels = as_published(read_images(params.benchmark.folder, rows), rows["label"], formats)
    tables = []
    samples = rows["sample_id"].tolist()
    for kind, strength in tqdm(pairs, desc=folder.name, mininterval=5, file=sys.stderr, disable=not processes.here().main):
        logit = score_treated(loaded, pixels, lambda image, index, kind=kind, strength=strength: perturb.apply(
            kind, strength, image, params.seed, samples[index]), device, params.evaluation.mirrored)
        tables.append(rows.assign(perturbation=kind, strength=strength, logit=logit))
    write_keyed(path, pd.concat(tables, ignore_index=True)[COLUMNS], key)
    return path


def read_scores(folder, params):
    """A run's own scores and those under perturbations, in one table, each perturbation as a view (`jpeg_90`).

    What is missing or was made from other weights or strengths is scored first.
    """
    table = pd.read_parquet(score_run(folder, params))
    views = [perturb.name(kind, strength) for kind, strength in zip(table["perturbation"], table["strength"])]
    table = table.drop(columns=["perturbation", "strength"]).assign(view=views)
    return pd.concat([read_predictions(folder), table], ignore_index=True)


def curves(groups, baseline, params):
    """(means, differences) of METRICS per method, perturbation, strength and generator, photographs and seeds drawn anew.

    groups: dict label -> list of run folders, one per seed. The threshold is the frozen one everywhere. Perturbation
    `none` of strength 0 is the untouched test set. differences: each method minus `baseline`, paired. Real accuracy has
    one row, of generator `real`, since all generators share the reals.
    """
    tables = {folder: read_scores(folder, params) for folders in groups.values() for folder in folders}
    means, differences = [], []
    for kind, strength in [(NONE, 0.0), *strengths_of(params)]:
        view = "raw" if kind == NONE else perturb.name(kind, strength)
        for parts, found in zip((means, differences), analysis.compared(groups, baseline, params, view, METRICS,
                                                                        tables.__getitem__)):
            found = found.drop(columns="view")
            found.insert(1, "perturbation", kind)
            found.insert(2, "strength", strength)
            parts.append(found)
    return pd.concat(means, ignore_index=True), pd.concat(differences, ignore_index=True)


def unseen_table(means, differences, metric):
    """One metric on unseen generators: a row a perturbation (`jpeg 90`), a column a method and difference."""
    parts = [table[(table["metric"] == metric) & (table["generator"] == analysis.UNSEEN)] for table in (means, differences)]
    return _named(analysis.side_by_side(*parts, ["perturbation", "strength"]))


def rates(means, params):
    """Real accuracy once and fake accuracy per generator at the frozen threshold: a row a method and perturbation."""
    rows = means[means["metric"].isin(["real_accuracy", "fake_accuracy"])]
    table = rows.pivot_table(index=["method", "perturbation", "strength"], columns="generator", values="mean", sort=False)
    return _named(table[[REAL, *params.families, analysis.UNSEEN]].reset_index().rename_axis(columns=None))


def _named(table):
    return table.assign(perturbation=[_words(row) for row in table.to_dict("records")]).drop(columns="strength")


def verdict(means, differences):
    """Named numbers for the page: how many gains hold, and where AP and real accuracy are lowest; see anl.analysis.value.

    means, differences: of `curves`, with one method beside the baseline. A gain holds where its interval lies above 0.
    Lowest values are picked after looking, so that they say how bad it gets, not how it is elsewhere.
    """
    gains = differences[(differences["generator"] == analysis.UNSEEN) & (differences["metric"] == "AP")]
    perturbed = gains[gains["perturbation"] != NONE]
    held = perturbed["low"] > 0
    lost = ", ".join(_words(row) for row in perturbed[~held].to_dict("records"))
    untouched = gains[gains["perturbation"] == NONE].iloc[0]
    values = {"gain_untouched": _value(untouched, "difference"),
              "gains_held": {**analysis.value(held.sum(), digits=0), "text": f"{held.sum()} of {len(held)}"},
              "gains_lost": {**analysis.value((~held).sum(), digits=0), "text": lost or "no perturbation"}}
    for metric, generator in (("AP", analysis.UNSEEN), ("real_accuracy", REAL)):
        rows = means[(means["metric"] == metric) & (means["generator"] == generator)]
        for method in dict.fromkeys(rows["method"]):
            mine = rows[rows["method"] == method]
            lowest = mine.loc[mine["mean"].idxmin()]
            values[f"{metric}_{method}_untouched"] = _value(mine[mine["perturbation"] == NONE].iloc[0], "mean")
            values[f"{metric}_{method}_lowest"] = _value(lowest, "mean")
            values[f"{metric}_{method}_lowest_at"] = {**values[f"{metric}_{method}_lowest"], "text": _words(lowest)}
    return values


def _value(row, centre):
    return analysis.value(row[centre], row["low"], row["high"], int(row["n"]), int(row["seeds"]))


def _words(row):
    return "untouched" if row["perturbation"] == NONE else f"{row['perturbation']} {row['strength']:g}"
