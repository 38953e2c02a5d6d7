"""What is trained on a public data set, and the tables that its notebook writes."""

import re
from pathlib import Path

import numpy as np
import pandas as pd

from anl import bootstrap, runs
from anl.analysis import UNSEEN, over_seeds, value
from anl.benchmark import REAL
from anl.data.formats import distribution
from anl.files import read_json
from anl.predict import read_predictions

ACCURACY = "accuracy"
# the samples of a generator are fewer than the photographs, and AP follows the share; AUROC does not
RANKING = "AUROC"
METRICS = ("AP", RANKING, "balanced_accuracy")
LONGER = ("accuracy_at_half", "AP", RANKING, "TPR_at_1")
AIM = 0.97  # the accuracy that the study with a longer budget is after


def labelled(params):
    """{label: [RunSpec], one a seed} of the methods in the order of the table: `plain`, `anl`, what `anl` changes, peers."""
    found = {"plain": runs.specs_of(params, target="none"), "anl": runs.specs_of(params)}
    found |= {f"anl, attention {name}": runs.specs_of(params, attention=name) for name in params.runs.attentions}
    found |= {f"anl, target {name}": runs.specs_of(params, target=name) for name in params.runs.targets}
    found |= {f"anl, t = {step}": runs.specs_of(params, step=step) for step in params.runs.steps}
    return found | {name: runs.specs_of(params, baseline=name) for name in params.runs.baselines}


def best_threshold(label, logit):
    """The logit above which calling images generated is most often right: (threshold, accuracy), of validation scores.

    Among equals the one nearest to zero, the detector's own; thresholds lie midway between neighbouring scores.
    """
    order = np.argsort(logit, kind="stable")
    label, logit = np.asarray(label)[order], np.asarray(logit, float)[order]
    # above place k: the k lowest scores are called real, the others generated
    right = np.concatenate([[0], np.cumsum(label == 0)]) + np.concatenate([np.cumsum((label == 1)[::-1])[::-1], [0]])
    edges = np.concatenate([[logit[0] - 1], (logit[1:] + logit[:-1]) / 2, [logit[-1] + 1]])
    right[1:-1][logit[1:] == logit[:-1]] = -1  # a threshold does not part equal scores
    best = np.flatnonzero(right == right.max())
    chosen = best[np.argmin(np.abs(edges[best]))]
    return float(edges[chosen]), float(right[chosen] / len(label))


def accuracy(groups, params, view, read=read_predictions):
    """Accuracy on the test images of the data set itself at the threshold of highest validation accuracy; a row a method.

    groups: {method: run folders, one a seed}. Mean over seeds, 95 % interval from drawing images and seeds anew;
    `validation`: the mean accuracy that the thresholds were chosen by. Methods are compared on the same draws:
    `minus_<first>` is the paired difference to the first of `groups`. Sorted as `groups`.
    """
    rows, first = [], None
    for method, folders in groups.items():
        drawn, chosen = [], []
        for folder in folders:
            table = read(folder)
            val = table[table["split"] == "val"]
            threshold, reached = best_threshold(val["label"].to_numpy(), val["logit"].to_numpy())
            test = table[(table["split"] == "test") & (table["view"] == view)
                         & table["generator"].isin([REAL, params.benchmark.seen])].sort_values("sample_id")
            weights = bootstrap.cluster_weights(test["cluster"], params.evaluation.bootstrap, params.seed)
            drawn.append(bootstrap.weighted_rate((test["logit"] > threshold) == test["label"], weights))
            chosen.append(reached)
        drawn = np.array(drawn)
        first = (method, drawn) if first is None else first
        row = {"method": method, "view": view, **_interval(ACCURACY, drawn, params), "validation": float(np.mean(chosen))}
        if drawn.shape == first[1].shape:
            row |= _interval(f"minus_{first[0]}", drawn - first[1], params)
        rows.append({**row, "seeds": len(folders), "n": len(test)})
    return pd.DataFrame(rows)


def _interval(name, drawn, params):
    """drawn: (seeds, R + 1) -> {name, name_low, name_high}, a mean over seeds that are drawn anew in each replicate."""
    mean = over_seeds(drawn, params)
    low, high = bootstrap.interval(mean)
    return {name: float(mean[0]), f"{name}_low": low, f"{name}_high": high}


def encodings(manifest):
    """Formats and JPEG qualities of the test images, a row a generator, format and quality, with its share."""
    test = manifest[manifest["split"] == "test"]
    return pd.DataFrame([{"generator": name, "format": form, "jpeg_quality": quality, "share": share,
                          "images": round(share * len(mine))}
                         for name, mine in test.groupby("generator", sort=False)
                         for (form, quality), share in distribution(mine).items()])


def across(table, metric=RANKING, centre="mean"):
    """A row a method, a column a generator: `metric` with low and high, of the table of `analysis.summary`, or, with the
    centre `difference`, of `analysis.paired_difference`."""
    chosen = table[table["metric"] == metric]
    rows = []
    for method, mine in chosen.groupby("method", sort=False):
        row = {"method": method}
        for place in mine.to_dict("records"):
            row |= {f"{place['generator']}": place[centre], f"{place['generator']}_low": place["low"],
                    f"{place['generator']}_high": place["high"]}
        rows.append({**row, "seeds": int(mine["seeds"].iloc[0])})
    return pd.DataFrame(rows)


def quoted(accuracy, summary, gains, params):
    """{key: value} of what the page says of the methods: see anl.analysis.value. accuracy: at the headline view."""
    found = {}
    for row in accuracy.to_dict("records"):
        found[f"accuracy_{_key(row['method'])}"] = value(row["accuracy"], row["accuracy_low"], row["accuracy_high"],
                                                         row["n"], row["seeds"])
        if row["method"] != accuracy["method"].iloc[0]:
            found[f"accuracy_gain_{_key(row['method'])}"] = value(
                row["minus_plain"], row["minus_plain_low"], row["minus_plain_high"], row["n"], row["seeds"])
    best = accuracy.loc[accuracy["validation"].idxmax()]
    found["best_on_validation"] = {**value(best["validation"]), "text": f"`{best['method']}`"}
    found["accuracy_best"] = value(best["accuracy"], best["accuracy_low"], best["accuracy_high"], int(best["n"]),
                                   int(best["seeds"]))
    for view in summary["view"].unique():
        end = "" if view == params.evaluation.headline else f"_{view}"
        means = summary[(summary["view"] == view) & (summary["metric"] == RANKING)]
        for row in means.to_dict("records"):
            found[f"{RANKING}_{row['generator']}_{_key(row['method'])}{end}"] = value(
                row["mean"], row["low"], row["high"], row["n"], row["seeds"])
        paired = gains[(gains["view"] == view) & (gains["metric"] == RANKING)]
        for row in paired.to_dict("records"):
            found[f"{row['generator']}_{_key(row['method'])}_minus_{row['baseline']}{end}"] = value(
                row["difference"], row["low"], row["high"], row["n"], row["seeds"])
        unseen = means[means["generator"] == UNSEEN].sort_values("mean")
        found[f"best_unseen{end}"] = {**value(unseen["mean"].iloc[-1]), "text": f"`{unseen['method'].iloc[-1]}`"}
        over = paired[(paired["generator"] == UNSEEN) & (paired["baseline"] == "anl")
                      & paired["method"].isin(["plain", *params.runs.baselines])]
        beaten = int((over["high"] < 0).sum())
        found[f"beaten{end}"] = {**value(beaten), "text": f"{beaten} of {len(over)}"}
    texts = {"training_steps": f"{params.training.steps:,}", "batch_size": str(params.training.batch_size),
             "pairs": f"{params.use.train:,}", "test_images": f"{2 * params.use.test:,}",
             "backbone": f"`{params.detector.backbone}`", "prior_steps": f"{params.prior.steps:,}",
             "reference": f"{100 * params.published.reference_accuracy:.2f} %", "seeds": str(len(params.runs.seeds))}
    return found | {key: {**value(0), "text": text} for key, text in texts.items()}


def quoted_of_files(counts, probe):
    """{key: value} of what the page says of copies and of the format probe."""
    found = {}
    for row in counts.to_dict("records"):
        if row["split"] != "test":
            for column in ("in_test_too", "repeated", "used"):
                found[f"{column}_{row['generator']}"] = {**value(row[column]), "text": f"{row[column]:,}"}
    for row in probe.to_dict("records"):
        found[f"probe_{row['features']}"] = value(row["balanced_accuracy"], row["low"], row["high"],
                                                  row["real"] + row["generated"])
    return found


def budget(groups, params, read=read_json):
    """What each training with a longer budget took, a row a method and seed: steps, batch, passes over the training images,
    parameters, threads, and minutes of the processor and of the clock, scoring included.

    groups: {method: run folders, one a seed}. Of a training that was stopped and resumed, minutes are those since then.
    """
    config, rows = params.training, []
    for method, folders in groups.items():
        for folder in folders:
            about = read(Path(folder) / "run.json")
            rows.append({"method": method, "seed": about["spec"]["seed"], "backbone": params.detector.backbone,
                         "parameters": about["parameters"], "steps": config.steps, "batch_size": config.batch_size,
                         "passes": config.steps * config.batch_size / (2 * params.use.train),
                         "precision": about["precision"], "device": about["device"], "threads": about["threads"],
                         "cpu_minutes": about["cpu_seconds"] / 60, "wall_minutes": about["wall_seconds"] / 60})
    return pd.DataFrame(rows)


def quoted_longer(accuracy, summary, budget, params):
    """{key: value} of the runs with a longer budget, accuracies in per cent. accuracy, summary: of the headline view and others.
    The method that the page speaks of is the best on validation images."""
    headline = params.evaluation.headline
    mine = accuracy[accuracy["view"] == headline]
    best = mine.loc[mine["validation"].idxmax()]
    found = {}
    for row in accuracy.to_dict("records"):
        key = f"{_key(row['method'])}{'' if row['view'] == headline else '_' + row['view']}"
        found[f"accuracy_{key}"] = _per_cent(row["accuracy"], row["accuracy_low"], row["accuracy_high"], row)
        if row["method"] != accuracy["method"].iloc[0]:
            found[f"accuracy_gain_{key}"] = _plain(row["minus_plain"], row["minus_plain_low"], row["minus_plain_high"], row)
    found["accuracy"] = found[f"accuracy_{_key(best['method'])}"]
    found["accuracy_jpeg96"] = found[f"accuracy_{_key(best['method'])}_jpeg96"]
    found["validation"] = {**value(best["validation"]), "text": f"{100 * best['validation']:.2f} %"}
    chosen = summary[(summary["method"] == best["method"]) & (summary["view"] == headline)]
    for item in chosen[chosen["generator"] == params.benchmark.seen].to_dict("records"):
        make = _per_cent if "accuracy" in item["metric"] else _plain
        found[item["metric"]] = make(item["mean"], item["low"], item["high"], item)
    spent = budget[budget["method"] == best["method"]]
    texts = {"method": f"`{best['method']}`", "methods": str(len(mine)), "backbone": f"`{params.detector.backbone}`",
             "pairs": f"{params.use.train:,}", "images": f"{int(best['n']):,}", "seeds": str(int(best["seeds"])),
             "steps": f"{params.training.steps:,}", "batch_size": str(params.training.batch_size),
             "passes": f"{spent['passes'].iloc[0]:.1f}", "parameters": f"{spent['parameters'].iloc[0]:,}",
             "cpu_minutes": f"{spent['cpu_minutes'].mean():.0f}", "wall_minutes": f"{spent['wall_minutes'].mean():.0f}",
             "threads": str(int(spent["threads"].iloc[0])), "aim": f"{100 * AIM:.0f} %",
             "verdict": "reached" if best["accuracy"] >= AIM else "missed",
             "reference": f"{100 * params.published.reference_accuracy:.2f} %"}
    return found | {key: {**value(0), "text": text} for key, text in texts.items()}


def _per_cent(mean, low, high, row):
    found = value(mean, low, high, int(row["n"]), int(row["seeds"]))
    return {**found, "text": f"{100 * mean:.2f} % [{100 * low:.2f}, {100 * high:.2f}]"}


def _plain(mean, low, high, row):
    return value(mean, low, high, int(row["n"]), int(row["seeds"]))


def _key(method):
    """A method's name as a key of prose: `anl, t = 10` -> `anl_t_10`."""
    return re.sub(r"\W+", "_", method)
