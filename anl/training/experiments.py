"""The runs of an experiment: which there are, where they lie, and training those that are missing, several at a time.

Importing this module does not import torch, so that a command whose runs are all finished ends at once.
"""

import contextlib
import multiprocessing
import os
import platform
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import deque
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm.auto import tqdm

from anl import __version__
from anl.data.embedded import IDENTITIES, PUBLISHED
from anl.data.manifest import REAL
from anl.io import UserError, atomic_folder, read_json, reason, sha256_of, write_json

__all__ = ["CURVE", "WEIGHTS", "Run", "experiment_record", "experiment_runs", "missing_runs", "prior_folder", "read_curve",
           "run_folder", "run_inputs", "train_experiment"]

WEIGHTS, CURVE, RECORD = "detector.safetensors", "curve.csv", "run.json"
MADE_WITH = "identity.json"  # of a prior's or generator's folder: the settings it was trained with, and their hash
GRACE = 60.0  # seconds that a stopped worker has to finish its step and write a checkpoint


@dataclass(frozen=True)
class Run:
    """One variant of an experiment trained with one seed."""

    variant: str
    config: Any
    seed: int

    @property
    def name(self):
        """Name of its folder. Equal in all experiments that contain this variant, so that they share the run."""
        return f"{self.config.identity()}-s{self.seed}"


def run_folder(run, root="runs"):
    """Folder of a run."""
    return Path(root) / run.config.profile / run.name


def prior_folder(config, name="prior"):
    """Where a prior lies; a published one (`source`) leaves only its record there."""
    return Path(config.run.models) / "priors" / name


def run_inputs(config):
    """What a run is trained on besides its settings: the identities of its images and priors, as far as they are there."""
    found = {}
    for name in config.priors:
        with contextlib.suppress(UserError):
            found[name] = read_json(prior_folder(config, name) / MADE_WITH).get("identity")
    with contextlib.suppress(UserError):
        parts = read_json(Path(config.benchmark.folder) / IDENTITIES)
        found |= {part: parts[part] for part in (REAL, PUBLISHED, *config.benchmark.seen) if part in parts}
    return found


def experiment_runs(config, name, seeds=None):
    """The runs of an experiment, seed by seed, so that the first seed of all variants is complete early.

    `seeds` are by default those of each variant.
    """
    variants = config.variants(name)
    seeds_of = {variant: list(settings.seeds if seeds is None else seeds) for variant, settings in variants.items()}
    order = list(dict.fromkeys(seed for values in seeds_of.values() for seed in values))
    return [Run(variant, variants[variant], seed) for seed in order for variant in variants if seed in seeds_of[variant]]


def missing_runs(config, name, root="runs", seeds=None):
    """The runs of an experiment that are not finished, or cannot be read. Of equal variants one is listed."""
    unique = {run_folder(run, root): run for run in reversed(experiment_runs(config, name, seeds))}
    return [run for folder, run in reversed(unique.items()) if not _is_finished(folder, run)]


def _is_finished(folder, run):
    try:
        record = read_json(folder / RECORD)
    except UserError:
        return False
    known = isinstance(record, dict) and (record.get("identity"), record.get("seed")) == (run.config.identity(), run.seed)
    return known and run_inputs(run.config).items() <= record.get("inputs", {}).items()


def read_curve(folder):
    """The training curve of a run: step, learning_rate, losses, val_auroc where it was computed; empty if not trained."""
    path = Path(folder) / CURVE
    return pd.read_csv(path) if path.read_text(encoding="utf-8").strip() else pd.DataFrame({"step": [], "val_auroc": []})


def experiment_record(config, name, root="runs", seeds=None):
    """A DataFrame with a row for each finished run of an experiment, of its seeds and of `seeds`."""
    rows, listed = [], [*experiment_runs(config, name), *experiment_runs(config, name, seeds)]
    for run in {(run.variant, run.seed): run for run in listed}.values():
        folder = run_folder(run, root)
        if _is_finished(folder, run):
            curve = read_curve(folder)
            found = curve["val_auroc"].dropna() if "val_auroc" in curve else []
            rows.append({"variant": run.variant, "seed": run.seed, "run": run.name,
                         "steps": int(curve["step"].iloc[-1]) if len(curve) else 0, "sha256": sha256_of(folder / WEIGHTS),
                         "val_auroc": round(float(found.iloc[-1]), 6) if len(found) else None})
    return pd.DataFrame(rows)


def train_experiment(config, name, *, train_run, jobs=1, root="runs", seeds=None):
    """Train every variant and seed of an experiment that is not finished yet.

    Parameters
    ----------
    config, name, seeds
        See `experiment_runs`.
    train_run : callable (config, seed, folder)
        Trains one run and writes its files into `folder`, which appears when it is complete. It must be possible to
        pickle it. `run.json` is written here.
    jobs : int
        Processes, each of which trains one run after another with one thread, so that weights do not depend on `jobs`.
        0 trains in this process: under `accelerate launch`, whose processes share each run, or in a debugger.
    root : path-like
        Runs are in `root/<profile>/<variant identity>-s<seed>`.

    Returns
    -------
    dict of (str, int) to Path
        Folder of each (variant, seed).

    Raises
    ------
    UserError
        When a run fails: the others are stopped, leave their checkpoints, and go on when the command is run again.
    """
    if jobs < 0:
        raise UserError(f"--jobs {jobs} is negative; use 1 or more, or 0 to train in this process")
    missing = [(run, run_folder(run, root)) for run in missing_runs(config, name, root, seeds)]
    if jobs == 0:
        _train_here(missing, name, train_run)
    elif missing:
        _train_in_workers(missing, name, train_run, jobs)
    return {(run.variant, run.seed): run_folder(run, root) for run in experiment_runs(config, name, seeds)}


def _train_here(missing, experiment, train_run):
    """Train runs in this process, or in all processes of a launcher."""
    from accelerate.utils import broadcast_object_list

    from anl.training.device import make_accelerator

    make_accelerator()  # joins the other processes
    # the main process's list: a slow disk could show the others another one
    for run, folder in broadcast_object_list([missing])[0]:
        _train(run, folder, experiment, train_run)


def _train(run, folder, experiment, train_run):
    """Train one run in this process; the folder appears when all is written."""
    import torch
    from torch import distributed

    from anl.training.device import default_device

    shared, started = distributed.is_initialized(), time.monotonic()
    if shared and distributed.get_rank() > 0:  # the files are those of the main process
        with tempfile.TemporaryDirectory() as discarded:
            train_run(run.config, run.seed, Path(discarded))
    else:
        with atomic_folder(folder, replace=True) as temporary:
            train_run(run.config, run.seed, temporary)
            write_json(temporary / RECORD, {
                "identity": run.config.identity(), "inputs": run_inputs(run.config), "seed": run.seed, "variant": run.variant, "experiment": experiment,
                "profile": run.config.profile, "device": default_device(),
                "threads": torch.get_num_threads(), "processes": distributed.get_world_size() if shared else 1,
                "wall_seconds": time.monotonic() - started,
                "versions": {"anl": __version__, "torch": torch.__version__, "python": platform.python_version()}})
    if shared:
        distributed.barrier()


def _train_in_workers(missing, experiment, train_run, jobs):
    """Train runs in `jobs` processes; the first failure stops all."""
    from anl.training.device import keep_freed_memory

    keep_freed_memory()  # workers read it from their environment
    context = multiprocessing.get_context("spawn")  # CUDA and threads do not survive a fork
    waiting, working = deque(missing), {}
    bar = tqdm(total=len(missing), desc=f"{experiment}: runs", disable=None if len(missing) > 1 else True, file=sys.stderr)
    try:
        # one thread each; of several progress bars none could be read
        with _environment(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", **({"TQDM_DISABLE": "1"} if jobs > 1 else {})):
            for _ in range(min(jobs, len(missing))):
                connection, end = context.Pipe()
                worker = context.Process(target=_work, args=(end, experiment, train_run), daemon=True)
                worker.start()
                end.close()  # so that the worker's death ends the connection
                working[connection] = worker, *waiting[0]
                connection.send(waiting.popleft())
        while working:
            for connection in wait(list(working)):
                worker, run, _ = working[connection]
                if problem := _answer(connection, worker):
                    raise UserError(f"{run.variant}, seed {run.seed}: {problem}")
                bar.update()
                if waiting:
                    working[connection] = worker, *waiting[0]
                    connection.send(waiting.popleft())
                else:
                    del working[connection]
                    connection.close()
    finally:
        bar.close()
        _stop([(worker, folder) for worker, _, folder in working.values()])


def _work(connection, experiment, train_run):
    """Body of a worker: trains the runs it receives, and answers each with None or a line about what failed."""
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which stops the workers with SIGTERM
    torch.set_num_threads(1)
    with contextlib.suppress(EOFError):  # the parent closes the connection
        while True:
            run, folder = connection.recv()
            try:
                _train(run, folder, experiment, train_run)
                connection.send(None)
            except UserError as problem:
                connection.send(str(problem))
            except KeyboardInterrupt:
                sys.exit(130)
            except Exception as problem:
                traceback.print_exc()
                connection.send(f"{type(problem).__name__}: {reason(problem)}")


def _answer(connection, worker):
    """None if the worker's run is finished, or why it failed, in one line."""
    with contextlib.suppress(EOFError, ConnectionResetError):
        return connection.recv()
    worker.join()
    if worker.exitcode < 0:
        hint = ", perhaps out of memory; lower --jobs" if -worker.exitcode == signal.SIGKILL else ""
        return f"its process was killed ({signal.Signals(-worker.exitcode).name}{hint}); run the same command to continue"
    return f"its process ended with status {worker.exitcode}; run the same command to continue"


def _stop(workers):
    """Ask workers to stop, which lets a training write its checkpoint; end those that do not."""
    for worker, _ in workers:
        worker.terminate()
    limit = time.monotonic() + GRACE
    for worker, folder in workers:
        worker.join(max(0.0, limit - time.monotonic()))
        if worker.is_alive():
            worker.kill()
            worker.join()
        for unfinished in folder.parent.glob(f".{folder.name}.*.new"):  # of a killed worker
            shutil.rmtree(unfinished, ignore_errors=True)


@contextlib.contextmanager
def _environment(**values):
    """Environment variables of the processes started inside."""
    before = os.environ.copy()
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
