"""Training detectors: batches, augmentation shared by pairs, targets, validation and resume, with tiny stand-ins."""

from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from torch import nn

from anl.data import images
from anl.data.processing import apply_plan, augmentation_plan
from anl.io import UserError
from anl.models.detector import Detector, Output
from anl.training.detector import TrainingData, noise_mask, pair_batch, train_detector
from anl.training.device import make_accelerator, synchronise_batch_norm
from anl.training.loop import Checkpoint

METHOD = SimpleNamespace(loss_weight=1.0, attention_weight=0.1, noise_on="both", consistent=False)


class Tiny(nn.Module):
    """A detector without batch statistics; remembers the images that it was trained on."""

    def __init__(self):
        super().__init__()
        self.stem, self.head, self.linear = nn.Conv2d(3, 4, 3, 1, 1), nn.Conv2d(4, 3, 1), nn.Linear(4, 1)
        self.seen = []

    def forward(self, x):
        if self.training:
            self.seen.append(x.detach().clone())
        h = self.stem(x).relu()
        features = h.mean((2, 3))
        return Output(self.linear(features)[:, 0], self.head(h), x.new_ones(len(x), 1, 1), features)


def settings(**changes):
    return SimpleNamespace(**{"steps": 6, "batch_size": 4, "learning_rate": 0.01, "weight_decay": 1e-4, "warmup_steps": 1,
                              "final_learning_rate": 0.1, "clip_norm": 1.0, "accumulate": 1, "ema": 0.0, "flip": False, "pairs": 0,
                              "validate_every": 2, "checkpoint_seconds": -1, "augment_probability": 0.5, "compile": False, **changes})


def make_data(pairs=5, alternatives=1, size=8):
    """Reals hold even values, generated images odd ones; targets are the images themselves."""
    rng = np.random.default_rng(0)
    count = pairs * (1 + alternatives)
    pixels = rng.integers(0, 128, (count, size, size, 3), dtype=np.uint8) * 2
    pixels[pairs:] += 1
    label = (np.arange(count) >= pairs).astype(np.float32)
    return TrainingData(pixels, label, [f"image-{row}" for row in range(count)], np.arange(pairs),
                        pairs + np.arange(pairs * alternatives).reshape(alternatives, pairs).T,
                        images.to_tensor(pixels).half(), pixels.copy(), label.copy())


def plan_none(pairs, training, seed, step):
    return [None] * len(pairs)


def plan_some(pairs, training, seed, step):
    return [("invert", step) if pair % 2 else None for pair in pairs.tolist()]


def invert(plan, pixels):
    return np.stack([image if entry is None else 255 - image for entry, image in zip(plan, pixels, strict=True)])


def train(data=None, model=None, augment=(plan_none, invert), method=METHOD, seed=1, **options):
    torch.manual_seed(0)
    model = model or Tiny()
    changes = options.pop("changes", {})
    return train_detector(model, data or make_data(), settings(**changes), method, seed=seed, augment=augment,
                          accelerator=make_accelerator("fp32"), **options)


def rows_of(x, data, processed=False):
    """Rows of the data whose pixels a batch holds."""
    pixels = ((x + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return [int(np.flatnonzero((data.pixels == image).all((1, 2, 3)))[0]) if (data.pixels == image).all((1, 2, 3)).any() else None
            for image in (255 - pixels if processed else pixels)]


def test_batches_hold_pairs_that_pass_through_all_data():
    data, model = make_data(), Tiny()
    train(data, model, changes={"steps": 5})
    halves = [(rows[:2], rows[2:]) for rows in (rows_of(x, data) for x in model.seen)]
    assert all([real + 5 for real in reals] == fakes for reals, fakes in halves)
    assert sorted(row for reals, _ in halves for row in reals) == sorted(list(range(5)) * 2)


def test_pair_batch_is_a_pure_function_of_seed_and_step():
    assert np.array_equal(pair_batch(7, 3, 1, 4), pair_batch(7, 3, 1, 4))
    whole = np.concatenate([pair_batch(7, 3, 1, step) for step in range(7)])
    assert all(sorted(whole[start:start + 7]) == list(range(7)) for start in (0, 7, 14))
    assert len(pair_batch(2, 9, 1, 0)) == 9  # a batch larger than an epoch
    assert not np.array_equal(pair_batch(100, 50, 1, 0), pair_batch(100, 50, 2, 0))


def test_both_images_of_a_pair_are_augmented_and_the_originals_are_not_changed():
    data, model = make_data(), Tiny()
    before = data.pixels.copy()
    train(data, model, (plan_some, invert))
    for x in model.seen:
        plain, inverted = rows_of(x, data), rows_of(x, data, processed=True)
        pairs = [(one if one is not None else other) % 5 for one, other in zip(plain, inverted, strict=True)]
        assert pairs[:2] == pairs[2:]
        assert [row is None for row in plain] == [pair % 2 == 1 for pair in pairs]
    assert np.array_equal(data.pixels, before)


def test_flips_mirror_images_and_targets_of_both_alike():
    data, received = make_data(), []

    def loss(output, label, target, mask, **options):
        received.append(target.float())
        return {"loss": output.logit.mean() * 0}

    model = Tiny()
    train(data, model, loss=loss, changes={"flip": True, "steps": 12, "batch_size": 4})
    flipped = []
    for x, target in zip(model.seen, received, strict=True):
        torch.testing.assert_close(target, x, rtol=0, atol=2e-3)  # the target of each image is the image, mirrored with it
        rows = [row is None for row in rows_of(x, data)]
        assert rows[:2] == rows[2:] and None not in rows_of(x[rows].flip(-1), data)
        flipped += rows[:2]
    assert any(flipped) and not all(flipped)


def test_noise_mask():
    plan = [None, ("jpeg", 80), None]
    assert noise_mask(plan).tolist() == [[True, False, True]] * 2
    assert noise_mask(plan, "real").tolist() == [[True, False, True], [False] * 3]
    assert noise_mask(plan, "generated", consistent=True).tolist() == [[False] * 3, [True] * 3]


def test_loss_receives_label_mask_weights_and_sizes_of_the_whole_batch():
    calls = []

    def loss(output, label, target, mask, **options):
        calls.append((label.tolist(), mask.tolist(), options))
        return {"loss": output.logit.mean()}

    train(augment=(plan_some, invert), loss=loss, changes={"steps": 2, "accumulate": 2})
    for first, second in zip(calls[::2], calls[1::2], strict=True):
        assert first[0] == second[0] == [0, 1]
        assert first[2] == {"loss_weight": 1.0, "attention_weight": 0.1, "batch": (4, sum(first[1]) + sum(second[1]))}


def test_accumulation_gives_the_same_trajectory():
    (one, curve), (two, other) = train(augment=(plan_some, invert)), train(augment=(plan_some, invert), changes={"accumulate": 2})
    torch.testing.assert_close(dict(one.named_parameters()), dict(two.named_parameters()), rtol=0, atol=1e-5)
    assert [point["noise_loss"] for point in curve] == pytest.approx([point["noise_loss"] for point in other], abs=1e-5)


@pytest.mark.parametrize("changes", [{}, {"accumulate": 2, "flip": True, "batch_size": 6}])
def test_threads_that_work_ahead_change_nothing(changes):
    (one, curve), (two, other) = (train(augment=(plan_some, invert), changes=changes, workers=count) for count in (0, 3))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True)) and curve == other


def test_batches_are_made_one_step_ahead_and_their_mistakes_reach_the_caller():
    made = []

    def plan_of(pairs, training, seed, step):
        made.append(step)
        if step == 4:
            raise UserError("image x cannot be read")
        return [None] * len(pairs)

    with pytest.raises(UserError, match="image x cannot be read"):
        train(augment=(plan_of, invert), workers=2)
    assert set(made) == {0, 1, 2, 3, 4}


def test_a_compiled_detector_learns_the_same(monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda module: compiled.append(module) or module)  # the compiler itself takes minutes
    (one, _), (two, _) = train(), train(changes={"compile": True})
    assert len(compiled) == 1 and all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_alternatives_are_drawn_and_belong_to_their_pair():
    data, model = make_data(alternatives=3), Tiny()
    train(data, model, changes={"steps": 20})
    found = [rows_of(x, data) for x in model.seen]
    assert all((fake - 5) % 5 == real for rows in found for real, fake in zip(rows[:2], rows[2:], strict=True))
    assert len({(fake - 5) // 5 for rows in found for fake in rows[2:]}) == 3


def test_fewer_pairs_are_a_subset():
    used = {}
    for pairs in (2, 4):
        data, model = make_data(), Tiny()
        train(data, model, changes={"pairs": pairs})
        used[pairs] = {row for x in model.seen for row in rows_of(x, data)[:2]}
    assert len(used[2]) == 2 and len(used[4]) == 4 and used[2] < used[4]


def test_validation_auroc_is_that_of_scikit_learn_and_learning_raises_it():
    data = make_data(pairs=8)
    data.pixels[8:] = data.pixels[8:] // 2  # generated images are darker
    data.val_pixels = data.pixels
    model, curve = train(data, changes={"steps": 60, "learning_rate": 0.05, "validate_every": 20})
    found = {point["step"]: point["val_auroc"] for point in curve if "val_auroc" in point}
    with torch.no_grad():
        logit = model(images.to_tensor(data.pixels)).logit.numpy()
    assert list(found) == [20, 40, 60] and found[60] > 0.95
    assert found[60] == np.mean(logit[8:, None] > logit[:8])
    assert curve[-1]["loss"] < curve[0]["loss"] and not model.training


def test_resumed_training_is_bit_identical(tmp_path):
    def die(pairs, training, seed, step):
        if step == 4:
            raise InterruptedError
        return plan_some(pairs, training, seed, step)

    options = {"changes": {"flip": True, "ema": 0.9, "accumulate": 2}}
    with pytest.raises(InterruptedError):
        train(augment=(die, invert), checkpoint=Checkpoint(tmp_path, "d", 1), **options)
    resumed, curve = train(augment=(plan_some, invert), checkpoint=Checkpoint(tmp_path, "d", 1), **options)
    whole, other = train(augment=(plan_some, invert), **options)
    assert len(resumed.seen) == 4 and curve == other  # steps 4 and 5, two parts each
    assert all(torch.equal(value, whole.state_dict()[key]) for key, value in resumed.state_dict().items())


def test_the_detector_itself_learns_noise_with_the_project_s_own_augmentation():
    data, model = make_data(size=32), Detector("test_resnet", 16, 8, 32, attention="energy", patch=4)
    changes = {"steps": 30, "augment_probability": 0.5, "augment_most": 1,
               "augmentations": ["jpeg", "jpeg", "resize", "blur"], "jpeg_quality": [60, 90], "resize_scale": [0.5, 0.9],
               "blur_radius": [0.3, 1.0], "flip": True, "validate_every": 0}

    @torch.no_grad()
    def error():
        return (model.train()(images.to_tensor(data.pixels)).noise - data.target.float()).square().mean().item()

    before = error()  # on all untouched images: the curve's batches of two pairs may have no image in the noise loss
    _, curve = train(data, model, (augmentation_plan, apply_plan), changes=changes)
    assert error() < 0.8 * before and [point["step"] for point in curve if "val_auroc" in point] == [30]


def test_impossible_settings_are_one_clear_line():
    empty = make_data()
    empty.real = np.array([], int)
    for match, options in [("no training pairs", {"data": empty}),
                           ("training.pairs is 9, but the benchmark has 5", {"changes": {"pairs": 9}}),
                           ("2 pairs cannot be divided into 3 parts", {"changes": {"accumulate": 3}})]:
        with pytest.raises(UserError, match=match):
            train(**options)


def test_non_finite_loss_names_images():
    with pytest.raises(UserError, match=r"not finite at step 1 \(samples image-\d, image-\d, image-\d, image-\d\)"):
        train(loss=lambda output, *_, **__: {"loss": output.logit.mean() * float("inf")})


def test_batch_norms_keep_their_activation_when_gpus_share_them():
    network = timm.create_model("tf_efficientnet_lite0", num_classes=1).eval()
    x = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = network(x)
        shared = synchronise_batch_norm(network, SimpleNamespace(num_processes=2, device=torch.device("cuda")))
        assert any(isinstance(module, nn.SyncBatchNorm) for module in shared.modules()) and torch.equal(shared(x), before)
