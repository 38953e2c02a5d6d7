"""Tables from saved scores: what notebooks show and claims are decided by."""

import numpy as np
import pandas as pd

from anl import bootstrap, metrics
from anl.benchmark import REAL
from anl.measures import MEASURES
from anl.predict import read_predictions

UNSEEN = "unseen"
METRICS = ("AP", "balanced_accuracy")


def calibration_of(table, params):
    """Threshold and temperature of one run, from its validation scores."""
    val = table[table["split"] == "val"]
    return metrics.calibrate(val["label"], val["logit"], params.evaluation.target_fpr)


def run_table(folders, params):
    """One row a run, generator and view, with every metric. folders: dict RunSpec -> run folder."""
    rows = []
    for spec, folder in folders.items():
        table = read_predictions(folder)
        calibration = calibration_of(table, params)
        test = table[table["split"] == "test"]
        for view in params.evaluation.views:
            seen_by_view = test[test["view"] == view]
            real = seen_by_view[seen_by_view["generator"] == REAL]
            for generator in params.families:
                fake = seen_by_view[seen_by_view["generator"] == generator]
                both = pd.concat([real, fake])
                rows.append({"method": spec.method, "slug": spec.slug, "target": spec.target, "step": spec.step,
                             "attention": spec.attention, "seed": spec.seed, "generator": generator,
                             "seen": generator == params.benchmark.seen, "view": view, "n_real": len(real),
                             "n_fake": len(fake), "threshold": calibration.threshold,
                             **metrics.evaluate(both["label"], both["logit"], calibration)})
    return pd.DataFrame(rows)


def replicates(folders, params, view, metrics=METRICS, read=read_predictions):
    """Bootstrap replicates of one method: dict (generator, metric) -> (seeds, R + 1), column 0 the sample itself.

    folders: the method's run folders, one per seed, in the order of the seeds. `unseen` is the mean over the families
    that the detectors did not train on, and left out where there is none. metrics: of anl.measures. read: folder -> table of scores.
    """
    names = list(params.families)
    unseen = [name for name in names if name != params.benchmark.seen]
    values = {(name, metric): [] for name in [*names, *([UNSEEN] if unseen else [])] for metric in metrics}
    for folder in folders:
        table = read(folder)
        calibration = calibration_of(table, params)
        test = table[(table["split"] == "test") & (table["view"] == view)].sort_values("sample_id")
        real = test[test["generator"] == REAL]
        for name in names:
            both = pd.concat([real, test[test["generator"] == name]])
            weights = bootstrap.cluster_weights(both["cluster"], params.evaluation.bootstrap, params.seed)
            label, logit = both["label"].to_numpy(), both["logit"].to_numpy()
            for metric in metrics:
                values[name, metric].append(MEASURES[metric](label, logit, weights, calibration))
        for metric in metrics if unseen else ():
            values[UNSEEN, metric].append(np.mean([values[name, metric][-1] for name in unseen], axis=0))
    return {key: np.array(value) for key, value in values.items()}


def over_seeds(array, params):
    """(seeds, R + 1) -> (R + 1,): the mean over seeds, seeds drawn anew in each replicate."""
    weights = bootstrap.seed_weights(len(array), array.shape[1] - 1, params.seed)
    return (weights.T * array).sum(0) / weights.sum(1)


def _images(folders, generator, params, view, read=read_predictions):
    table = read(folders[0])
    test = table[(table["split"] == "test") & (table["view"] == view)]
    wanted = test["generator"] == generator if generator != UNSEEN else (
        ~test["generator"].isin([REAL, params.benchmark.seen]))
    return int((wanted | (test["generator"] == REAL)).sum())


def summary(groups, params, view=None, metrics=METRICS, read=read_predictions, drawn=None):
    """Mean over seeds with a 95 % interval (photographs and seeds drawn anew), a row per method, generator and metric.

    groups: dict label -> list of run folders, one per seed. view: default the profile's headline view. metrics: of
    anl.measures. read: folder -> table of scores. drawn: the methods' replicates, where they are known already.
    """
    view = view or params.evaluation.headline
    rows = []
    for label, folders in groups.items():
        array = drawn[label] if drawn else replicates(folders, params, view, metrics, read)
        for (generator, metric), place in _places(array, params, view).items():
            mean = over_seeds(array[generator, metric], params)
            low, high = bootstrap.interval(mean)
            rows.append({"method": label, **place, "mean": float(mean[0]), "low": low, "high": high,
                         "seeds": len(folders), "n": _images(folders, place["generator"], params, view, read)})
    return pd.DataFrame(rows)


def paired_difference(groups, baseline, params, view=None, metrics=METRICS, read=read_predictions, drawn=None):
    """Each method minus `baseline` on the same photographs and seeds, a row per method, generator and metric; see summary."""
    view = view or params.evaluation.headline
    base = drawn[baseline] if drawn else replicates(groups[baseline], params, view, metrics, read)
    rows = []
    for label, folders in groups.items():
        if label == baseline:
            continue
        array = drawn[label] if drawn else replicates(folders, params, view, metrics, read)
        for (generator, metric), place in _places(array, params, view).items():
            difference = over_seeds(array[generator, metric] - base[generator, metric], params)
            low, high = bootstrap.interval(difference)
            rows.append({"method": label, "baseline": baseline, **place, "difference": float(difference[0]), "low": low,
                         "high": high, "seeds": len(folders), "n": _images(folders, place["generator"], params, view, read)})
    return pd.DataFrame(rows)


def _places(array, params, view):
    """{(generator, metric): columns that say where a row stands}. Real accuracy has one, of generator `real`, since all
    generators share the reals."""
    seen = params.benchmark.seen
    return {(generator, metric): {"generator": REAL if metric == "real_accuracy" else generator,
                                  "seen": generator == seen and metric != "real_accuracy", "view": view, "metric": metric}
            for generator, metric in array if metric != "real_accuracy" or generator == seen}


def compared(groups, baseline, params, view, metrics=METRICS, read=read_predictions):
    """(summary, paired_difference) in one pass over the draws."""
    drawn = {label: replicates(folders, params, view, metrics, read) for label, folders in groups.items()}
    return (summary(groups, params, view, metrics, read, drawn),
            paired_difference(groups, baseline, params, view, metrics, read, drawn))


def side_by_side(means, differences, keys):
    """Tables of `compared` to be read: a row for each value of the columns `keys`, for each method and difference the
    columns x, x_low, x_high."""
    parts = []
    for table, centre in ((means, "mean"), (differences, "difference")):
        for method in dict.fromkeys(table["method"]):
            rows = table[table["method"] == method].set_index(keys)
            name = method if centre == "mean" else f"{method}_minus_{rows['baseline'].iloc[0]}"
            parts.append(rows[[centre, "low", "high"]].set_axis([name, f"{name}_low", f"{name}_high"], axis=1))
    return pd.concat([*parts, rows[["seeds", "n"]]], axis=1).reset_index()


def paired_gap(groups, baseline, params, view=None):
    """How much larger the gain over `baseline` is on unseen generators than on the seen one, on the same draws of
    photographs and seeds; a row per method and metric."""
    view = view or params.evaluation.headline
    base = replicates(groups[baseline], params, view)
    rows = []
    for label, folders in groups.items():
        if label == baseline:
            continue
        own = replicates(folders, params, view)
        for metric in METRICS:
            gain = {name: own[name, metric] - base[name, metric] for name in (UNSEEN, params.benchmark.seen)}
            gap = over_seeds(gain[UNSEEN] - gain[params.benchmark.seen], params)
            low, high = bootstrap.interval(gap)
            rows.append({"method": label, "baseline": baseline, "view": view, "metric": metric, "gap": float(gap[0]),
                         "low": low, "high": high, "seeds": len(folders), "n": _images(folders, UNSEEN, params, view)})
    return pd.DataFrame(rows)


def control_rates(groups, params):
    """False-positive rate at the frozen threshold on real test images, untouched (`raw`) and harmlessly processed."""
    rows = []
    for label, folders in groups.items():
        for control in ["raw", *params.evaluation.controls]:
            rates = []
            for folder in folders:
                table = read_predictions(folder)
                real = table[(table["split"] == "test") & (table["generator"] == REAL) & (table["view"] == control)]
                weights = bootstrap.cluster_weights(real["cluster"], params.evaluation.bootstrap, params.seed)
                called = real["logit"].to_numpy() > calibration_of(table, params).threshold
                rates.append(bootstrap.weighted_rate(called, weights))
            mean = over_seeds(np.array(rates), params)
            low, high = bootstrap.interval(mean)
            rows.append({"method": label, "control": control, "false_positive_rate": float(mean[0]), "low": low,
                         "high": high, "seeds": len(folders), "n": len(real)})
    return pd.DataFrame(rows)


def value(mean, low=None, high=None, n=None, seeds=None, digits=3):
    """A number for prose and claims: its parts, and the text that a page shows."""
    text = f"{mean:.{digits}f}" if low is None else f"{mean:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"
    return {"value": float(mean), "low": low, "high": high, "n": n, "seeds": seeds, "text": text}
