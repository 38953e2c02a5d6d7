"""Training priors and generators on the shared loop."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from anl import seeds
from anl.io import UserError
from anl.training.device import make_accelerator
from anl.training.generative import train_generative
from anl.training.loop import Checkpoint


class Crops:
    """Batch k is a pure function of k."""

    def batch(self, step):
        return torch.rand(4, 3, 8, 8, generator=seeds.torch_generator(1, "crops", step)) * 2 - 1


def config(**changes):
    return SimpleNamespace(**{"steps": 8, "learning_rate": 0.01, "weight_decay": 0.0, "warmup_steps": 1, "final_learning_rate": 0.1,
                              "clip_norm": 1.0, "ema": 0.9, **changes})


def denoise(models, x, generator, step):
    noise = torch.randn(x.shape, generator=generator)
    return (models["net"](x + noise) - noise).square().mean()


def train(loss=denoise, checkpoint=None, **options):
    torch.manual_seed(0)
    models = {"net": nn.Conv2d(3, 3, 3, 1, 1)}
    changes = options.pop("changes", {})
    curve = train_generative("tiny", models, loss, Crops(), config(**changes), seed=3, accelerator=make_accelerator("fp32"),
                             checkpoint=checkpoint, **options)
    return models["net"], curve


def test_loss_falls_and_the_model_is_left_in_eval_mode():
    net, curve = train(changes={"steps": 60, "learning_rate": 0.02})
    assert curve[-1]["loss"] < 0.7 * curve[0]["loss"] and not net.training and curve[-1]["step"] == 60


def test_killed_and_resumed_is_bit_identical(tmp_path, monkeypatch):
    def die(models, x, generator, step):
        if step == 5:
            raise InterruptedError
        return denoise(models, x, generator, step)

    save = Checkpoint.save
    monkeypatch.setattr("anl.training.loop.time.monotonic", iter(range(0, 10**6, 100)).__next__)  # a checkpoint at every step
    with pytest.raises(InterruptedError):
        train(die, Checkpoint(tmp_path, "g", 1))
    assert save is Checkpoint.save and torch.load(next(tmp_path.iterdir()), weights_only=True)["step"] == 5
    resumed, whole = train(checkpoint=Checkpoint(tmp_path, "g", 1)), train()
    assert resumed[1] == whole[1]
    assert all(torch.equal(one, other) for one, other in zip(resumed[0].parameters(), whole[0].parameters(), strict=True))


def test_draws_depend_on_seed_name_and_step_only():
    draws = []

    def loss(models, x, generator, step):
        draws.append((step, torch.rand(1, generator=generator).item()))
        return models["net"](x).mean()

    train(loss)
    torch.rand(5)
    train(loss)
    assert draws[:8] == draws[8:] and len({value for _, value in draws}) == 8


def test_several_losses_are_recorded_and_preparation_comes_first():
    order = []

    def loss(models, x, generator, step):
        order.append(("loss", step))
        value = models["net"](x).square().mean()
        return {"loss": 2 * value, "part": value}

    _, curve = train(loss, before_step=lambda step: order.append(("before", step)), changes={"steps": 2})
    assert order == [("before", 0), ("loss", 0), ("before", 1), ("loss", 1)]
    assert curve[0]["loss"] == pytest.approx(2 * curve[0]["part"])


def test_zero_steps_leave_the_model_untrained():
    torch.manual_seed(0)
    untrained = nn.Conv2d(3, 3, 3, 1, 1).weight
    net, curve = train(changes={"steps": 0})
    assert curve == [] and torch.equal(net.weight, untrained)


def test_non_finite_loss_names_model_and_step():
    with pytest.raises(UserError, match="tiny: the loss is not finite at step 3"):
        train(lambda models, x, generator, step: models["net"](x).mean() * (float("nan") if step == 2 else 1))
