"""The runs of an experiment: list them, locate their folders, and train the missing ones in parallel.

Importing this module does not import torch, so that a command whose runs are all finished ends quickly.
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
from anl.data import REAL
from anl.data.embedded import IDENTITIES, PUBLISHED
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
        """Name of the run's folder. It is the same in all experiments that contain this variant, so that they share the run."""
        return f"{self.config.identity()}-s{self.seed}"


def run_folder(run, root="runs"):
    """Folder of a run."""
    return Path(root) / run.config.profile / run.name


def prior_folder(config, name="prior"):
    """Folder of a prior. That of a published prior (`source`) contains only its record."""
    return Path(config.run.models) / "priors" / name


def run_inputs(config):
    """Identities of the images and priors that a run is trained on. Those that do not exist yet are left out."""
    found = {}
    for name in config.priors:
        with contextlib.suppress(UserError):
            found[name] = read_json(prior_folder(config, name) / MADE_WITH).get("identity")
    with contextlib.suppress(UserError):
        parts = read_json(Path(config.benchmark.folder) / IDENTITIES)
        found |= {part: parts[part] for part in (REAL, PUBLISHED, *config.benchmark.seen) if part in parts}
    return found


def experiment_runs(config, name, seeds=None):
    """The runs of an experiment, a list of `Run`, ordered by seed so that the first seed of all variants finishes early.

    `seeds` replaces the seeds of each variant.
    """
    variants = config.variants(name)
    seeds_of = {variant: list(settings.seeds if seeds is None else seeds) for variant, settings in variants.items()}
    order = list(dict.fromkeys(seed for values in seeds_of.values() for seed in values))
    return [Run(variant, variants[variant], seed) for seed in order for variant in variants if seed in seeds_of[variant]]


def missing_runs(config, name, root="runs", seeds=None):
    """The runs of an experiment that are not finished or cannot be read. A run that several variants share is listed once."""
    unique = {run_folder(run, root): run for run in reversed(experiment_runs(config, name, seeds))}
    return [run for folder, run in reversed(unique.items()) if not _is_finished(folder, run)]


def _is_finished(folder, run):
    try:
        record = read_json(folder / RECORD)
    except UserError:
        return False
    known = isinstance(record, dict) and (record.get("identity"), record.get("seed")) == (run.config.identity(), run.seed)
    return known and run_inputs(run.config).items() <= (record.get("inputs") or {}).items()


def read_curve(folder):
    """The training curve of a run: step, learning_rate, losses, val_auroc where computed. Empty for a method without training."""
    path = Path(folder) / CURVE
    return pd.read_csv(path) if path.read_text(encoding="utf-8").strip() else pd.DataFrame({"step": [], "val_auroc": []})


def experiment_record(config, name, root="runs", seeds=None):
    """A DataFrame with a row per finished run of an experiment. `seeds` are included in addition to those of its variants."""
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


def trained_twice(record, folder):
    """Names of runs that other experiments list with other weights: they were trained again since, by other code or elsewhere.

    record: of `experiment_record`. folder: holds the records of all experiments of a profile, NAME.csv.
    """
    own, found = dict(zip(record.get("run", []), record.get("sha256", []))), set()
    for path in sorted(Path(folder).glob("*.csv")):
        other = pd.read_csv(path, dtype=str)
        found |= {run for run, weights in zip(other.get("run", []), other.get("sha256", [])) if own.get(run, weights) != weights}
    return sorted(found)


def train_experiment(config, name, *, train_run, jobs=1, root="runs", seeds=None):
    """Train every variant and seed of an experiment that is not finished yet.

    Parameters
    ----------
    config, name, seeds
        See `experiment_runs`.
    train_run : callable (config, seed, folder)
        Trains one run and writes its files into `folder`, which is temporary and renamed when the run is complete. Must be
        picklable. `run.json` is written by `train_experiment`.
    jobs : int
        Number of worker processes. Each trains one run at a time with one thread, so weights do not depend on `jobs`.
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
        If `jobs` is negative or a run fails. The other runs are then stopped and write checkpoints; the same command
        resumes them.
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
    # all use the list of the main process: on a slow shared disk the others could find other runs missing
    for run, folder in broadcast_object_list([missing])[0]:
        _train(run, folder, experiment, train_run)


def _train(run, folder, experiment, train_run):
    """Train one run in this process; its folder is created only when the run is complete."""
    import torch
    from torch import distributed

    from anl.training.device import default_device, processor_name

    shared, started = distributed.is_initialized(), time.monotonic()
    if shared and distributed.get_rank() > 0:  # only the main process keeps its files
        with tempfile.TemporaryDirectory() as discarded:
            train_run(run.config, run.seed, Path(discarded))
    else:
        with atomic_folder(folder, replace=True) as temporary:
            train_run(run.config, run.seed, temporary)
            write_json(temporary / RECORD, {
                "identity": run.config.identity(), "inputs": run_inputs(run.config), "seed": run.seed, "variant": run.variant, "experiment": experiment,
                "profile": run.config.profile, "device": default_device(), "processor": processor_name(),
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
        # one thread per worker, and no progress bars if several would overwrite each other
        with _environment(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", **({"TQDM_DISABLE": "1"} if jobs > 1 else {})):
            for _ in range(min(jobs, len(missing))):
                connection, end = context.Pipe()
                worker = context.Process(target=_work, args=(end, experiment, train_run), daemon=True)
                worker.start()
                end.close()  # so that recv raises EOFError if the worker dies
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
    """Body of a worker: trains the runs that it receives; sends None for each that succeeds, else an error message."""
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
    """None if the worker finished its run, otherwise an error message of one line."""
    with contextlib.suppress(EOFError, ConnectionResetError):
        return connection.recv()
    worker.join()
    if worker.exitcode < 0:
        hint = ", perhaps out of memory; lower --jobs" if -worker.exitcode == signal.SIGKILL else ""
        return f"its process was killed ({signal.Signals(-worker.exitcode).name}{hint}); run the same command to continue"
    return f"its process ended with status {worker.exitcode}; run the same command to continue"


def _stop(workers):
    """Terminate workers, so that each writes a checkpoint; kill those that still run after GRACE seconds."""
    for worker, _ in workers:
        worker.terminate()
    limit = time.monotonic() + GRACE
    for worker, folder in workers:
        worker.join(max(0.0, limit - time.monotonic()))
        if worker.is_alive():
            worker.kill()
            worker.join()
        for unfinished in folder.parent.glob(f".{folder.name}.*.new"):  # left by a killed worker
            shutil.rmtree(unfinished, ignore_errors=True)


@contextlib.contextmanager
def _environment(**values):
    """Set environment variables for processes that are started in this context."""
    before = os.environ.copy()
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
