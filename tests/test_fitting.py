import signal
import subprocess
import sys

import pytest
import torch
from torch import nn

from anl import fitting, seeds
from anl.errors import UserError
from tests.conftest import ROOT

STEPS = 12
SCRIPT = """
import os, sys
from pathlib import Path
from tests.test_fitting import train
train(Path(sys.argv[1]), die_at=7)
"""


def train(folder, die_at=None, steps=STEPS, parameters="p"):
    """Fit two small networks together, their batches a function of the step; returns (weights, curve)."""
    seeds.fix(1, "test_fitting")
    models = {"a": nn.Linear(4, 4), "b": nn.Sequential(nn.Linear(4, 3), nn.GELU(), nn.Linear(3, 1))}

    def loss_at(step):
        if step == die_at:
            import os
            os.kill(os.getpid(), signal.SIGKILL)
        x = torch.randn(8, 4, generator=seeds.torch_generator(1, "batch", step))
        return (models["b"](models["a"](x)) - x.sum(1, keepdim=True)).square().mean()

    checkpoint = fitting.Checkpoint(folder, "test", {"p": parameters})
    curve = fitting.fit(models, loss_at, steps=steps, learning_rate=0.01, checkpoint=checkpoint, name="test", ema=0.9,
                        checkpoint_seconds=-1)
    return {f"{key}.{name}": value for key, model in models.items() for name, value in model.state_dict().items()}, curve


def same(one, other):
    return one[1] == other[1] and all(torch.equal(one[0][key], other[0][key]) for key in one[0])


def test_killed_and_resumed_equals_uninterrupted(tmp_path):
    killed = subprocess.run([sys.executable, "-c", SCRIPT, str(tmp_path / "cache")], check=False, cwd=ROOT,
                            capture_output=True)
    assert killed.returncode == -signal.SIGKILL
    (checkpoint,) = (tmp_path / "cache").iterdir()
    assert torch.load(checkpoint, weights_only=True)["step"] == 7
    resumed = train(tmp_path / "cache", die_at=3)  # would die if it began anew
    assert same(resumed, train(tmp_path / "other"))


def test_interrupted_and_resumed_equals_uninterrupted(tmp_path, monkeypatch):
    real = fitting.learning_rate_factor
    monkeypatch.setattr(fitting, "learning_rate_factor", stop_after(real, 9))
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cache")
    monkeypatch.setattr(fitting, "learning_rate_factor", real)
    assert same(train(tmp_path / "cache"), train(tmp_path / "other"))


def stop_after(function, calls):
    def wrapped(*arguments):
        nonlocal calls
        calls -= 1
        if calls == 0:
            raise KeyboardInterrupt
        return function(*arguments)
    return wrapped


def test_a_damaged_checkpoint_counts_as_none(tmp_path, capsys):
    checkpoint = fitting.Checkpoint(tmp_path, "test", {"p": "p"})
    checkpoint.save({"models": {}})
    checkpoint.path.write_bytes(checkpoint.path.read_bytes()[:50])
    assert same(train(tmp_path), train(tmp_path / "other"))
    assert "cannot be read" in capsys.readouterr().err


def test_a_checkpoint_of_other_parameters_is_not_used(tmp_path):
    fitting.Checkpoint(tmp_path, "test", {"p": "q"}).save({"step": 5})
    assert fitting.Checkpoint(tmp_path, "test", {"p": "p"}).load() is None
    assert fitting.Checkpoint(tmp_path, "test", {"p": "q"}).load() == {"step": 5}


def test_a_loss_that_is_not_finite_names_the_step(tmp_path):
    model = nn.Linear(1, 1)
    with pytest.raises(UserError, match="test: the loss is nan at step 3; lower the learning rate"):
        fitting.fit({"a": model}, lambda k: model.weight.sum() * (float("nan") if k == 2 else 1), steps=5,
                    learning_rate=0.1, checkpoint=fitting.Checkpoint(tmp_path, "test", {}), name="test")


def test_learning_rate_warms_up_and_decays():
    factors = [fitting.learning_rate_factor(step, 1000) for step in range(1000)]
    assert factors[0] == 1 / 50 and max(factors) == pytest.approx(1) and factors[-1] == pytest.approx(0.02, abs=1e-4)
    assert factors[:50] == sorted(factors[:50]) and factors[50:] == sorted(factors[50:], reverse=True)
