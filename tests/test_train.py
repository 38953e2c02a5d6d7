import dataclasses
import os
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch

from anl import processes, runs, targets, train
from anl.errors import UserError
from tests.conftest import ROOT

torch.set_num_threads(1)


@pytest.fixture
def in_world(world, monkeypatch):
    """The world's folder as working directory, where `models`, `targets` and `runs` lie."""
    monkeypatch.chdir(world.root)
    return world


def spec_of(world, target="prior", seed=0, **options):
    return runs.make_spec(world.params, target, 10, "affinity", 1.0, seed, **options)


def with_training(world, **changes):
    """The world's profile with other training settings."""
    return dataclasses.replace(world.params, training=dataclasses.replace(world.params.training, **changes))


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


@pytest.mark.parametrize("ema", [0.0, 0.5])
def test_a_killed_run_resumes_to_the_very_weights(in_world, tmp_path, ema):
    settings, spec = with_training(in_world, ema=ema), spec_of(in_world)

    def run(cache):
        return train.fit_detector(spec, settings, identity=spec.identity(settings), cache=str(cache))

    whole, _ = run(tmp_path / "a")
    script = textwrap.dedent(f"""
        import os, signal, sys
        sys.path.insert(0, {str(ROOT)!r})
        import torch; torch.set_num_threads(1)
        from pathlib import Path
        from anl import runs, train, params
        from tests.conftest import tiny_settings
        settings = tiny_settings(Path({str(in_world.root)!r}))
        settings["training"]["ema"] = {ema}
        settings = params.from_dict(settings, "tiny")
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
    resumed, curve = run(tmp_path / "b")
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
    listed = (tmp_path / f"{spec_of(in_world).slug}-stopped.txt").read_text().split()
    assert len(listed) == in_world.params.training.batch_size
    assert listed[0].startswith("real/") and listed[-1].startswith("ddim/")


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


def test_flipped_pairs_ask_for_the_mirrored_noise(in_world, tmp_path, monkeypatch):
    """Every flip undone, the training is that of images as they are: mirrored with it are both images and their noise."""
    seen, targeted = {}, {}
    mirror, loss, inputs = train.augment.mirror, train.anl_loss, train._inputs
    monkeypatch.setattr(train, "_inputs", lambda *a: seen.setdefault("x", []).append(inputs(*a)) or seen["x"][-1])
    monkeypatch.setattr(train.augment, "mirror", lambda x, flipped: seen.setdefault("flips", []).append((x, flipped))
                        or mirror(x, flipped))
    monkeypatch.setattr(train, "anl_loss", lambda *a: targeted.setdefault("n", []).append(a[3]) or loss(*a))
    settings, spec = with_training(in_world, flip=True, augment_probability=0.0), spec_of(in_world)
    train.fit_detector(spec, settings, identity="x", cache=str(tmp_path))
    images, noises = seen["flips"][::2], seen["flips"][1::2]
    assert len(images) == len(noises) == 4
    for (x, flipped), (noise, alike), given, plain in zip(images, noises, targeted["n"], seen["x"], strict=True):
        half = len(flipped) // 2
        assert flipped == alike and flipped[:half] == flipped[half:] and torch.equal(x, plain)
        assert torch.equal(given, mirror(noise, flipped))
    assert 0 < sum(sum(flipped) for _, flipped in images) < 32


def test_an_average_of_the_weights_is_returned_where_asked_for(in_world, tmp_path, monkeypatch):
    """Decay d: w_1 = the first step's weights, then w_k = d w_(k-1) + (1 - d) of the step's own."""
    steps = []
    update = train.AveragedModel.update_parameters
    monkeypatch.setattr(train.AveragedModel, "update_parameters", lambda self, model: steps.append(
        model.classifier.weight.detach().clone()) or update(self, model))
    settings, spec = with_training(in_world, ema=0.5), spec_of(in_world)
    averaged, _ = train.fit_detector(spec, settings, identity="x", cache=str(tmp_path))
    expected = steps[0]
    for weight in steps[1:]:
        expected = 0.5 * expected + 0.5 * weight
    assert len(steps) == 4
    torch.testing.assert_close(averaged.classifier.weight.detach(), expected)


def test_a_batch_in_parts_asks_for_the_same_losses(in_world, tmp_path, monkeypatch):
    """Each part normalises itself, so the curve is near, not equal; the parts' shares sum to the whole batch."""
    sizes = []
    honest = train.anl_loss
    monkeypatch.setattr(train, "anl_loss", lambda *a: sizes.append((len(a[0]), a[6])) or honest(*a))
    settings, spec = with_training(in_world, accumulate=2), spec_of(in_world)
    train.fit_detector(spec, settings, identity="x", cache=str(tmp_path))
    assert len(sizes) == 8 and all(size == 4 and batch[0] == 8 for size, batch in sizes)


@pytest.mark.parametrize("noise_on, classes", [("both", {0.0, 1.0}), ("real", {0.0}), ("generated", {1.0})])
def test_the_noise_is_asked_of_the_chosen_class_alone(in_world, tmp_path, monkeypatch, noise_on, classes):
    counted = []
    honest = train.anl_loss
    monkeypatch.setattr(train, "anl_loss", lambda *a: counted.extend(a[1][a[4]].tolist()) or honest(*a))
    fit(in_world, spec_of(in_world, noise_on=noise_on), tmp_path)
    assert set(counted) == classes


def test_a_smaller_set_of_pairs_lies_in_the_larger_one_and_too_large_a_one_is_refused(in_world):
    few, more = (set(train._load_data(spec_of(in_world, target="none", pairs=n), in_world.params)["real"].tolist())
                 for n in (3, 6))
    assert len(few) == 3 and few < more
    with pytest.raises(UserError, match=r"999 training pairs were asked for, and the benchmark holds \d+"):
        train._load_data(spec_of(in_world, target="none", pairs=999), in_world.params)


def test_a_leaky_run_trains_on_reals_that_went_through_jpeg(in_world):
    honest, leaky = (train._load_data(spec_of(in_world, target="none", formats=name), in_world.params)
                     for name in ("lossless", "leaky"))
    assert np.array_equal(honest["pixels"][honest["fake"]], leaky["pixels"][leaky["fake"]])
    assert (honest["pixels"][honest["real"]] != leaky["pixels"][leaky["real"]]).any((1, 2, 3)).all()


def test_half_precision_without_a_gpu_is_refused(in_world, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    settings = with_training(in_world, precision="fp16")
    with pytest.raises(UserError, match="fp16 needs a GPU"):
        train.fit_detector(spec_of(in_world), settings, identity="x", cache=str(tmp_path))


def test_a_consistent_run_asks_augmented_images_too(in_world, tmp_path, monkeypatch):
    counted = []
    honest = train.anl_loss
    monkeypatch.setattr(train, "anl_loss", lambda *a: counted.extend(a[4].tolist()) or honest(*a))
    fit(in_world, spec_of(in_world, consistent=True), tmp_path)
    assert all(counted) and len(counted) == 32


def test_trainings_of_several_number_formats_can_follow_each_other_in_one_process():
    """Accelerate fixes the format for a whole process; a notebook, or these tests, train in more than one."""
    assert [processes.accelerator(precision).mixed_precision for precision in ("bf16", "fp32", "bf16")] == ["bf16", "no", "bf16"]
