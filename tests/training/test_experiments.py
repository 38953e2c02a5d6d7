"""Experiments: which runs there are, that each is trained once, and what a failure does. With tiny stand-ins."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from anl.io import UserError, identity
from anl.training import experiments
from anl.training.experiments import experiment_record, experiment_runs, missing_runs, train_experiment
from tests.conftest import ROOT


@pytest.fixture(autouse=True)
def importable_here(monkeypatch):
    """Workers import this module to find the functions below; they inherit `sys.path`."""
    monkeypatch.syspath_prepend(ROOT)


@dataclass(frozen=True)
class Settings:
    """Stands for anl.config.Config."""

    marks: str = ""
    value: float = 1.0
    seeds: tuple = (1,)
    profile: str = "tiny"
    of: dict = field(default_factory=lambda: {"a": 1.0})
    priors: tuple = ("prior",)

    @property
    def run(self):
        return SimpleNamespace(models=f"{self.marks}/models")

    @property
    def benchmark(self):
        return SimpleNamespace(folder=f"{self.marks}/benchmark", seen=["ddim"])

    def variants(self, experiment):
        return {name: replace(self, value=value) for name, value in self.of.items()}

    def identity(self):
        return identity(self.value)


def draw(config, seed, folder):
    """A training: weights that depend on the number of threads, the way real ones do."""
    x = torch.randn(100_000, generator=torch.Generator().manual_seed(seed)) * config.value
    (folder / experiments.WEIGHTS).write_text(json.dumps([float(x.sum()), torch.get_num_threads()]))
    (folder / experiments.CURVE).write_text("step,val_auroc\n4,0.75\n")
    with open(Path(config.marks) / "trained.txt", "a") as file:
        file.write(f"{config.value:g}-{seed} {os.getpid()}\n")


def fail_or_wait(config, seed, folder):
    """Variant a fails once b is at work; b waits until it is stopped and says so."""
    mark = Path(config.marks) / "waiting"
    if config.value == 1.0:
        while not mark.exists():
            time.sleep(0.02)
        raise UserError("the loss is not finite at step 7; lower the learning rate")

    def stopped(*_):
        (Path(config.marks) / "checkpoint").touch()
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stopped)
    (folder / "half.txt").touch()
    mark.touch()
    time.sleep(60)


def killed(config, seed, folder):
    (folder / "half.txt").touch()
    os.kill(os.getpid(), signal.SIGKILL)


def broken(config, seed, folder):
    raise ZeroDivisionError("division by zero")


def train(config, train_run=draw, root="runs", **options):
    return train_experiment(config, "x", train_run=train_run, root=Path(config.marks) / root, **options)


def trained(tmp_path):
    """Variants and seeds that were trained, and the processes that did it."""
    lines = [line.split() for line in (tmp_path / "trained.txt").read_text().splitlines()]
    return [run for run, _ in lines], {process for _, process in lines}


def test_runs_are_listed_seed_by_seed():
    config = Settings(of={"a": 1.0, "b": 2.0}, seeds=(1, 2))
    assert [(run.variant, run.seed) for run in experiment_runs(config, "x")] == [("a", 1), ("b", 1), ("a", 2), ("b", 2)]
    assert [run.seed for run in experiment_runs(config, "x", seeds=[5])] == [5, 5]


def test_weights_do_not_depend_on_jobs_and_a_worker_trains_many_runs(tmp_path):
    config, found = Settings(str(tmp_path), of={"a": 1.0, "b": 2.0}, seeds=(1, 2)), {}
    for jobs in (1, 2):
        folders = train(config, jobs=jobs, root=str(jobs))
        found[jobs] = {run: (folder / experiments.WEIGHTS).read_text() for run, folder in folders.items()}
    assert found[1] == found[2] and {json.loads(weights)[1] for weights in found[1].values()} == {1}
    runs, processes = trained(tmp_path)
    assert len(runs) == 8 and 2 <= len(processes) <= 3
    assert missing_runs(config, "x", tmp_path / "2") == []
    train(config, jobs=2, root="2")
    assert len(trained(tmp_path)[0]) == 8
    record = json.loads((folders["b", 2] / "run.json").read_text())
    assert (record["variant"], record["seed"], record["experiment"], record["threads"]) == ("b", 2, "x", 1)
    rows = experiment_record(config, "x", tmp_path / "2", seeds=[2, 9])
    assert rows[["variant", "seed", "steps", "val_auroc"]].to_numpy().tolist() == [
        ["a", 1, 4, 0.75], ["b", 1, 4, 0.75], ["a", 2, 4, 0.75], ["b", 2, 4, 0.75]]


def test_in_this_process_equal_variants_are_trained_once(tmp_path):
    folders = train(Settings(str(tmp_path), of={"a": 1.0, "same": 1.0}), jobs=0)
    assert folders["a", 1] == folders["same", 1] == tmp_path / "runs" / "tiny" / f"{identity(1.0)}-s1"
    assert trained(tmp_path)[0] == ["1-1"]


def test_a_run_on_other_images_or_another_prior_is_trained_again(tmp_path):
    config = Settings(str(tmp_path))
    prior, images = tmp_path / "models/priors/prior/identity.json", tmp_path / "benchmark/identities.json"
    for path, value in ((prior, {"identity": "a"}), (images, {"real": "b", "ddim": "c", "flow": "d"})):
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(value))
    record = json.loads((train(config, jobs=0)["a", 1] / "run.json").read_text())
    assert record["inputs"] == {"prior": "a", "real": "b", "ddim": "c"}
    images.write_text(json.dumps({"real": "b", "ddim": "c", "flow": "other"}))  # not trained on
    assert not missing_runs(config, "x", tmp_path / "runs")
    images.unlink()  # nothing to compare with
    assert not missing_runs(config, "x", tmp_path / "runs")
    images.write_text(json.dumps({"real": "b", "ddim": "other", "flow": "d"}))
    assert missing_runs(config, "x", tmp_path / "runs")
    images.unlink()
    prior.write_text(json.dumps({"identity": "other"}))
    assert missing_runs(config, "x", tmp_path / "runs")
    assert not missing_runs(replace(config, priors=()), "x", tmp_path / "runs")


@pytest.mark.parametrize("damage", ["missing", "not JSON", '{"identity": "other", "seed": 1}'])
def test_a_damaged_or_foreign_run_is_trained_again(tmp_path, damage):
    config = Settings(str(tmp_path))
    record = train(config, jobs=0)["a", 1] / "run.json"
    record.unlink() if damage == "missing" else record.write_text(damage)
    (record.parent / "old.txt").touch()
    train(config, jobs=0)
    assert trained(tmp_path)[0] == ["1-1", "1-1"] and record.exists() and not (record.parent / "old.txt").exists()


def test_the_first_failure_stops_the_others_with_one_line(tmp_path):
    with pytest.raises(UserError, match="^a, seed 1: the loss is not finite at step 7; lower the learning rate$"):
        train(Settings(str(tmp_path), of={"a": 1.0, "b": 2.0}), fail_or_wait, jobs=2)
    assert (tmp_path / "checkpoint").exists() and list((tmp_path / "runs" / "tiny").iterdir()) == []


@pytest.mark.parametrize("train_run, words", [
    (killed, r"its process was killed \(SIGKILL, perhaps out of memory; lower --jobs\)"),
    (broken, "ZeroDivisionError: division by zero$")])
def test_a_killed_worker_and_an_unexpected_error_are_one_line_each(tmp_path, train_run, words):
    with pytest.raises(UserError, match=f"^a, seed 1: {words}"):
        train(Settings(str(tmp_path)), train_run)
    assert list((tmp_path / "runs" / "tiny").iterdir()) == []


def test_an_interrupted_command_stops_its_workers(tmp_path, monkeypatch):
    def interrupted(connections):
        while not (tmp_path / "waiting").exists():
            time.sleep(0.02)
        raise KeyboardInterrupt

    monkeypatch.setattr(experiments, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(Settings(str(tmp_path), of={"b": 2.0}), fail_or_wait)
    assert (tmp_path / "checkpoint").exists() and list((tmp_path / "runs" / "tiny").iterdir()) == []


def test_runs_with_other_weights_in_another_experiment_are_named(tmp_path):
    record = pd.DataFrame({"run": ["a-s0", "b-s0"], "sha256": ["1", "2"]})
    for name, shas in (("same", ["1", "2"]), ("other", ["1", "3"])):
        record.assign(sha256=shas).to_csv(tmp_path / f"{name}.csv", index=False)
    assert experiments.trained_twice(record, tmp_path) == ["b-s0"]
    assert experiments.trained_twice(record.assign(run=["c-s0", "d-s0"]), tmp_path) == []
    assert experiments.trained_twice(pd.DataFrame([]), tmp_path) == []


def test_negative_jobs_are_an_error():
    with pytest.raises(UserError, match="--jobs -1 is negative"):
        train(Settings(), jobs=-1)


def test_finished_runs_are_found_without_torch():
    program = "import sys; import anl.cli, anl.config, anl.training.experiments; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == 0
