import os
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch

from anl import runs, targets, train
from anl.errors import UserError
from tests.conftest import ROOT

torch.set_num_threads(1)


@pytest.fixture
def in_world(world, monkeypatch):
    """The world's folder as working directory, where `models`, `targets` and `runs` lie."""
    monkeypatch.chdir(world.root)
    return world


def spec_of(world, target="prior", seed=0):
    return runs.make_spec(world.params, target, 10, "affinity", 1.0, seed)


def fit(world, spec, cache):
    return train.fit_detector(spec, world.params, identity=spec.identity(world.params), cache=str(cache))


def test_same_seed_same_weights_other_seed_other_weights(in_world, tmp_path):
    first, curve = fit(in_world, spec_of(in_world), tmp_path)
    again, _ = fit(in_world, spec_of(in_world), tmp_path)
    other, _ = fit(in_world, spec_of(in_world, seed=1), tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), again.state_dict().values()))
    assert not torch.equal(first.classifier.weight, other.classifier.weight)
    assert curve[-1]["step"] == 4 and curve[-1]["noise_loss"] > 0 and 0 <= curve[-1]["val_AP"] <= 1


def test_plain_needs_no_targets(in_world, tmp_path, monkeypatch):
    monkeypatch.setattr(targets, "load", lambda *a, **k: pytest.fail("targets were read"))
    detector, curve = fit(in_world, spec_of(in_world, target="none"), tmp_path)
    assert detector.head is None and curve[-1]["noise_loss"] is None


def test_a_killed_run_resumes_to_the_very_weights(in_world, tmp_path):
    whole, _ = fit(in_world, spec_of(in_world), tmp_path / "a")
    script = textwrap.dedent(f"""
        import os, signal, sys
        sys.path.insert(0, {str(ROOT)!r})
        import torch; torch.set_num_threads(1)
        from pathlib import Path
        from anl import runs, train, params
        from tests.conftest import tiny_settings
        settings = params.from_dict(tiny_settings(Path({str(in_world.root)!r})), "tiny")
        train.CHECKPOINT_SECONDS = -1
        save = train.Checkpoint.save
        def save_and_die(self, state):
            save(self, state)
            if state["step"] == 2:
                os.kill(os.getpid(), signal.SIGKILL)
        train.Checkpoint.save = save_and_die
        spec = runs.make_spec(settings, "prior", 10, "affinity", 1.0, 0)
        train.fit_detector(spec, settings, identity=spec.identity(settings), cache={str(tmp_path / "b")!r})
    """)
    killed = subprocess.run([sys.executable, "-c", script], check=False, cwd=in_world.root, capture_output=True,
                            env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert len(list((tmp_path / "b").glob("*.pt"))) == 1
    resumed, curve = fit(in_world, spec_of(in_world), tmp_path / "b")
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), resumed.state_dict().values()))
    assert [point["step"] for point in curve] == [1, 2, 3, 4]
    assert not list((tmp_path / "b").glob("*.pt"))


def test_a_loss_that_is_not_finite_stops_with_step_and_samples(in_world, tmp_path, monkeypatch):
    honest = train.anl_loss

    def broken(*arguments):
        losses = honest(*arguments)
        return {**losses, "loss": losses["loss"] * float("nan")}

    monkeypatch.setattr(train, "anl_loss", broken)
    with pytest.raises(UserError, match=r"loss is nan at step 1 \(batch of real/"):
        fit(in_world, spec_of(in_world), tmp_path)


def test_batches_cover_every_pair_once_an_epoch():
    seen = np.concatenate([train.pair_batch(10, 4, seed=3, step=k) for k in range(5)])
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10))
    assert not np.array_equal(seen[:10], seen[10:])


def test_due_marks_each_share_once_and_the_last_step():
    marks = [k for k in range(240) if train.due(k, 240, 4)]
    assert marks == [59, 119, 179, 239]
    assert [k for k in range(3) if train.due(k, 3, 40)] == [0, 1, 2]


def test_both_images_of_a_pair_are_augmented_alike_and_their_noise_is_not_asked_for(in_world, tmp_path, monkeypatch):
    calls, counted = [], []
    apply, loss = train.augment.apply, train.anl_loss
    monkeypatch.setattr(train.augment, "apply", lambda plans, images: calls.append(plans) or apply(plans, images))
    monkeypatch.setattr(train, "anl_loss", lambda *a: counted.append(a[4].tolist()) or loss(*a))
    fit(in_world, spec_of(in_world), tmp_path)
    assert len(calls) == 4 and any(plan for plans in calls for plan in plans)
    for plans, counts in zip(calls, counted, strict=True):
        half = len(plans) // 2
        assert plans[:half] == plans[half:] and counts == [plan is None for plan in plans]
