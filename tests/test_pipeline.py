"""dvc.yaml against the library, and the whole smoke pipeline in a copy of the repository."""

import contextlib
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from anl import leave_one_out, params, runs
from anl.files import read_json, sha256_of
from tests.conftest import ROOT

MADE_ONCE = {"prior", "another_prior", "generator", "benchmark", "more_generator", "more_families"}


@pytest.fixture(scope="module")
def copies(tmp_path_factory):
    """A function that makes a fresh copy of the tracked files (as they are on disk), with git, and its environment."""
    def make(profile):
        copy = tmp_path_factory.mktemp("copy")
        files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
        for name in files.split("\0"):
            if (ROOT / name).is_file():
                (copy / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, copy / name)
        subprocess.run(["git", "init", "-q", "."], cwd=copy, check=True)
        params.activate(profile, copy / "profiles", copy / "params.yaml")
        return copy
    return make


def environment(copy):
    cache = copy / ".cache"
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "DVC_GLOBAL_CONFIG_DIR": str(cache / "global"), "DVC_SYSTEM_CONFIG_DIR": str(cache / "system"),
            "DVC_SITE_CACHE_DIR": str(cache / "site"), "OMP_WAIT_POLICY": "passive",
            "MALLOC_MMAP_THRESHOLD_": "2147483647", "MALLOC_TRIM_THRESHOLD_": "2147483647"}  # as `make book` sets them


def run(copy, *words):
    done = subprocess.run(words, cwd=copy, env=environment(copy), capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout[-3000:]}\n{done.stderr[-5000:]}"
    return done.stdout


def stages(copy, file="dvc.yaml"):
    """dict stage name -> (paths of its outputs, paths of its dependencies) of the stages in `file`."""
    from dvc.dependency import ParamsDependency
    from dvc.repo import Repo

    def paths(items):
        return [os.path.relpath(item.fs_path, copy) for item in items if not isinstance(item, ParamsDependency)]

    with Repo(str(copy)) as repo:
        return {stage.name: (paths(stage.outs), paths(stage.deps)) for stage in repo.index.stages
                if stage.cmd and stage.path_in_repo == file}


@pytest.mark.parametrize("profile", ["small", "smoke", "full"])
def test_stages_make_the_runs_that_the_library_asks_for(copies, profile):
    copy = copies(profile)
    settings = params.load(copy / "params.yaml")
    first = set(runs.main_specs(settings))
    wanted = {str(runs.run_folder(settings, spec, group)) for group, specs in (
        ("main", first), ("step_t", set(runs.step_specs(settings)) - first),
        ("attention", set(runs.attention_specs(settings)) - first),
        ("targets", set(runs.target_specs(settings)) - first),
        *runs.experiment_specs(settings).items()) for spec in specs}
    peers = runs.experiment_specs(settings)["peers"]
    scored = {f"runs/{profile}/robustness/{spec.slug}" for spec in first}
    scored |= {f"runs/{profile}/families/{spec.slug}" for spec in (*first, *peers)}
    left_out = {str(runs.run_folder(own, spec, "main")) for own, specs in leave_one_out.specs(settings).values() for spec in specs}
    made = {out for outs, _ in stages(copy).values() for out in outs if out.startswith("runs/")}
    assert made == wanted | scored | left_out


def test_the_public_sets_stages_make_its_runs_beside_any_profile(copies):
    copy = copies("smoke")
    every = stages(copy, "cifake/dvc.yaml")
    settings, longer = (params.load(copy / f"profiles/{name}.yaml") for name in ("cifake", "cifake_long"))
    first = set(runs.main_specs(settings))
    wanted = {str(runs.run_folder(settings, spec, group)) for group, specs in (
        ("main", first), ("step_t", set(runs.step_specs(settings)) - first),
        ("attention", set(runs.attention_specs(settings)) - first),
        ("targets", set(runs.target_specs(settings)) - first),
        ("peers", runs.experiment_specs(settings)["peers"])) for spec in specs}
    made = {out for outs, _ in every.values() for out in outs}
    long = {out for out in made if out.startswith("runs/cifake_long/")}
    assert {out for out in made if out.startswith("runs/")} - long == wanted and len(long) == len(longer.runs.seeds)
    ours = {out for outs, _ in stages(copy).values() for out in outs}
    assert not ours & made
    for name, (_, deps) in every.items():
        for dep in deps:
            known = dep in made or any(out.startswith(f"{dep}/") for out in made)
            assert known or dep.startswith("data/sources/") or (ROOT / dep).exists(), f"stage {name} depends on {dep}"


def test_no_stage_of_the_profiles_needs_the_public_set(copies):
    copy = copies("smoke")
    made = [Path(out) for outs, _ in stages(copy, "cifake/dvc.yaml").values() for out in outs]
    for name, (_, deps) in stages(copy).items():
        for dep in map(Path, deps):
            near = [str(out) for out in made if out == dep or dep in out.parents or out in dep.parents]
            assert not near, f"{name} depends on {dep}, so that `dvc repro` would make {near[0]}"


def test_stages_depend_on_files_that_exist_or_are_made(copies):
    every = stages(copies("smoke"))
    outs = [out for made, _ in every.values() for out in made] + ["data/photos"]
    for name, (_, deps) in every.items():
        for dep in deps:
            made = any(out == dep or out.startswith(f"{dep}/") for out in outs)
            assert made or (ROOT / dep).exists(), f"stage {name} depends on {dep}, which nothing makes"


def test_what_is_pulled_was_made_by_this_code():
    """Otherwise a newcomer's first run would train the generators again, for hours."""
    lock = ROOT / "dvc.lock"
    entries = yaml.safe_load(lock.read_text())["stages"] if lock.is_file() else {}
    made = {name: entry for name, entry in entries.items() if name.partition("@")[0] in MADE_ONCE}
    assert made, "dvc.lock has no record of the prior, the generators and the benchmark"
    for name, entry in made.items():
        for dep in entry["deps"]:
            path = ROOT / dep["path"]
            if path.is_file() and path.suffix in (".py", ".csv"):
                assert hashlib.md5(path.read_bytes()).hexdigest() == dep["md5"], (
                    f"{dep['path']} has changed since {name} was made: run `dvc repro {name}`, or, if the edit cannot "
                    f"change the outcome, `dvc commit -f {name}`")


def test_store_is_small_enough_for_git():
    store = sum(path.stat().st_size for path in (ROOT / ".dvc/store").rglob("*") if path.is_file())
    assert store < 120e6


@pytest.fixture(scope="module")
def smoke(copies):
    """The smoke pipeline from an empty cache: (copy, seconds of a second `dvc repro`)."""
    copy = ready(copies("smoke"))
    run(copy, "dvc", "repro")
    start = time.monotonic()
    run(copy, "dvc", "repro")
    return copy, time.monotonic() - start


def ready(copy):
    run(copy, "dvc", "pull", "-q", "data.dvc", "detector.dvc", *sorted(MADE_ONCE))
    return copy


def test_smoke_pipeline_leaves_every_result(smoke):
    copy, _ = smoke
    folder = copy / "results/smoke"
    for name in ("data", "prior", "detector", "cross_generator", "step_t", "attention", "targets", "families",
                 "robustness", "calibration", "gallery", "claims"):
        assert (folder / name / f"{name}.ipynb").is_file()
    assert (folder / "claims.json").is_file() and (copy / "book/generated").is_dir()
    run(copy, "dvc", "status", "-q", "dvc.yaml", "data.dvc", "detector.dvc")  # the public set has a pipeline of its own


def test_a_second_repro_does_nothing_and_is_quick(smoke):
    assert smoke[1] < 20  # 10 s on an idle machine


@pytest.mark.parametrize("name, setting, figure", [
    ("loss_weight", "weights=[0]", "ap_by_weight"), ("attention_loss", "attentions=[energy]", "ap_by_attention"),
    ("sample_size", "pairs=[20, 0]", "gain_by_pairs"), ("leaky", "steps=[1, 100]", "ap_by_step"),
    ("anl_plus", "reads=[residual, noise]", "ap_by_variant"), ("peers", "others=[npr, dnf, aeroblade]", "accuracy_and_cost"),
    ("leave_one_out", "families=[flow, vq]", "ap_by_left_out"), ("branch", "branches=[shallow]", "ap_by_branch")])
def test_an_experiment_of_the_research_profile_can_be_run_alone(smoke, name, setting, figure):
    """It trains what it lacks into runs/smoke/adhoc, in seconds here."""
    run(smoke[0], "anl", "notebook", name, "--set", setting)
    folder = smoke[0] / "results/smoke" / name
    values = read_json(folder / "values.json")
    assert (folder / f"{figure}.png").is_file() and all(value["text"] for value in values.values())
    shutil.rmtree(folder)  # not part of the profile


def test_interrupted_and_resumed_results_are_the_same_bytes(smoke, copies):
    copy = ready(copies("smoke"))
    for number, sign in ((signal.SIGINT, "runs/smoke/main/plain-s*"), (signal.SIGKILL, "results/smoke/*/values.json")):
        process = subprocess.Popen(["dvc", "repro"], cwd=copy, env=environment(copy), start_new_session=True,
                                   preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
                                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and not list(copy.glob(sign)):
            time.sleep(0.1)
        for _ in range(60):  # DVC ignores an interrupt that meets a stage which is just ending: again, as a person would
            if process.poll() is not None:
                break
            os.killpg(process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=5)
        assert process.poll() is not None
    run(copy, "dvc", "repro")
    assert sha256_of(copy / "results/smoke") == sha256_of(smoke[0] / "results/smoke")
