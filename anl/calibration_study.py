"""The full table of metrics of each method, what the temperature does to its probabilities, and reliability diagrams."""

import numpy as np
import pandas as pd

from anl import analysis, bootstrap, calibration
from anl.benchmark import REAL
from anl.files import read_json
from anl.measures import MEASURES
from anl.predict import read_predictions

TABLE = {"AP": "AP", "AUROC": "AUROC", "TPR_at_1": "TPR at 1 % FPR", "TPR_at_5": "TPR at 5 % FPR",
         "accuracy": "accuracy at the threshold", "accuracy_at_half": "accuracy at probability 0.5",
         "balanced_accuracy": "balanced accuracy", "real_accuracy": "real accuracy", "fake_accuracy": "fake accuracy",
         "NLL": "NLL (nats)", "ECE": "ECE"}
TEMPERATURE = ("NLL_before", "NLL", "NLL_change", "ECE_before", "ECE", "ECE_change")


def metrics_tables(groups, baseline, params):
    """(means, differences) of every metric per method, generator and view; see anl.analysis.compared.

    groups: dict label -> list of run folders, one per seed. Every generator is set against all test reals, so that both
    classes are as frequent as in validation. Threshold and temperature are those of each run's validation scores.
    """
    parts = zip(*(analysis.compared(groups, baseline, params, view, tuple(MEASURES)) for view in params.evaluation.views))
    return tuple(pd.concat(tables, ignore_index=True) for tables in parts)


def every_metric(means, differences, generator, view):
    """A row a metric (`measure`, in words): each method and the paired difference with their intervals, on one generator;
    real accuracy too."""
    parts = [table[(table["view"] == view) & table["generator"].isin([generator, REAL]) & table["metric"].isin(TABLE)]
             for table in (means, differences)]
    table = analysis.side_by_side(*parts, ["metric"]).set_index("metric").loc[list(TABLE)]
    return table.rename(index=TABLE).rename_axis("measure").reset_index()


def by_generator(means, view):
    """Means over seeds at one view, a row a method and generator; real accuracy has a row of its own (`real`)."""
    rows = means[(means["view"] == view) & means["metric"].isin(TABLE)]
    table = rows.pivot_table(index=["method", "generator"], columns="metric", values="mean", sort=False)
    return table[list(TABLE)].reset_index().rename_axis(columns=None)


def temperature_table(means, params):
    """NLL (nats) and ECE before and after the temperature, and the change with its 95 % interval: a row a view (`images`),
    method and generator, seen and mean of unseen."""
    rows = means[means["generator"].isin([params.benchmark.seen, analysis.UNSEEN]) & means["metric"].isin(TEMPERATURE)]
    keys = ["view", "method", "generator"]
    table = rows.pivot_table(index=keys, columns="metric", values="mean", sort=False)[list(TEMPERATURE)]
    for metric in ("NLL_change", "ECE_change"):
        place = table.columns.get_loc(metric)
        ends = rows[rows["metric"] == metric].set_index(keys)
        for step, end in enumerate(("low", "high"), 1):
            table.insert(place + step, f"{metric}_{end}", ends[end])
    sizes = rows[rows["metric"] == "NLL"].set_index(keys)[["seeds", "n"]]
    return pd.concat([table, sizes], axis=1).reset_index().rename(columns={"view": "images"})


def calibrations(groups, params):
    """Threshold (a logit) and temperature of every run, with the validation images they stand on."""
    rows = []
    for label, folders in groups.items():
        for folder in folders:
            table = read_predictions(folder)
            rows.append({"method": label, "seed": read_json(f"{folder}/run.json")["spec"]["seed"],
                         **analysis.calibration_of(table, params)._asdict(), "n": int((table["split"] == "val").sum())})
    return pd.DataFrame(rows)


def reliability(groups, params, view=None):
    """Reliability diagrams: a row a method, generators (`seen`, `unseen`), temperature (`before`, `after`) and bin.

    probability: mean in the bin; mean, low, high: share of generated images in it and the 95 % interval, photographs
    drawn anew; n: images. Seeds are pooled, each with its own temperature. Of `unseen`, each family stands against all
    reals, so that both classes are equally frequent. view: default the profile's headline view.
    """
    view = view or params.evaluation.headline
    sets = {"seen": [params.benchmark.seen], "unseen": [f for f in params.families if f != params.benchmark.seen]}
    tables = []
    for label, folders in groups.items():
        scores = {folder: read_predictions(folder) for folder in folders}
        for where, families in sets.items():
            pooled = [_against_reals(table, families, view, analysis.calibration_of(table, params).temperature)
                      for table in scores.values()]
            pooled = pd.concat(pooled, ignore_index=True)
            for when in ("before", "after"):
                tables.append(_bins(pooled, when, params).assign(method=label, generators=where, temperature=when,
                                                                 seeds=len(folders)))
    return pd.concat(tables, ignore_index=True)[["method", "generators", "temperature", "probability", "mean", "low",
                                                 "high", "seeds", "n"]]


def _against_reals(table, families, view, temperature):
    test = table[(table["split"] == "test") & (table["view"] == view)]
    rows = pd.concat([test[test["generator"].isin([REAL, name])] for name in families])
    return pd.DataFrame({"label": rows["label"], "cluster": rows["cluster"], "before": _sigmoid(rows["logit"]),
                         "after": _sigmoid(rows["logit"] / temperature)})


def _sigmoid(logit):
    return 1 / (1 + np.exp(-logit))


def _bins(pooled, when, params):
    probability, label = pooled[when].to_numpy(), pooled["label"].to_numpy()
    place = calibration.equal_mass_bins(probability)
    weights = bootstrap.cluster_weights(pooled["cluster"], params.evaluation.bootstrap, params.seed)
    table = calibration.reliability(label, probability).rename(columns={"share": "mean"})
    ends = [bootstrap.interval(bootstrap.weighted_rate(label[place == b], weights[:, place == b])) for b in range(len(table))]
    return table.assign(low=[low for low, _ in ends], high=[high for _, high in ends])


def verdict(means, params):
    """Named numbers for the page, at the headline view; see anl.analysis.value."""
    rows = means[means["view"] == params.evaluation.headline]
    places = {"seen": params.benchmark.seen, "unseen": analysis.UNSEEN, "real": REAL}
    wanted = [(where, metric) for where in ("seen", "unseen") for metric in ("fake_accuracy", *TEMPERATURE)]
    values = {}
    for where, metric in [("real", "real_accuracy"), *wanted]:
        for row in rows[(rows["generator"] == places[where]) & (rows["metric"] == metric)].to_dict("records"):
            name = metric if where == "real" else f"{where}_{metric}"
            values[f"{name}_{row['method']}"] = analysis.value(row["mean"], row["low"], row["high"], row["n"], row["seeds"])
    return values
