"""`anl bench --pipeline`: what the pipeline itself costs: a `dvc repro` with nothing to do, and a large manifest."""

import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
import yaml

from anl import params as profiles
from anl.bench_machine import write
from anl.errors import UserError

RUNS = 100  # trainings in the matrix, at least
MANIFEST_ROWS = 1_000_000
STAND_IN = {"model.safetensors": 280_000, "predictions.parquet": 400_000, "run.json": 900}  # a run's files, bytes
COPIED = ("anl", "notebooks", "results", "book", "profiles", "dvc.yaml", "claims.yaml", "CITATION.cff", "data", "models", "data.dvc",
          "detector.dvc")
LEFT_OUT = ("_build", "generated", "__pycache__", "cifake", "sources")


def run(repeats=3, runs=RUNS, rows=MANIFEST_ROWS, folder="results/bench", root=".", only=None):
    """Measure, print and write `folder`/pipeline/*.csv; returns that folder. root: the repository. only: some of the tables."""
    makers = {"repro": lambda: repro_table(runs, repeats, root), "manifest": lambda: manifest_table(rows)}
    return write(Path(folder) / "pipeline", ((name, makers[name]()) for name in makers if only is None or name in only), repeats)


def repro_table(runs=RUNS, repeats=3, root="."):
    """Seconds of `dvc repro` with nothing to do, for this pipeline with so many seeds that it holds `runs` trainings.

    In a temporary repository: the same dvc.yaml, code, data and models; the files that its stages would make are stand-ins of a
    run's size, and recorded as made. Raises UserError if DVC finds something to do all the same.
    """
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary) / "repository"
        place.mkdir()
        for name in COPIED:
            _copy(Path(root) / name, place / name)
        settings = profiles.resolve("small", Path(root) / "profiles")
        trained = _trainings(place, settings, 1)
        settings["runs"]["seeds"] = list(range(-(-runs // trained)))
        trained = _trainings(place, settings, len(settings["runs"]["seeds"]))
        for command in (("git", "init", "-q"), ("dvc", "init", "-q"), ("dvc", "config", "core.analytics", "false")):
            _run(place, *command)
        stages = _stand_in(place)
        _run(place, "dvc", "commit", "--force")
        seconds, busy = [], []
        for _ in range(repeats + 1):
            began, before = time.perf_counter(), _processor_seconds()
            said = _run(place, "dvc", "repro", "--no-commit")
            seconds.append(time.perf_counter() - began)
            busy.append(_processor_seconds() - before)
        if "Running stage" in said:
            raise UserError(f"dvc repro ran a stage where nothing had changed: {said[said.index('Running stage'):][:120]}")
    return pd.DataFrame([{"what": "dvc repro, nothing to do", "stages": stages, "trainings": trained,
                          "seconds": statistics.median(seconds[1:]), "fastest": min(seconds[1:]), "processor_seconds": statistics.median(busy[1:]),
                          "first": seconds[0]}])


def _processor_seconds():
    """Of all processes that this one has started and waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _copy(source, target):
    """A file or folder, never linked: DVC may change what it finds. What was built or fetched is left out."""
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns(*LEFT_OUT))
    elif source.is_file():
        shutil.copyfile(source, target)


def _trainings(place, settings, seeds):
    """Write params.yaml; returns how many stages train a detector, for so many seeds."""
    settings["runs"]["seeds"] = list(range(seeds))
    (place / "params.yaml").write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    from anl import runs  # imports torch, which DVC's own part does without

    params = profiles.from_dict(settings, "params.yaml")
    specs = {*runs.main_specs(params), *runs.step_specs(params), *runs.attention_specs(params), *runs.target_specs(params)}
    return len(specs)


def _stand_in(place):
    """Make every output that is missing, and add a .gitignore; returns how many stages there are."""
    from dvc.repo import Repo

    with Repo(str(place)) as repo:
        stages = [stage for stage in repo.index.stages if stage.cmd]
        missing = [Path(out.fs_path) for stage in stages for out in stage.outs if not Path(out.fs_path).exists()]
    for path in missing:
        if path.suffix in (".json", ".csv", ".safetensors", ".parquet"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(os.urandom(1000))
        else:
            path.mkdir(parents=True, exist_ok=True)
            for name, size in STAND_IN.items():
                (path / name).write_bytes(os.urandom(size))
    return len(stages)


def manifest_table(rows=MANIFEST_ROWS):
    """Seconds and peak memory of writing, counting, querying and sampling a made-up manifest, in a process of its own."""
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "tests.data.million", str(rows)], capture_output=True, text=True, errors="replace",
                          check=False)
    if done.returncode:
        said = done.stderr.strip()
        raise UserError(f"`python -m tests.data.million` failed ({said.splitlines()[-1] if said else 'no word'}); run `anl bench` "
                        "from the repository's root")
    used = json.loads(done.stdout.splitlines()[-1])
    return pd.DataFrame([{"what": "manifest written, queried and sampled", "rows": rows, "seconds": time.perf_counter() - began,
                          "peak_memory_gb": used["peak_memory_bytes"] / 1e9}])


def _run(place, *command):
    """What a command says. Raises UserError if it fails."""
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"`{' '.join(command)}` failed in a copy of the repository: {(done.stderr or done.stdout).strip()[-300:]}")
    return done.stdout
