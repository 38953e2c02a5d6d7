"""Experiments: which runs there are, that each is trained once, and what a failure does. With tiny stand-ins."""

import json
import os
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from anl.io import UserError, identity
from anl.training import experiments
from anl.training.experiments import experiment_runs, missing_runs, run_folder, train_experiment

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def importable_here(monkeypatch):
    """Workers import this module to find the functions below; they inherit `sys.path`."""
    monkeypatch.syspath_prepend(ROOT)


@dataclass(frozen=True)
class Settings:
    """Stands for anl.config.Config."""

    value: float = 1.0
    seeds: tuple = (1, 2)
    profile: str = "tiny"
    marks: str = ""
    of: dict = field(default_factory=lambda: {"a": 1.0, "b": 2.0})

    def variants(self, experiment):
        return {name: Settings(value, self.seeds, self.profile, self.marks) for name, value in self.of.items()}

    def identity(self):
        return identity(self.value)


def draw(config, seed, folder):
    """A training: weights that depend on the number of threads, the way real ones do."""
    x = torch.randn(100_000, generator=torch.Generator().manual_seed(seed)) * config.value
    (folder / "weights.json").write_text(json.dumps([float(x.sum()), torch.get_num_threads()]))
    with open(Path(config.marks) / "trained.txt", "a") as file:
        file.write(f"{config.value:g}-{seed}\n")


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


def trained(tmp_path):
    file = tmp_path / "trained.txt"
    return sorted(file.read_text().split()) if file.exists() else []


def test_runs_are_listed_seed_by_seed():
    assert [(run.variant, run.seed) for run in experiment_runs(Settings(), "x")] == [("a", 1), ("b", 1), ("a", 2), ("b", 2)]
    assert [run.seed for run in experiment_runs(Settings(), "x", seeds=[5])] == [5, 5]


def test_weights_do_not_depend_on_jobs_and_finished_runs_are_skipped(tmp_path):
    found = {}
    for jobs in (1, 2):
        config = Settings(marks=str(tmp_path), of={"b": 2.0}, seeds=(1,) if jobs == 1 else (1, 2))
        found[jobs] = train_experiment(config, "x", train_run=draw, jobs=jobs, root=tmp_path / str(jobs))
    for key, folder in found[1].items():
        one, other = ((path / "weights.json").read_text() for path in (folder, found[2][key]))
        assert one == other and json.loads(one)[1] == 1
    assert list(found[2]) == [("b", 1), ("b", 2)] and not missing_runs(config, "x", tmp_path / "2")
    before = trained(tmp_path)
    train_experiment(config, "x", train_run=draw, jobs=2, root=tmp_path / "2")
    assert trained(tmp_path) == before
    record = json.loads((found[2]["b", 2] / "run.json").read_text())
    assert (record["variant"], record["seed"], record["experiment"], record["threads"]) == ("b", 2, "x", 1)


def test_in_this_process_equal_variants_are_trained_once(tmp_path):
    config = Settings(marks=str(tmp_path), of={"a": 1.0, "same": 1.0}, seeds=(1,))
    folders = train_experiment(config, "x", train_run=draw, jobs=0, root=tmp_path / "runs")
    assert folders["a", 1] == folders["same", 1] == tmp_path / "runs" / "tiny" / f"{identity(1.0)}-s1"
    assert trained(tmp_path) == ["1-1"]


@pytest.mark.parametrize("damage", ["missing", "not JSON", '{"identity": "other", "seed": 1}'])
def test_a_damaged_or_foreign_run_is_trained_again(tmp_path, damage):
    config = Settings(marks=str(tmp_path), of={"a": 1.0}, seeds=(1,))
    folder = train_experiment(config, "x", train_run=draw, jobs=0, root=tmp_path / "runs")["a", 1]
    record = folder / "run.json"
    record.unlink() if damage == "missing" else record.write_text(damage)
    (folder / "old.txt").touch()
    train_experiment(config, "x", train_run=draw, jobs=0, root=tmp_path / "runs")
    assert trained(tmp_path) == ["1-1", "1-1"] and record.exists() and not (folder / "old.txt").exists()


def test_the_first_failure_stops_the_others_with_one_line(tmp_path):
    started = time.monotonic()
    with pytest.raises(UserError, match="^a, seed 1: the loss is not finite at step 7; lower the learning rate$"):
        train_experiment(Settings(marks=str(tmp_path), seeds=(1,)), "x", train_run=fail_or_wait, jobs=2, root=tmp_path / "runs")
    assert time.monotonic() - started < 50 and (tmp_path / "checkpoint").exists()
    assert list((tmp_path / "runs" / "tiny").iterdir()) == []


def test_a_killed_worker_and_an_unexpected_error_are_one_line_each(tmp_path):
    config = Settings(of={"a": 1.0}, seeds=(1,))
    with pytest.raises(UserError, match=r"^a, seed 1: its process was killed \(SIGKILL, perhaps out of memory; lower --jobs\)"):
        train_experiment(config, "x", train_run=killed, root=tmp_path)
    assert not run_folder(experiment_runs(config, "x")[0], tmp_path).exists() and list((tmp_path / "tiny").iterdir()) == []
    with pytest.raises(UserError, match="^a, seed 1: ZeroDivisionError: division by zero$"):
        train_experiment(config, "x", train_run=broken, root=tmp_path)


def test_an_interrupted_command_stops_its_workers(tmp_path, monkeypatch):
    def interrupted(sentinels):
        while not (tmp_path / "waiting").exists():
            time.sleep(0.02)
        raise KeyboardInterrupt

    monkeypatch.setattr(experiments, "wait", interrupted)
    config = Settings(marks=str(tmp_path), of={"b": 2.0}, seeds=(1,))
    with pytest.raises(KeyboardInterrupt):
        train_experiment(config, "x", train_run=fail_or_wait, root=tmp_path / "runs")
    assert (tmp_path / "checkpoint").exists() and list((tmp_path / "runs" / "tiny").iterdir()) == []


def test_negative_jobs_are_an_error():
    with pytest.raises(UserError, match="--jobs -1 is negative"):
        train_experiment(Settings(), "x", train_run=draw, jobs=-1)
