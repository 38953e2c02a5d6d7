"""Training all variants and seeds of an experiment, several at a time, resumably."""

import contextlib
import multiprocessing
import os
import platform
import resource
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

import torch
from torch import distributed
from tqdm.auto import tqdm

from anl import __version__
from anl.io import UserError, atomic_folder, peak_memory_mb, read_json, reason, write_json
from anl.training.device import keep_freed_memory

__all__ = ["Run", "experiment_runs", "is_finished", "run_folder", "run_name", "train_experiment"]

RECORD = "run.json"
GRACE = 60.0  # seconds that a stopped worker has to finish its step and write a checkpoint


@dataclass(frozen=True)
class Run:
    """One variant trained with one seed.

    Attributes
    ----------
    variant : str
        Name within its experiment.
    config : anl.config.Config
        Of the variant.
    seed : int
    """

    variant: str
    config: Any
    seed: int

    @property
    def name(self):
        """Name of its folder. Equal in all experiments that contain this variant, so that they share the run."""
        return run_name(self.config, self.seed)


def run_name(config, seed):
    """Name of a run: the identity of its variant and the seed."""
    return f"{config.identity()}-s{seed}"


def train_experiment(config, name, *, train_run, jobs=1, root="runs", seeds=None):
    """Train every variant and seed of an experiment that is not finished yet.

    Each run is trained in a separate process with one thread, so that its weights do not depend on `jobs`. Its folder
    appears when it is complete.

    Parameters
    ----------
    config : anl.config.Config
    name : str
        A key of `config.experiments`.
    train_run : callable (config, seed, folder)
        Trains one run and writes its files into `folder`; a module-level function, or another object that can be
        pickled. `run.json` is written here.
    jobs : int
        Runs trained at a time. 0 trains in this process, one after another: under `accelerate launch`, whose processes
        share each run, or in a debugger.
    root : path-like
        Runs are in `root/<profile>/<variant identity>-s<seed>`.
    seeds : list of int or None
        Default: `config.seeds` of each variant.

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
    runs = experiment_runs(config, name, seeds)
    folders = {(run.variant, run.seed): run_folder(run, root) for run in runs}
    unique = {run_folder(run, root): run for run in reversed(runs)}  # of equal variants one is trained
    missing = _agreed([(run, folder) for folder, run in reversed(unique.items()) if not is_finished(folder, run)])
    if jobs == 0:
        for run, folder in missing:
            _train(run, folder, name, train_run)
    else:
        _train_in_workers(missing, name, train_run, jobs)
    return folders


def experiment_runs(config, name, seeds=None):
    """The runs of an experiment, seed by seed, so that the first seed of all variants is complete early."""
    variants = config.variants(name)
    seeds_of = {variant: list(seeds if seeds is not None else settings.seeds) for variant, settings in variants.items()}
    order = list(dict.fromkeys(seed for values in seeds_of.values() for seed in values))
    return [Run(variant, variants[variant], seed) for seed in order for variant in variants if seed in seeds_of[variant]]


def run_folder(run, root="runs"):
    """Folder of a run."""
    return Path(root) / run.config.profile / run.name


def is_finished(folder, run):
    """Whether a folder holds a complete run with the identity of `run`. One that cannot be read is trained again."""
    try:
        record = read_json(Path(folder) / RECORD)
    except UserError:
        return False
    return isinstance(record, dict) and record.get("identity") == run.config.identity() and record.get("seed") == run.seed


def _train(run, folder, experiment, train_run):
    """Train one run in this process; the folder appears when all is written."""
    main = not distributed.is_initialized() or distributed.get_rank() == 0
    started, worked = time.monotonic(), time.process_time()
    if not main:  # its files are those of the main process
        with tempfile.TemporaryDirectory() as discarded:
            train_run(run.config, run.seed, Path(discarded))
        distributed.barrier()
        return
    with atomic_folder(folder, replace=True) as temporary:
        train_run(run.config, run.seed, temporary)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        write_json(temporary / RECORD, {
            "identity": run.config.identity(), "seed": run.seed, "variant": run.variant, "experiment": experiment,
            "profile": run.config.profile, "device": device, "threads": torch.get_num_threads(),
            "processes": distributed.get_world_size() if distributed.is_initialized() else 1,
            "wall_seconds": time.monotonic() - started, "cpu_seconds": time.process_time() - worked,
            "peak_memory_mb": peak_memory_mb(resource.getrusage(resource.RUSAGE_SELF)),
            "versions": {"anl": __version__, "torch": torch.__version__, "python": platform.python_version()}})
    if distributed.is_initialized():
        distributed.barrier()


def _agreed(missing):
    """The main process's list of runs, in all processes: a slow disk could show them different folders."""
    if not distributed.is_initialized():
        return missing
    found = [missing]
    distributed.broadcast_object_list(found)
    return found[0]


def _train_in_workers(missing, experiment, train_run, jobs):
    """Train runs in `jobs` processes at a time; the first failure stops the others."""
    keep_freed_memory()  # workers read it from their environment
    waiting, working = deque(missing), {}
    context = multiprocessing.get_context("spawn")  # CUDA and threads do not survive a fork
    bar = tqdm(total=len(missing), desc=f"{experiment}: runs", disable=None if len(missing) > 1 else True, file=sys.stderr)
    try:
        while waiting or working:
            while waiting and len(working) < jobs:
                run, folder = waiting.popleft()
                receiver, sender = context.Pipe(duplex=False)
                worker = context.Process(target=_work, args=(run, folder, experiment, train_run, sender), daemon=True)
                # one thread each; of several progress bars none could be read
                with _environment(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", **({"TQDM_DISABLE": "1"} if jobs > 1 else {})):
                    worker.start()
                sender.close()
                working[worker.sentinel] = worker, receiver, run, folder
            for sentinel in wait(list(working)):
                worker, receiver, run, folder = working.pop(sentinel)
                worker.join()
                bar.update()
                if worker.exitcode != 0:
                    _clean(folder)
                    raise UserError(f"{run.variant}, seed {run.seed}: {_failure(worker.exitcode, receiver)}")
    finally:
        bar.close()
        _stop([(worker, folder) for worker, _, _, folder in working.values()])


def _work(run, folder, experiment, train_run, sender):
    """Body of a worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which stops the workers with SIGTERM
    torch.set_num_threads(1)
    try:
        _train(run, folder, experiment, train_run)
    except UserError as problem:
        sender.send(str(problem))
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as problem:
        traceback.print_exc()
        sender.send(f"{type(problem).__name__}: {reason(problem)}")
        sys.exit(1)


def _failure(exitcode, receiver):
    """Why a worker failed, in one line."""
    try:
        if receiver.poll():
            return receiver.recv()
    except EOFError:
        pass
    if exitcode < 0:
        hint = ", perhaps out of memory; lower --jobs" if -exitcode == signal.SIGKILL else ""
        return f"its process was killed ({signal.Signals(-exitcode).name}{hint}); run the same command to continue"
    return f"its process ended with status {exitcode}; run the same command to continue"


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
        _clean(folder)


def _clean(folder):
    """Remove what a killed worker left of an unfinished folder."""
    for unfinished in folder.parent.glob(f".{folder.name}.*.new"):
        shutil.rmtree(unfinished, ignore_errors=True)


@contextlib.contextmanager
def _environment(**values):
    """Environment variables of the processes started inside."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
