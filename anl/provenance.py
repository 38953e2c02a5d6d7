"""Where a notebook's numbers come from: a file beside the results for what may differ between two equal runs."""

import json
import platform
import resource
import shlex
import subprocess
from importlib import metadata
from pathlib import Path

import yaml

from anl.files import sha256_of, write_json
from anl.machine import peak_memory_mb

PACKAGES = ("torch", "diffusers", "timm", "accelerate", "papermill", "anl")
MADE_BY_RUNS = (":!results", ":!dvc.lock")  # a pipeline changes them as it goes; that makes no code dirty


def record(name, params, seconds, sources, settings=None, params_path="params.yaml", results="results",
           folder="provenance", since_ns=0, state=None):
    """Write `<folder>/<profile>/<name>.json` and return its path.

    params: Params; seconds: wall time; sources: paths that were run; settings: the notebook's parameters;
    since_ns: files of `<results>/<profile>/<name>` older than this (ns since the epoch) were not written by the run;
    state: code_state() at the start of the run (default: now).
    """
    path = Path(folder) / params.profile / f"{name}.json"
    written = Path(results) / params.profile / name
    write_json(path, {
        **(state or code_state()), "profile": params.profile,
        "params_sha256": sha256_of(params_path) if Path(params_path).is_file() else None,
        "data": data_hashes(params), "versions": versions(), "device": device(),
        "seed": params.seed, "seeds": list((settings or {}).get("seeds") or params.runs.seeds), "settings": settings or {}, "wall_seconds": seconds,
        # of the largest child that has ended, which is the notebook's kernel
        "peak_memory_mb": peak_memory_mb(resource.getrusage(resource.RUSAGE_CHILDREN)),
        "sources": {Path(source).as_posix(): sha256_of(source) for source in sources},
        "files": {item.as_posix(): sha256_of(item) for item in sorted(written.rglob("*"))
                  if item.is_file() and item.stat().st_mtime_ns >= since_ns},
        "command": command(name, params, settings or {}, params_path)})
    return path


def command(name, params, settings, params_path="params.yaml"):
    """The command line that makes the results again, given the active profile."""
    words = ["anl", *([] if str(params_path) == "params.yaml" else ["--params", str(params_path)])]
    words += ["notebook", name]
    for key, value in settings.items():
        if (key, value) != ("profile", params.profile):
            words += ["--set", f"{key}={json.dumps(value)}"]  # JSON is YAML
    return shlex.join(words)


def code_state(folder="."):
    """{"commit", "dirty"} of the git checkout at `folder`; None where there is none."""
    commit = _git(folder, "rev-parse", "HEAD")
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no", "--", ".", *MADE_BY_RUNS)
    return {"commit": commit, "dirty": None if changes is None else bool(changes)}


def _git(folder, *words):
    try:
        done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def data_hashes(params, root="."):
    """{path: MD5 as DVC records it} of the photographs and the benchmark; None for what DVC does not know."""
    pointer = _read_yaml(Path(root) / "data.dvc")
    lock = _read_yaml(Path(root) / "dvc.lock")
    stages = (lock.get("stages") or {}).values()
    outs = {out["path"]: out.get("md5")
            for part in [pointer, *stages] for out in part.get("outs", [])}
    return {path: outs.get(path) for path in (params.data.folder, params.benchmark.folder)}


def _read_yaml(path):
    if not path.is_file():
        return {}
    return yaml.safe_load(path.read_text(encoding="utf-8")) or {}


def versions():
    """{package: version} of what decides the numbers, as installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found


def device():
    """'cpu', or the name of the graphics processor that training uses."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
