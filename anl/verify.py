"""Run stages of the pipeline again in a temporary clone, and compare their outputs with those that were committed.

An output is compared with its bytes in git, or with its hash in dvc.lock. If neither exists for any of the outputs, the stages
are run in two clones, which are compared with each other. This shows that the results are reproducible, not that they are
correct.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import yaml

from anl.io import UserError, pick, read_json, reason, sha256_of, write_json

IDENTICAL, TOLERATED, INTERVAL = "identical", "within tolerance", "within its interval"
OTHER, DIFFERENT, FAILED, NOTHING = "other numbers", "different", "not verified", "nothing to compare with"
ORDER = (NOTHING, IDENTICAL, TOLERATED, INTERVAL, OTHER, DIFFERENT, FAILED)  # best first
# estimates of a result table with the ends of their intervals
ESTIMATES = (("mean", "low", "high"), ("value", "low", "high"), ("difference", "difference_low", "difference_high"))
STATE = "verify.json"
COLUMNS = ["stage", "output", "compared with", "verdict", "note", "seconds"]


class Stage(NamedTuple):
    """A stage of dvc.yaml. kept: DVC stores its outputs, which can be pulled; runs: it has a command; needs: stage names."""

    name: str
    outs: tuple
    kept: bool
    runs: bool
    needs: tuple


def verify(stages=(), *, root=".", profile=None, keep=None, dirty=False, relative=1e-3, absolute=1e-4, say=print):
    """Run stages of the commit checked out at `root` again and compare their outputs.

    Parameters
    ----------
    stages : sequence of str
        Names in dvc.yaml, with or without their key (`train`, `train@main`). Default: all whose outputs DVC does not
        store. Stages that they need are run as well, or pulled if DVC stores their outputs.
    profile : str, optional
        Profile that is activated in the clone; default: the committed params.yaml.
    keep : path-like, optional
        Folder to work in. It is not deleted, and a second call continues there.
    dirty : bool
        Include uncommitted changes of tracked files. Without it they raise an error.
    relative, absolute : float
        Numbers may differ by `absolute + relative * |old|`.
    say : callable
        Called with lines that report progress.

    Returns
    -------
    DataFrame
        A row per output, with COLUMNS; see `conclusion`.

    Raises
    ------
    UserError
        If there is no repository or commit, there are uncommitted changes, a stage is unknown, or inputs cannot be pulled.
    """
    commit = _commit(Path(root), dirty)
    with _workplace(keep, f"{commit} {profile}") as (place, done):
        clones = [_clone(root, place / "first", commit, profile, done)]
        chosen, pulled = choose(read_pipeline(clones[0]), stages)
        old = {out: _committed(clones[0], place, out) for stage in chosen for out in stage.outs}
        recorded = _hashes(_committed(clones[0], place, "dvc.lock"))
        twice = not any(old[out] or out in recorded for out in old)
        if twice:
            clones.append(_clone(root, place / "second", commit, profile, done))
        say(f"{len(chosen)} stages to run{' twice' if twice else ''}, {len(pulled)} to pull; working in {place}")
        for clone in clones:
            _pull(clone, pulled, done)
            for stage in chosen:
                found = done.setdefault(clone.name, {}).get(stage.name)
                if not found or found["problem"]:
                    found = _run(clone, stage, done[clone.name])
                    done[clone.name][stage.name] = found
                    say(f"{stage.name}: " + (found["problem"] or f"{found['seconds']:.0f} s"))
                    write_json(place / STATE, done)
        last, rows = clones[-1], []
        made = _hashes(last / "dvc.lock")
        for stage in chosen:
            problem = next((done[clone.name][stage.name]["problem"] for clone in clones if
                            done[clone.name][stage.name]["problem"]), "")
            for out in stage.outs:
                source, found = "git" if old[out] else "dvc.lock" if out in recorded else "", (NOTHING, "not committed")
                if problem:
                    found = FAILED, problem
                elif twice or old[out]:
                    source = "first run" if twice else "git"
                    found = compare(clones[0] / out if twice else old[out], last / out, relative, absolute)
                elif source:
                    same = made.get(out) == recorded[out]
                    found = (IDENTICAL, "") if same else (OTHER, "another hash; by how much it differs is unknown")
                rows.append([stage.name, out, source, *found, done[last.name][stage.name]["seconds"]])
    return pd.DataFrame(rows, columns=COLUMNS)


def conclusion(table):
    """(worst verdict, whether the results are confirmed).

    Another kind of processor gives other weights and scores. They pass if result tables made from them were compared, too,
    and are within their intervals.
    """
    found = set(table["verdict"])
    worst = max(found, key=ORDER.index, default=NOTHING)
    return worst, worst in (IDENTICAL, TOLERATED, INTERVAL) or (worst == OTHER and INTERVAL in found)


# ---- comparing -------------------------------------------------------------------------------------------------------
def compare(old, new, relative=1e-3, absolute=1e-4):
    """Compare two files or folders; returns (verdict, note).

    Numbers of tables must be within the tolerance. An estimate with an interval must be within the old interval.
    """
    old, new = Path(old), Path(new)
    if not new.exists():
        return DIFFERENT, "is not there"
    if sha256_of(old) == sha256_of(new):
        return IDENTICAL, ""
    if old.is_dir():
        names = [sorted(path.relative_to(side).as_posix() for path in side.rglob("*") if path.is_file())
                 for side in (old, new)]
        if names[0] != names[1]:
            return DIFFERENT, f"{min(set(names[0]) ^ set(names[1]))} is in one of the folders only"
        found = [(compare(old / name, new / name, relative, absolute), name) for name in names[0]]
        (verdict, note), name = max(found, key=lambda item: ORDER.index(item[0][0]))
        return verdict, f"{name}: {note}"
    readers = {".csv": pd.read_csv, ".parquet": pd.read_parquet, ".safetensors": _read_tensors}
    try:
        if old.suffix == ".ipynb":
            sources = [[cell["source"] for cell in json.loads(path.read_text("utf-8"))["cells"]] for path in (old, new)]
            return (OTHER, "same cells, other output") if sources[0] == sources[1] else (DIFFERENT, "other cells")
        if old.suffix in readers:
            return _compare_tables(readers[old.suffix](old), readers[old.suffix](new), relative, absolute)
    except (ValueError, KeyError, TypeError, OSError) as problem:
        return DIFFERENT, f"cannot be read ({reason(problem, 80)})"
    return DIFFERENT, "other bytes"


def _read_tensors(path):
    from safetensors.numpy import load_file

    tensors = load_file(path)
    return pd.DataFrame({"tensor": np.repeat(list(tensors), [value.size for value in tensors.values()]),
                         "number": np.concatenate([value.ravel().astype(float) for value in tensors.values()])})


def _compare_tables(old, new, relative, absolute):
    if list(old) != list(new) or len(old) != len(new):
        return DIFFERENT, f"{len(old)} x {old.shape[1]} cells, now {len(new)} x {new.shape[1]}, or other columns"
    verdict, note, skipped = TOLERATED, "", {"sha256"}  # the hash of weights
    for estimate, low, high in ESTIMATES:
        if {estimate, low, high} <= set(old):
            slack = absolute + relative * old[estimate].abs()
            known = old[low].notna()
            inside = (new[estimate] >= old[low] - slack) & (new[estimate] <= old[high] + slack)
            wrong = known & ~inside | ((new[estimate] - old[estimate]).abs() > slack) & ~known
            wrong |= old[estimate].isna() != new[estimate].isna()
            if wrong.any():
                return DIFFERENT, _change(old, new, estimate, wrong)
            if known.any():
                verdict, skipped = INTERVAL, skipped | {estimate, low, high, "p"}
    for column in old.columns.difference(skipped, sort=False):
        if pd.api.types.is_numeric_dtype(old[column]) and pd.api.types.is_numeric_dtype(new[column]):
            before, after = old[column].astype(float), new[column].astype(float)
            wrong = (((after - before).abs() > absolute + relative * before.abs()) | (before.isna() != after.isna()))
            if wrong.any():
                return DIFFERENT if verdict == INTERVAL else OTHER, _change(old, new, column, wrong)
        elif (wrong := old[column].astype(str) != new[column].astype(str)).any():
            return DIFFERENT, _change(old, new, column, wrong)
    return verdict, note


def _change(old, new, column, wrong):
    row = int(np.flatnonzero(wrong)[0])
    before, after = old[column].iloc[row], new[column].iloc[row]
    return f"row {row + 1}, {column}: {before} -> {after}; {int(wrong.sum())} of {len(old)} rows"


# ---- the pipeline ----------------------------------------------------------------------------------------------------
def read_pipeline(root):
    """{name: Stage} of the pipeline at `root`, in an order in which they can be run."""
    import networkx
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    def name(stage):
        return stage.name if stage.cmd else stage.path_in_repo

    try:
        with Repo(str(root)) as repo:
            graph = repo.index.graph  # an edge leads from a stage to one that it needs
            ordered = networkx.lexicographical_topological_sort(graph.reverse(copy=True), key=name)
            return {name(stage): Stage(
                name(stage), tuple(sorted(os.path.relpath(out.fs_path, root) for out in stage.outs)),
                all(out.use_cache and out.can_push for out in stage.outs), bool(stage.cmd),
                tuple(sorted(map(name, graph.successors(stage))))) for stage in ordered}
    except DvcException as problem:
        raise UserError(f"DVC cannot read the pipeline ({reason(problem, 200)}); correct dvc.yaml") from None


def choose(pipeline, names=()):
    """(stages to run, names of stages to pull), each in the order of the pipeline."""
    groups = {}
    for stage in pipeline.values():
        if stage.runs:
            groups.setdefault(stage.name.partition("@")[0], []).append(stage.name)
            groups[stage.name] = [stage.name]
    chosen = {stage for name in names for stage in groups[pick("stage", name, groups)]}
    chosen = chosen or {stage.name for stage in pipeline.values() if stage.runs and not stage.kept}
    run, pull, waiting = set(), set(), sorted(chosen)
    while waiting:
        stage = pipeline[waiting.pop()]
        if stage.kept and stage.name not in chosen:
            pull.add(stage.name)
        elif stage.name not in run:
            run.add(stage.name)
            waiting += stage.needs
    return [stage for stage in pipeline.values() if stage.name in run], [name for name in pipeline if name in pull]


def _hashes(lock):
    """{path: hash} of the outputs in the file dvc.lock; {} if `lock` is None or does not exist."""
    try:
        stages = yaml.safe_load(lock.read_text("utf-8"))["stages"] if lock and lock.is_file() else {}
        return {out["path"]: out["md5"] for stage in stages.values() for out in stage.get("outs", ()) if "md5" in out}
    except (yaml.YAMLError, AttributeError, TypeError, KeyError) as problem:
        raise UserError(f"dvc.lock cannot be read ({reason(problem)}); restore it with git") from None


def _pull(clone, names, done):
    if names and done.get(f"{clone.name} pulled") != names:
        log = clone.with_name("pull.log")
        if _dvc(clone, log, "pull", *names):
            end = reason(log.read_text(errors="replace")[-200:], 200)
            raise UserError(f"`dvc pull {' '.join(names)}` failed: {end}")
        done[f"{clone.name} pulled"] = names


def _run(clone, stage, before):
    """Run one stage even if DVC considers it up to date; return {"problem": one line or "", "seconds": ...}."""
    if failed := next((need for need in stage.needs if before.get(need, {}).get("problem")), None):
        return {"problem": f"needs {failed}", "seconds": 0.0}
    started, log = time.monotonic(), clone.with_name(f"{clone.name}-{stage.name.replace('/', '_')}.log")
    status = _dvc(clone, log, "repro", "--single-item", "--force", "--no-run-cache", stage.name)
    if status:
        print(*log.read_text(errors="replace").splitlines()[-12:], "", sep="\n", file=sys.stderr)
    return {"problem": "failed; the end of its log is above" if status else "",
            "seconds": round(time.monotonic() - started, 1)}


def _dvc(clone, log, *words):
    """Run DVC in a clone; return its exit status. If this process is interrupted, DVC and its child processes are killed."""
    cache = clone / ".cache"
    folders = {f"DVC_{name}_DIR": str(cache / name.lower())
               for name in ("GLOBAL_CONFIG", "SYSTEM_CONFIG", "SITE_CACHE")}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    settings = {**os.environ, "PATH": path, "PYTHONPATH": str(clone), "DVC_NO_ANALYTICS": "1", **folders}
    with open(log, "w") as stream:
        process = subprocess.Popen([sys.executable, "-m", "dvc", *words], cwd=clone, env=settings,
                                   stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.STDOUT,
                                   start_new_session=True)
        try:
            return process.wait()
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise


# ---- clones ----------------------------------------------------------------------------------------------------------
@contextlib.contextmanager
def _workplace(keep, key):
    """Yield (folder, steps already done there). The folder is `keep`, or a temporary one that is removed afterwards."""
    folder = Path(keep).absolute() if keep else Path(tempfile.mkdtemp(prefix="anl-verify-"))
    done = read_json(folder / STATE) if (folder / STATE).is_file() else {"key": key}
    if (folder.exists() and any(folder.iterdir()) and not (folder / STATE).is_file()) or done.get("key") != key:
        raise UserError(f"{keep} holds something else than a verification of this commit and profile; choose another "
                        "folder")
    try:
        write_json(folder / STATE, done)
        yield folder, done
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)


def _commit(root, dirty):
    """The commit to verify; with `dirty` and uncommitted changes, a commit that contains them."""
    head = _git(root, "rev-parse", "--verify", "HEAD", fix="run this in a git repository with a commit")
    changes = _git(root, "status", "--porcelain", "--untracked-files=no", fix="repair the repository").splitlines()
    if not changes:
        return head
    if not dirty:
        raise UserError(f"{len(changes)} files have uncommitted changes ({changes[0].split(maxsplit=1)[1]} is one); "
                        "commit them, or include them with --dirty")
    return _git(root, "stash", "create", fix="commit the changes")


def _clone(root, clone, commit, profile, done):
    """Path of a clone with a separate, empty DVC cache. A clone that is already complete is reused."""
    if not done.get(f"{clone.name} cloned"):
        shutil.rmtree(clone, ignore_errors=True)
        fix = "free some disk, or give another folder with --keep"
        _git(clone.parent, "clone", "--quiet", "--shared", "--no-checkout", str(Path(root).resolve()), str(clone), fix=fix)
        _git(clone, "checkout", "--quiet", "--detach", commit, fix=fix)
        if not (clone / "dvc.yaml").is_file():
            raise UserError("git holds no dvc.yaml here; run this in the repository's root")
        if profile:  # by the clone's own code
            subprocess.run([sys.executable, "-m", "anl.cli", "profile", profile], cwd=clone, check=True,
                           stdout=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": str(clone)})
        done[f"{clone.name} cloned"] = True
    return clone


def _committed(clone, place, out):
    """Path of a copy of a file as committed in git; None if it is not in git."""
    done = subprocess.run(["git", "-C", str(clone), "cat-file", "blob", f"HEAD:{out}"], capture_output=True,
                          check=False)
    path = place / "committed" / out
    if done.returncode == 0:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(done.stdout)
        return path
    return None


def _git(folder, *words, fix):
    done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"git {words[0]}: {reason(done.stderr, 160)}; {fix}")
    return done.stdout.strip()
