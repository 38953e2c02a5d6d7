"""Detectors trained on all families but one, compared on that one, beside detectors trained on a single family.

Every family is left out in turn. Photographs and training seeds are drawn anew, the same draw for every family, method and
protocol, so that all differences are paired. Tables are computed from saved scores.
"""

import dataclasses

import numpy as np
import pandas as pd

from anl import analysis, bootstrap
from anl.benchmark import REAL
from anl.leave_one_out import OTHERS
from anl.predict import read_predictions

METRICS = ("AP", "AUROC", "balanced_accuracy")
PLAIN, METHOD = "plain", "anl"
ONE = "_one"  # ends the name of a method that trained on a single family
EVERY = "every"  # mean over all left-out families
PROTOCOLS = {"": "all families but this one", ONE: "one family"}


def compared(folders, params, view):
    """(means, differences) of METRICS at one view, a row per method or difference, family and metric.

    folders: {method: {left-out family: [run folder of each seed]}} for the methods plain and anl, trained without the family,
    and plain_one and anl_one, the runs of the profile's own protocol, which are the same for every family. Beside the families
    stand two means: `unseen`, of those that neither protocol trained on, and `every`, of all of them, which only the first has.
    differences: METHOD minus PLAIN under either protocol (`gain`, `gain_one`), what the other families add to each method
    (`plain_more`, `anl_more`), and the first gain minus the second (`gain_more`).
    """
    drawn = {method: _with_means(
        {family: _replicates(runs, family, params, view) for family, runs in by_family.items()}, params, method)
        for method, by_family in folders.items()}
    drawn_apart = {"gain": _minus(drawn[METHOD], drawn[PLAIN]), "gain_one": _minus(drawn[METHOD + ONE], drawn[PLAIN + ONE]),
                   "plain_more": _minus(drawn[PLAIN], drawn[PLAIN + ONE]),
                   "anl_more": _minus(drawn[METHOD], drawn[METHOD + ONE])}
    drawn_apart["gain_more"] = _minus(drawn_apart["gain"], drawn_apart["gain_one"])
    first = folders[PLAIN]
    seeds, counts = len(next(iter(first.values()))), _counts(first, params, view)
    return (_rows(drawn, "method", "mean", params, view, seeds, counts),
            _rows(drawn_apart, "what", "difference", params, view, seeds, counts))


def _replicates(runs, family, params, view):
    """{metric: (seeds, R + 1)} of the runs on one family's test images."""
    alone = dataclasses.replace(params, families={family: params.families[family]},
                                benchmark=dataclasses.replace(params.benchmark, seen=OTHERS))
    values = analysis.replicates(runs, alone, view, METRICS)
    return {metric: values[family, metric] for metric in METRICS}


def _with_means(by_family, params, method):
    found = {(family, metric): values for family, metrics in by_family.items() for metric, values in metrics.items()}
    for name, families in means_over(by_family, params, method).items():
        found |= {(name, metric): np.mean([by_family[family][metric] for family in families], axis=0) for metric in METRICS}
    return found


def means_over(families, params, method=PLAIN):
    """{name of a mean: the families in it} of a method; a mean of no family is left out."""
    unseen = [family for family in families if family != params.benchmark.seen]
    groups = {analysis.UNSEEN: unseen, EVERY: [] if method.endswith(ONE) else list(families)}
    return {name: members for name, members in groups.items() if members}


def _minus(one, other):
    return {key: one[key] - other[key] for key in one if key in other}


def _rows(drawn, kind, centre, params, view, seeds, counts):
    rows = []
    for name, values in drawn.items():
        for (family, metric), array in values.items():
            spread = analysis.over_seeds(array, params)
            low, high = bootstrap.interval(spread)
            rows.append({kind: name, "generator": family, "view": view, "metric": metric, centre: float(spread[0]), "low": low,
                         "high": high, "seeds": seeds, "n": counts[family]})
    return pd.DataFrame(rows)


def _counts(folders, params, view):
    """{family or mean: test images that it stands on, the reals among them}."""
    found = {}
    for family, runs in folders.items():
        table = read_predictions(runs[0])
        test = table[(table["split"] == "test") & (table["view"] == view)]["generator"]
        real, found[family] = int((test == REAL).sum()), int((test == family).sum())
    sums = {name: sum(found[family] for family in members) for name, members in means_over(folders, params).items()}
    return {name: real + count for name, count in (found | sums).items()}


def side_by_side(means, differences, metric):
    """A table to be read, of one view: a row a family or mean, a column with its interval for each method and difference."""
    parts = []
    for table, kind, centre in ((means, "method", "mean"), (differences, "what", "difference")):
        table = table[table["metric"] == metric]
        for name in dict.fromkeys(table[kind]):
            rows = table[table[kind] == name].set_index("generator")
            parts.append(rows[[centre, "low", "high"]].set_axis([name, f"{name}_low", f"{name}_high"], axis=1))
    rows = means[(means["metric"] == metric) & (means["method"] == PLAIN)].set_index("generator")
    return pd.concat([*parts, rows[["seeds", "n"]]], axis=1).loc[rows.index].rename_axis("family").reset_index()


def numbers(means, differences, headline):
    """Named numbers for the page: `<metric>_<method or difference>_<family or mean>`, with the view at the end unless it is the
    headline's; on how many families a gain holds, and which lost it. A gain holds where its interval lies above 0."""
    values = {}
    for table, kind, centre in ((means, "method", "mean"), (differences, "what", "difference")):
        for row in table.to_dict("records"):
            end = "" if row["view"] == headline else f"_{row['view']}"
            values[f"{row['metric']}_{row[kind]}_{row['generator']}{end}"] = analysis.value(
                row[centre], row["low"], row["high"], row["n"], row["seeds"])
    single = differences[(differences["metric"] == "AP") & ~differences["generator"].isin([analysis.UNSEEN, EVERY])]
    for (view, what), rows in single.groupby(["view", "what"], sort=False):
        end = "" if view == headline else f"_{view}"
        held, below = int((rows["low"] > 0).sum()), rows[rows["high"] < 0]["generator"]
        values[f"held_{what}{end}"] = {**analysis.value(held), "text": f"{held} of {len(rows)}"}
        values[f"against_{what}{end}"] = {**analysis.value(len(below)), "text": ", ".join(f"`{name}`" for name in below) or "none"}
    seeds = int(means["seeds"].iloc[0])
    return values | {"seeds": {**analysis.value(seeds), "text": str(seeds)}}
