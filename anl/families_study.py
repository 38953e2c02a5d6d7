"""Trained runs on the further families: scored without retraining, and compared with the benchmark's own families.

Only generated images are scored anew, into runs/<profile>/families/; reals, threshold and temperature are those of the
run's own predictions. Tables are computed from the files.
"""

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from anl import analysis, more_families, processes
from anl.benchmark import REAL
from anl.data import views
from anl.errors import UserError
from anl.files import identity, read_json
from anl.params import LOSSLESS
from anl.predict import COLUMNS, beside, key_of, load_run, read_predictions, score_treated, weights_hash, write_keyed

METRICS = ("AP", "balanced_accuracy", "fake_accuracy")
BENCHMARK, FURTHER = "unseen_benchmark", "unseen_further"  # means over the two parts of the unseen families
NAMES = {BENCHMARK: "mean, benchmark", FURTHER: "mean, further", analysis.UNSEEN: "mean, both"}


def score_run(folder, params, families=None):
    """Score a run on the test images of the further families, or of some of them, in every view; returns the folder of the scores.

    Writes runs/<profile>/families/<run>/<family>.parquet (anl.predict.COLUMNS), and leaves alone what was made from the same
    weights, images and views, so that a new family costs its own images only. folder: runs/<profile>/<group>/<run>. Raises
    UserError on a run without weights, or one trained on files of other formats.
    """
    folder = Path(folder)
    target = beside(folder, "families")
    if read_json(folder / "run.json")["spec"].get("formats", LOSSLESS) != LOSSLESS:
        raise UserError(f"{folder} was trained on files of other formats; the further families are lossless")
    manifest, pixels = more_families.read(params)
    weights, loaded = weights_hash(folder), None
    for name in tqdm(families or params.more_families, desc=folder.name, mininterval=5, file=sys.stderr, disable=not processes.here().main):
        wanted = ((manifest["generator"] == name) & (manifest["split"] == "test")).to_numpy()
        rows, path = manifest[wanted].reset_index(drop=True), target / f"{name}.parquet"
        key = identity({"weights": weights, "samples": list(rows["sha256"]), "views": params.evaluation.views,
                        **({"mirrored": True} if params.evaluation.mirrored else {})})
        if processes.agreed(lambda path=path: key_of(path)) == key:
            continue
        loaded = loaded or load_run(folder)
        write_keyed(path, _scored(loaded, rows, pixels[wanted], params.evaluation), key)
    return target


def _scored(loaded, rows, pixels, evaluation):
    device = "cuda" if torch.cuda.is_available() else "cpu"

    def logit(treat):
        return score_treated(loaded, pixels, lambda image, _: treat(image), device, evaluation.mirrored)

    logits = {"raw": logit(lambda image: image)}
    for view in evaluation.views:
        if view == "matched":  # the reals are lossless, and so are these
            logits[view] = logits["raw"]
        elif view != "raw":
            logits[view] = logit(lambda image, view=view: views.apply(view, image))
    return pd.concat([rows.assign(view=view, logit=logits[view]) for view in evaluation.views], ignore_index=True)[COLUMNS]


def read_scores(folder, params, families=None):
    """A run's own predictions and its scores on the further families, or on some of them, in one table; missing scores are
    made first."""
    made = score_run(folder, params, families)
    return pd.concat([read_predictions(folder), *(pd.read_parquet(made / f"{name}.parquet")
                                                  for name in families or params.more_families)], ignore_index=True)


def compared(groups, baselines, params, on_paired_alone=()):
    """(means, {baseline: differences}) of METRICS per method, family and view of `views_of`, photographs and seeds drawn anew.

    groups: dict label -> list of run folders, one per seed. differences: each method minus the baseline, paired. Beside the
    families stand three means over paired families that no detector was trained on: `unseen` of all, `unseen_benchmark` of
    those in the benchmark and `unseen_further` of the others. on_paired_alone: methods of which the means alone are wanted,
    so that unpaired families need not be scored. Raises UserError if the profile names no further families.
    """
    if not more_families.paired(params):
        raise UserError(f"profile {params.profile} names no paired `more_families`; take another with `anl profile small`")
    scored = {label: more_families.paired(params) if label in on_paired_alone else list(params.more_families) for label in groups}
    tables = {folder: read_scores(folder, params, scored[label]) for label, folders in groups.items() for folder in folders}
    every = {label: dataclasses.replace(params, families=params.families | {name: params.more_families[name] for name in names})
             for label, names in scored.items()}
    means, differences = [], {baseline: [] for baseline in baselines}
    for view, _ in views_of(params):
        drawn = {label: _with_means(analysis.replicates(folders, every[label], view, METRICS, tables.__getitem__), params)
                 for label, folders in groups.items()}
        settings = (params, view, METRICS, tables.__getitem__, drawn)
        counts = _counts(next(iter(tables.values())), view, params)
        means.append(analysis.summary(groups, *settings).assign(n=lambda rows, c=counts: rows["generator"].map(c)))
        for baseline, parts in differences.items():
            parts.append(analysis.paired_difference(groups, baseline, *settings)
                         .assign(n=lambda rows, c=counts: rows["generator"].map(c)))
    return (pd.concat(means, ignore_index=True),
            {baseline: pd.concat(parts, ignore_index=True) for baseline, parts in differences.items()})


def read_statistics(params, results="results"):
    """Table of simple statistics of the further families. Raises UserError, naming the command, where it has not been made."""
    path = Path(results) / params.profile / "audit_more/family_statistics.csv"
    try:
        return pd.read_csv(path)
    except FileNotFoundError:
        raise UserError(f"{path} is missing; make it with `anl audit --more`") from None


def turned(differences):
    """The baseline minus each other method, so that a positive value speaks for the baseline."""
    rows = differences.assign(difference=-differences["difference"], low=-differences["high"], high=-differences["low"])
    return rows.rename(columns={"method": "other"}).drop(columns="baseline")


def means_over(params):
    """{name of a mean: the families in it}."""
    own = [name for name in params.families if name != params.benchmark.seen]
    further = more_families.paired(params)
    return {BENCHMARK: own, FURTHER: further, analysis.UNSEEN: own + further}


def _with_means(array, params):
    """Replicates per family with those of the means behind them."""
    kept = {key: value for key, value in array.items() if key[0] != analysis.UNSEEN}
    return kept | {(name, metric): np.mean([array[family, metric] for family in families], axis=0)
                   for name, families in means_over(params).items() for metric in METRICS}


def _counts(table, view, params):
    """{family or mean: test images that it stands on, the reals among them}."""
    images = table.loc[(table["split"] == "test") & (table["view"] == view), "generator"].value_counts()
    sums = {name: sum(images[family] for family in families) for name, families in means_over(params).items()}
    return {name: int(count + images[REAL]) for name, count in ({**images, **sums}).items()}


def parts(params):
    """{words: families and means}, as a page orders them: trained on, unseen of the benchmark, further, unpaired, means."""
    groups = means_over(params)
    unpaired = [name for name in params.more_families if name not in groups[FURTHER]]
    found = {"trained on": [params.benchmark.seen], "unseen": groups[BENCHMARK], "unseen,\nfurther": groups[FURTHER],
             "unpaired": unpaired, "all unseen": list(groups)}
    return {words: names for words, names in found.items() if names}


def family_table(means, differences, parts):
    """What a page shows: a row a family or mean in the order of `parts`, a column a method and difference.

    means, differences: of one view and metric.
    """
    rows = analysis.side_by_side(means, differences, ["generator"]).set_index("generator", drop=False)
    part = {name: " ".join(words.split()) for words, names in parts.items() for name in names}
    rows = rows.loc[list(part)].reset_index(drop=True)
    rows.insert(1, "part", list(part.values()))
    return rows.assign(generator=rows["generator"].replace(NAMES)).rename(columns={"generator": "family"})


def method_table(means, own_minus_other, view, own="anl"):
    """A row a method, best on unseen families first: AP on the three means, and `own` minus it on the first, paired.

    own_minus_other: of `turned`.
    """
    rows = []
    for method in dict.fromkeys(means["method"]):
        row = {"method": method}
        for name in (analysis.UNSEEN, BENCHMARK, FURTHER):
            row |= _spread(_pick(means, view, generator=name, method=method), "mean", name)
        minus = {"difference": None, "low": None, "high": None}  # of `own` itself
        if method != own:
            minus = _pick(own_minus_other, view, generator=analysis.UNSEEN, other=method)
        some = _pick(means, view, generator=analysis.UNSEEN, method=method)
        rows.append({**row, **_spread(minus, "difference", f"{own}_minus_it"), "seeds": int(some["seeds"]), "n": int(some["n"])})
    return pd.DataFrame(rows).sort_values(analysis.UNSEEN, ascending=False, kind="stable").reset_index(drop=True)


def _pick(table, view, metric="AP", **place):
    """The row of a view and metric where the columns in `place` have its values."""
    rows = table[(table["view"] == view) & (table["metric"] == metric)]
    for column, value in place.items():
        rows = rows[rows[column] == value]
    return rows.iloc[0]


def _spread(row, centre, name):
    return {name: row[centre], f"{name}_low": row["low"], f"{name}_high": row["high"]}


def gains(means, differences, params, method="anl"):
    """Named numbers for the page: gains of `method` over the baseline, and on which unseen families they hold; see
    anl.analysis.value. A gain holds where its interval lies above 0. Keys of a view that is not the headline's end in it."""
    base = differences["baseline"].iloc[0]
    unpaired = [name for name in params.more_families if name not in more_families.paired(params)]
    groups, values = means_over(params), {}
    for view, end in views_of(params):
        for name in (params.benchmark.seen, *groups[analysis.UNSEEN], *unpaired, *groups):
            values[f"gain_{name}{end}"] = _value(_pick(differences, view, method=method, generator=name), "difference")
            for who in (base, method):
                for metric in METRICS:
                    values[f"{metric}_{who}_{name}{end}"] = _value(_pick(means, view, metric, method=who, generator=name), "mean")
        for name, families in groups.items():
            lost = [family for family in families
                    if _pick(differences, view, method=method, generator=family)["low"] <= 0]
            held, text = len(families) - len(lost), ", ".join(f"`{family}`" for family in lost) or "none"
            values[f"held_{name}{end}"] = {**analysis.value(held, digits=0), "text": f"{held} of {len(families)}"}
            values[f"lost_{name}{end}"] = {**analysis.value(len(lost), digits=0), "text": text}
    return values


def standing(means, own_minus_other, params, own="anl"):
    """Named numbers: the best other method on each mean of unseen families, `own` minus it, and how many others `own` is
    above with its interval."""
    values = {}
    for view, end in views_of(params):
        for name in (analysis.UNSEEN, BENCHMARK, FURTHER):
            rows = own_minus_other[(own_minus_other["view"] == view) & (own_minus_other["generator"] == name)
                                   & (own_minus_other["metric"] == "AP")]
            best = rows.loc[rows["difference"].idxmin()]  # means of the same seeds: the best other is the least distance
            beaten = int((rows["low"] > 0).sum())
            values[f"best_other_{name}{end}"] = {**analysis.value(1), "text": f"`{best['other']}`"}
            values[f"own_minus_best_other_{name}{end}"] = _value(best, "difference")
            values[f"beaten_{name}{end}"] = {**analysis.value(beaten), "text": f"{beaten} of {len(rows)}"}
    return values


def views_of(params):
    """[(view, what its keys and files end in)], the headline's first. `raw` is left out: it is scored, but every file is
    lossless, so that its numbers are those of `matched`."""
    headline = params.evaluation.headline
    return [(headline, ""), *((view, f"_{view}") for view in params.evaluation.views if view not in ("raw", headline))]


def _value(row, centre):
    return analysis.value(row[centre], row["low"], row["high"], int(row["n"]), int(row["seeds"]))
