"""Scores of trained runs and of whole experiments; what is missing is trained and scored first."""

import pandas as pd
from tqdm.auto import tqdm

from anl.evaluation.scoring import score_benchmark
from anl.evaluation.tables import read_scores, scores_identity, scores_key, scores_name, scores_path, write_scores
from anl.io import identity, sha256_of
from anl.training.device import default_device
from anl.training.experiments import WEIGHTS, run_folder
from anl.training.runs import IN_MEMORY, load_run, open_benchmark, train


def _score_run(run, folder, benchmark, device, test_set, treated):
    """Scores of one run on validation and test images, kept in its folder."""
    config, evaluation = run.config, run.config.evaluation
    options = {"seen": config.benchmark.seen, "views": evaluation.views, "controls": evaluation.controls,
               "mirrored": evaluation.mirrored, "formats": config.benchmark.formats, "seed": config.seed}
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
    """Per-image scores of all runs of an experiment, on another data set if `test_set` names one; what is missing is trained.

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


def write_experiment(config, name):
    """Score an experiment, on each of the profile's data sets, and write one table for each; returns the paths."""
    paths = []
    for test_set in (None, *config.benchmark.test_sets):
        paths.append(scores_path(config, name, test_set))
        write_scores(paths[-1], experiment_scores(config, name, test_set=test_set), scores_identity(config, name))
    return paths
