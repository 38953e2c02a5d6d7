"""Scores of trained runs and of whole experiments. Runs that are missing are trained and scored first."""

import pandas as pd
from sklearn.metrics import roc_auc_score
from tqdm.auto import tqdm

from anl.data import REAL
from anl.evaluation.scoring import score_benchmark
from anl.evaluation.tables import read_scores, scores_identity, scores_key, scores_name, scores_path, write_scores
from anl.io import identity, sha256_of
from anl.training.device import default_device
from anl.training.experiments import WEIGHTS, experiment_runs, run_folder
from anl.training.runs import IN_MEMORY, load_run, open_benchmark, train


def _score_run(run, folder, benchmark, device, test_set, treated):
    """Scores of one run on validation and test images, cached in its folder."""
    config, evaluation = run.config, run.config.evaluation
    options = {"seen": config.benchmark.seen, "views": evaluation.views, "controls": evaluation.controls,
               "mirrored": evaluation.mirrored, "seed": config.seed}
    if config.benchmark.held_out:
        options["held_out"] = config.benchmark.held_out
    images = benchmark.rows[["image_id", "sha256"]].to_numpy().tolist()
    key = identity({"weights": sha256_of(folder / WEIGHTS), "images": images, **options})
    path = folder / f"{scores_name('scores', test_set)}.parquet"
    path = next((known for known in (path, *folder.glob("scores*.parquet")) if scores_key(known) == key), path)
    if scores_key(path) != key:
        table = score_benchmark(load_run(folder, config, device), benchmark.rows, benchmark.array, variant=run.variant,
                                run_seed=run.seed, device=device, batch_size=config.run.batch_size, treated=treated, **options)
        write_scores(path, table, key)
    return read_scores(path).assign(variant=run.variant, seed=run.seed)


def experiment_scores(config, name, *, seeds=None, test_set=None):
    """Per-image scores of all runs of an experiment. Missing runs are trained first.

    Parameters
    ----------
    config : anl.config.Config
    name : str
        A key of `config.experiments`.
    seeds : list of int, optional
        Default: those of the experiment.
    test_set : str, optional
        Data set whose test images are scored; see `anl.training.runs.open_benchmark`.

    Returns
    -------
    DataFrame
        Columns `anl.evaluation.compare.COLUMNS`.
    """
    runs = train(config, name, seeds=seeds)
    device, shared, treated, tables = default_device(), {}, None, []
    for run in tqdm(runs, desc=f"scores {name}", disable=None):
        key = identity([run.config.benchmark.model_dump(), run.config.seed, run.config.evaluation.model_dump()])
        if key not in shared:
            benchmark = open_benchmark(run.config, test_set)
            small = len(benchmark.rows) * benchmark.size**2 * 3 < IN_MEMORY / 8
            shared, treated = {key: benchmark}, {} if small else None
        tables.append(_score_run(run, run_folder(run, config.run.runs), shared[key], device, test_set, treated))
    return pd.concat(tables, ignore_index=True)


def validation_auroc(config, scores):
    """AUROC of each run on validation images, by default of generators that it was not trained on, against real ones.

    Parameters
    ----------
    config : anl.config.Config
    scores : DataFrame
        Result of `experiment_scores`.

    Returns
    -------
    DataFrame
        variant, seed, generator, view, auroc: a row for each generator of `benchmark.held_out` and each view in which
        validation images were scored. If `held_out` is empty, the seen generators are used.
    """
    val, rows = scores[scores["split"] == "val"], []
    for (variant, seed, view), part in val.groupby(["variant", "seed", "view"], sort=False, observed=True):
        for generator in config.benchmark.held_out or config.benchmark.seen:
            both = part[part["generator"].isin([REAL, generator])]
            rows.append({"variant": variant, "seed": seed, "generator": generator, "view": view,
                         "auroc": roc_auc_score(both["label"], both["logit"])})
    return pd.DataFrame(rows)


def best_run(config, name, variant=None):
    """Folder of the run with the highest mean of `validation_auroc` in an experiment, or in one of its variants.

    Missing runs are trained and scored.
    """
    scores = experiment_scores(config, name)
    scores = scores if variant is None else scores[scores["variant"] == variant]
    best = validation_auroc(config, scores).groupby(["variant", "seed"], sort=False)["auroc"].mean().idxmax()
    return run_folder(next(run for run in experiment_runs(config, name) if (run.variant, run.seed) == best), config.run.runs)


def write_experiment(config, name):
    """Score an experiment on each data set of the profile, and write one table per data set; return their paths."""
    paths = []
    for test_set in (None, *config.benchmark.test_sets):
        paths.append(scores_path(config, name, test_set))
        write_scores(paths[-1], experiment_scores(config, name, test_set=test_set), scores_identity(config, name))
    return paths
