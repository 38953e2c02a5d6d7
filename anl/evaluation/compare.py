"""From per-image scores to the table that a notebook shows: means, paired differences, intervals, and "best of"."""

import itertools
from typing import NamedTuple

import numpy as np
import pandas as pd

from anl.data import REAL
from anl.evaluation import bootstrap
from anl.evaluation.calibration import Calibration, as_list, calibrate_run, thresholds, validation_rows
from anl.evaluation.metrics import CALIBRATED, THRESHOLDED, Sample, Scores, check, metric, paired_wins
from anl.io import UserError

UNSEEN = "unseen"
METRICS = ("auroc", "pairwise_accuracy", "average_precision", "balanced_accuracy")
COLUMNS = ["variant", "seed", "image_id", "group", "pair", "generator", "split", "view", "label", "logit"]
TABLE_COLUMNS = ["variant", "generator", "view", "metric", "mean", "low", "high", "difference", "difference_low",
                 "difference_high", "p", "seeds", "n"]  # of `compare`
REDRAWN = 512  # replicates whose thresholds are computed at a time
CHUNK = 2**19  # images times replicates that are processed at a time, so that they fit into the processor's cache


class Measured(NamedTuple):
    """Metrics of every variant and seed with their bootstrap replicates. All share the same draws of photographs.

    Attributes
    ----------
    values : dict
        (variant, generator, view, metric) -> array (seeds,).
    replicates : dict
        The same keys -> array (seeds, R).
    seeds : dict
        variant -> tuple of its seeds, in the order of the arrays.
    photographs : dict
        (generator, view) -> (number of groups, number of bootstrap strata among them).
    """

    values: dict
    replicates: dict
    seeds: dict
    photographs: dict

    def contrast(self, weights, level=0.95):
        """Interval of a weighted sum of metrics, for example {method: 1, baseline: -1} with keys of `values`.

        Raises
        ------
        UserError
            If the variants differ in their seeds, because seeds are paired.
        """
        variants = [key[0] for key in weights]
        if other := next((name for name in variants if self.seeds[name] != self.seeds[variants[0]]), None):
            raise UserError(f"'{variants[0]}' has the seeds {_listed(self.seeds[variants[0]])} and '{other}' "
                            f"{_listed(self.seeds[other])}; compare variants with the same seeds")
        values = sum(weight * self.values[key] for key, weight in weights.items())
        replicates = sum(weight * self.replicates[key] for key, weight in weights.items())
        groups, strata = max(self.photographs[key[1:3]] for key in weights)
        return bootstrap.interval(values, replicates, groups, strata=strata, level=level)


class Best(NamedTuple):
    """Result of `best_of`.

    Attributes
    ----------
    verdict : str
        `best`: the intervals of all differences from rivals are above zero. `not best`: a rival is significantly better.
        `undecided`: neither.
    above, below : int
        Number of rivals that the candidate is significantly better and worse than. These numbers and `not best` use Holm's
        correction.
    table : DataFrame
        A row per rival: rival, difference (candidate minus rival), low, high, p, p_holm, seeds, n.
    """

    verdict: str
    above: int
    below: int
    table: pd.DataFrame


def compare(scores, baseline=None, *, metrics=METRICS, seen, disjoint=None, views=None, replicates=1000, seed=0,
            target_fpr=0.05, held_out=(), level=0.95):
    """Tidy table of metrics with intervals over photographs and seeds, and paired differences from a baseline.

    Parameters
    ----------
    scores : DataFrame
        A row per variant, seed, view and image: the columns COLUMNS. Test rows are measured; threshold and temperature
        come from validation rows of the same run (view `raw`, reals and seen generators).
    baseline : str, optional
        Variant that the others are compared with.
    metrics : sequence of str
        Names of `anl.evaluation.metrics.METRICS`. `fpr` has one row, of generator `real`.
    seen : str or list of str
        Generators in training.
    disjoint : dict, optional
        generator -> trained model that it uses; by default every generator counts as a separate model. The row of generator
        `unseen` is a mean over the models that no seen or held-out generator uses. The value of a model is the mean over its generators;
        for `pairwise_accuracy`, over those that have pairs.
    views : sequence of str, optional
        By default all views of the test images.
    replicates, seed : int
        Number of replicates and base seed of the bootstrap.
    target_fpr : float
        False-positive rate of the threshold on validation reals. Intervals of metrics at the threshold also cover the
        draw of the validation photographs; those of metrics at the temperature do not.
    held_out : sequence of str
        Generators whose validation images were used to choose between runs: not trained on, but not unseen either.
    level : float
        Nominal coverage of the intervals.

    Returns
    -------
    DataFrame
        variant, generator, view, metric, mean, low, high, difference, difference_low, difference_high, p, seeds, n:
        p is the two-sided p-value of no difference, not corrected for several comparisons (see `holm`); n is the number of
        photographs (groups); the differences and p are NaN for the baseline.

    Raises
    ------
    UserError
        If a column is missing, the baseline is unknown, or variants were scored on different images or have different seeds.
    """
    measured = measure(scores, metrics=metrics, seen=seen, disjoint=disjoint, views=views, replicates=replicates,
                       seed=seed, target_fpr=target_fpr, held_out=held_out)
    if baseline is not None and baseline not in measured.seeds:
        raise UserError(f"baseline '{baseline}' has no scores; choose one of {_listed(measured.seeds)}")
    keys = list(measured.values)
    table = pd.DataFrame(keys, columns=["variant", "generator", "view", "metric"])
    own = bootstrap.stack([measured.contrast({key: 1}, level) for key in keys])
    unbounded = table["metric"] == "nll"  # no other metric can leave [0, 1]
    table["mean"] = own.mean
    for name, end in (("low", own.low), ("high", own.high)):
        table[name] = np.where(unbounded, end, np.clip(end, 0, 1))
    table[["difference", "difference_low", "difference_high", "p"]] = np.nan
    others = [(baseline, *key[1:]) for key in keys]
    paired = [place for place, (key, other) in enumerate(zip(keys, others)) if key != other and other in measured.values]
    if paired:
        change = bootstrap.stack([measured.contrast({keys[place]: 1, others[place]: -1}, level) for place in paired])
        table.loc[paired, "difference":"p"] = np.column_stack([change.mean, change.low, change.high, change.p_value])
    table["seeds"] = [len(measured.seeds[key[0]]) for key in keys]
    table["n"] = [measured.photographs[key[1:3]][0] for key in keys]
    return table


def best_of(table, candidate, rivals=None, *, metric="auroc", generator=UNSEEN, view="matched", level=0.95):
    """Whether a variant is better than all its rivals.

    `best` needs no correction, because every pairwise interval must be above zero (intersection-union test, Berger 1982).

    Parameters
    ----------
    table : DataFrame
        Result of `compare` with the candidate as baseline.
    candidate : str
    rivals : list of str, optional
        By default all other variants of the table.
    metric, generator, view : str
        The rows of the table that are used.
    level : float
        Nominal coverage of the table's intervals.

    Returns
    -------
    Best

    Raises
    ------
    UserError
        If these rows lack the difference between a rival and the candidate.

    References
    ----------
    Berger, Technometrics 24(4), 1982. Holm, Scandinavian Journal of Statistics 6(2), 1979.
    """
    rows = table[(table["metric"] == metric) & (table["generator"] == generator) & (table["view"] == view)].set_index("variant")
    rivals = [name for name in rows.index if name != candidate] if rivals is None else list(rivals)
    known = rows.index[rows["difference"].notna()]
    if unknown := [name for name in rivals or ["any rival"] if name not in known]:
        raise UserError(f"the table has no difference between '{candidate}' and '{unknown[0]}' in {metric} on {generator}, view "
                        f"{view}; choose rivals from {_listed(known)}")
    rows = rows.loc[rivals]
    found = pd.DataFrame({"rival": rivals, "difference": -rows["difference"], "low": -rows["difference_high"],
                          "high": -rows["difference_low"], "p": rows["p"], "p_holm": holm(rows["p"]), "seeds": rows["seeds"],
                          "n": rows["n"]}).reset_index(drop=True)
    above, below = ((found["p_holm"] < 1 - level) & (sign * found["difference"] > 0) for sign in (1, -1))
    verdict = "best" if (found["low"] > 0).all() else "not best" if below.any() else "undecided"
    return Best(verdict, int(above.sum()), int(below.sum()), found)


def holm(p_values):
    """p-values adjusted by Holm's method for the family-wise error rate. NaN stays NaN but counts as a comparison."""
    p = np.asarray(p_values, float)
    order = np.argsort(p)  # NaN last
    adjusted = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    result = np.empty_like(p)
    result[order] = np.minimum(adjusted, 1)
    return result


def measure(scores, *, metrics=METRICS, seen, disjoint=None, views=None, replicates=1000, seed=0, target_fpr=0.05,
            held_out=(), stream=()):
    """Every metric of every variant, seed, generator and view, with bootstrap replicates; parameters as of `compare`.

    stream: as of `anl.evaluation.bootstrap.draw_groups`, for the test images.

    Returns
    -------
    Measured
    """
    if missing := [name for name in COLUMNS if name not in scores]:
        raise UserError(f"the scores lack the column '{missing[0]}'; score the detectors again")
    functions = {name: metric(name) for name in metrics}
    test = scores[scores["split"] == "test"]
    views = list(test["view"].unique()) if views is None else list(views)
    if absent := [view for view in views if not (test["view"] == view).any()]:
        raise UserError(f"no test image was scored in view '{absent[0]}'; choose from {_listed(test['view'].unique())}")
    test = test[test["view"].isin(views)]
    check(test["label"].to_numpy(), test["logit"].to_numpy(float))
    fixed = _calibrations(scores, test, seen, target_fpr) if functions.keys() & CALIBRATED else {}
    redrawn = _redrawn_thresholds(scores, fixed, target_fpr, replicates, seed) if functions.keys() & THRESHOLDED else {}
    kinds = test[["group", "generator", "view"]].drop_duplicates()
    draws = bootstrap.draw_groups(kinds["group"], replicates, seed, kinds["generator"], stream)
    means = _models(test["generator"].unique(), [*as_list(seen), *held_out], disjoint or {})
    found, images = {}, {}  # found: (variant, view) -> {seed: metrics}
    generators, rows = _coded(test)
    for (variant, run, view), part in rows.groupby([test["variant"], test["seed"], test["view"]], sort=False, observed=True):
        columns = {name: values.to_numpy() for name, values in part.sort_values(["image", "generator"], kind="stable").items()}
        image = columns["image"]
        if (image[1:] == image[:-1]).any():
            raise UserError(f"'{variant}' seed {run} scored an image twice in view '{view}'; score it again")
        if not np.array_equal(images.setdefault(view, image), image):
            raise UserError(f"'{variant}' seed {run} was scored on other images than the first variant in view "
                            f"'{view}'; score all variants on the same benchmark")
        samples = _by_generator(columns, generators, len(draws.names), fixed.get((variant, run), Calibration(0.0, 1.0)))
        found.setdefault((variant, view), {})[run] = _measured(samples, functions, draws.counts, means, redrawn.get((variant, run)))

    names = list(test["variant"].unique())
    seeds = {name: tuple(sorted({run for view in views for run in found.get((name, view), ())})) for name in names}
    values, drawn = {}, {}
    for name, view in itertools.product(names, views):
        runs = found.pop((name, view), {})
        if runs and len(runs) < len(seeds[name]):
            raise UserError(f"'{name}' lacks the view '{view}' for some of its seeds; score them again")
        for key in runs[seeds[name][0]] if runs else ():
            stacked = np.stack([runs[run][key] for run in seeds[name]])  # (seeds, 1 + R)
            values[name, key[0], view, key[1]], drawn[name, key[0], view, key[1]] = stacked[:, 0], stacked[:, 1:]
    return Measured(values, drawn, seeds, _photographs(kinds, means, draws))


def _photographs(kinds, means, draws):
    """{(generator, view): (groups, strata)} of the reals plus the images of a generator, or plus those of all unseen ones."""
    sizes = {}
    for view, rows in kinds.groupby("view", sort=False, observed=True):
        present = rows["generator"].unique()
        unseen = [name for model in means for name in model if name in present]
        for title, names in {**{name: [name] for name in present}, **({UNSEEN: unseen} if unseen else {})}.items():
            sizes[title, view] = draws.size(rows.loc[rows["generator"].isin([REAL, *names]), "group"])
    return sizes


def _measured(samples, functions, counts, means, redrawn=None):
    """(generator, metric) -> array (1 + R,), the metric itself and its replicates, of one run in one view.

    redrawn: threshold of each replicate, (R,), instead of the one of the samples.
    """
    found = {}
    reals = samples.get(REAL)
    images = max(max(len(sample.real), len(sample.fake)) for sample in samples.values())
    step = max(16, CHUNK // max(images, 1))
    # the metric itself, then the replicates in chunks; each chunk is used for all generators
    places = [slice(start, start + step) for start in range(0, counts.shape[1], step)]
    chunks = [(np.ones((len(counts), 1)), None), *((counts[:, place], None if redrawn is None else redrawn[place]) for place in places)]
    for chunk, threshold in chunks:
        for generator, sample in samples.items():
            sample.threshold = sample.threshold if threshold is None else threshold
            for name, function in functions.items():
                if (name == "fpr") == (sample is reals):
                    found.setdefault((generator, name), []).append(function(sample, chunk))
    found = {key: np.concatenate(parts) for key, parts in found.items()}
    for name in functions:
        models = []
        for generators in means:
            own = [found[generator, name] for generator in generators if (generator, name) in found]
            own = [values for values in own if not np.isnan(values[0])]
            models += [np.mean(own, axis=0)] if own else []
        if models:
            found[UNSEEN, name] = np.mean(models, axis=0)
        elif name != "fpr" and any(generator in samples for generators in means for generator in generators):
            found[UNSEEN, name] = np.full(counts.shape[1] + 1, np.nan)
    return found


def _coded(test):
    """Sorted names of the generators, and the test rows with names replaced by integer codes."""
    generators, index = np.unique(test["generator"].to_numpy(str), return_inverse=True)
    return generators, pd.DataFrame({
        "image": pd.factorize(test["image_id"], sort=True)[0], "group": pd.factorize(test["group"], sort=True)[0],
        "pair": np.where(test["pair"].astype(str) == "", -1, pd.factorize(test["pair"])[0]), "generator": index,
        "label": test["label"].to_numpy(), "logit": test["logit"].to_numpy()}, index=test.index)


def _by_generator(columns, generators, groups, fixed):
    """{generator: Sample} of one run; the reals are sorted once. The sample of `real` contains only the reals."""
    label, logit, group, pair = (columns[name] for name in ("label", "logit", "group", "pair"))
    is_real = label == 0
    real, samples = Scores(logit[is_real], group[is_real]), {}
    for place, generator in enumerate(generators):
        mine = (columns["generator"] == place) & ~is_real
        both = mine | is_real
        if mine.any() or generator == REAL:
            wins = paired_wins(label[both], logit[both], group[both], pair[both])
            samples[generator] = Sample(real, Scores(logit[mine], group[mine]), groups=groups, wins=wins,
                                        threshold=fixed.threshold, temperature=fixed.temperature)
    return samples


def _calibrations(scores, test, seen, target_fpr):
    """{(variant, seed): Calibration} from validation rows. Raises UserError naming a run that has none."""
    fixed = {}
    validation = scores[scores["split"] == "val"]
    parts = dict(iter(validation.groupby(["variant", "seed"], sort=False, observed=True)))
    for variant, run in test[["variant", "seed"]].drop_duplicates().itertuples(index=False):
        try:
            fixed[variant, run] = calibrate_run(parts.get((variant, run), validation.iloc[:0]), seen, target_fpr)
        except UserError as problem:
            raise UserError(f"'{variant}' seed {run}: {problem}") from None
    return fixed


def _redrawn_thresholds(scores, fixed, target_fpr, replicates, seed):
    """{(variant, seed): array (R,)}: the threshold in each replicate, from validation photographs drawn with replacement.

    All runs share the draws, so that paired differences of metrics at a threshold cover its uncertainty, too.
    """
    real = validation_rows(scores, [REAL])
    draws = bootstrap.draw_groups(real["group"].unique(), replicates, seed, stream=("validation",))
    group = pd.Series(np.searchsorted(draws.names, real["group"].astype(str)), real.index)
    found = {}
    for key, part in real.groupby(["variant", "seed"], sort=False, observed=True):
        if key in fixed:
            ordered = Scores(part["logit"].to_numpy(float), group[part.index].to_numpy())
            found[key] = np.concatenate([thresholds(ordered, target_fpr, draws.counts[:, start:start + REDRAWN])
                                         for start in range(0, replicates, REDRAWN)])
    return found


def _models(generators, seen, disjoint):
    """Generators as lists, one list per trained model that none of the `seen` ones uses."""
    used, models = {disjoint.get(name, name) for name in seen}, {}
    for name in generators:
        model = disjoint.get(name, name)
        if name != REAL and model not in used:
            models.setdefault(model, []).append(name)
    return list(models.values())


def _listed(names):
    return ", ".join(str(name) for name in names)
