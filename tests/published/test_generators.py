import numpy as np
import pytest
import torch

from anl.errors import UserError
from anl.files import sha256_of
from anl.fitting import Checkpoint
from anl.published import generators
from tests.conftest import photograph

TINY = {"channels": [4, 4, 4], "latent_channels": 4, "crop": 32, "batch_size": 2, "steps": 3, "learning_rate": 0.01, "ema": 0.5}


@pytest.mark.parametrize("name", ["gan", "vae", "ddpm"])
def test_samples_have_the_size_follow_the_seed_and_do_not_depend_on_the_count(public, name):
    folder = public.root / "models" / name
    images = generators.sample(name, folder, 3, 32, seed=1, inference_steps=2)
    assert images.shape == (3, 3, 32, 32) and images.abs().max() <= 1 and images.std() > 0
    assert torch.equal(images, generators.sample(name, folder, 3, 32, seed=1, inference_steps=2))
    assert not torch.equal(images, generators.sample(name, folder, 3, 32, seed=2, inference_steps=2))


@pytest.mark.parametrize("name", ["gan", "vae"])
def test_training_is_the_same_twice_and_moves_the_weights(tmp_path, name):
    sources = [photograph(i, 32, 32) for i in range(4)]
    for folder in ("a", "b"):
        generators.fit_model(name, sources, TINY, tmp_path / folder, seed=3, cache=tmp_path / f"cache-{folder}")
    assert sha256_of(tmp_path / "a") == sha256_of(tmp_path / "b") and not list((tmp_path / "cache-a").glob("*.pt"))
    generators.fit_model(name, sources, {**TINY, "steps": 1}, tmp_path / "c", seed=3, cache=tmp_path / "cache-c")
    assert sha256_of(tmp_path / "a" / generators.WEIGHTS) != sha256_of(tmp_path / "c" / generators.WEIGHTS)


def test_the_vaes_loss_is_the_bound_by_hand():
    x = torch.zeros(1, 3, 2, 2)
    code = torch.tensor([[0.0, 0.0]])  # mean 0, log variance 0: the prior itself, no divergence
    decoded = torch.full_like(x, 0.25)
    loss = generators.vae_loss(lambda _: code, lambda _: decoded, x, torch.Generator().manual_seed(0))
    assert loss.item() == pytest.approx(0.5)  # half a squared standard deviation a value
    moved = torch.tensor([[2.0, 0.0]])
    loss = generators.vae_loss(lambda _: moved, lambda _: decoded, x, torch.Generator().manual_seed(0))
    assert loss.item() == pytest.approx(0.5 + 2 / 12)


def test_both_players_of_the_gan_learn(tmp_path):
    torch.manual_seed(0)
    decode = generators.Decoder([4, 4, 4], 4, 32)
    judge = generators.encoder([4, 4, 4], 1, 32, spectral=True)
    x = torch.rand(2, 3, 32, 32) * 2 - 1
    before = [[p.detach().clone() for p in model.parameters()] for model in (decode, judge)]
    z = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
    curve = generators.fit_gan(decode, judge, lambda step: x, lambda step: z, steps=2, learning_rate=0.01, ema=0.5,
                               checkpoint=Checkpoint(tmp_path, "gan", {}))
    assert [step for step, _ in curve] == [1, 2] and all(p.requires_grad for p in judge.parameters())
    for model, old in zip((decode, judge), before):
        assert any(not torch.equal(a, b) for a, b in zip(old, model.parameters()))


def test_the_judges_hinge_loss_by_hand():
    scores = iter([torch.tensor([0.5, 2.0]), torch.tensor([-3.0, 0.0])])
    assert generators.judge_loss(lambda _: next(scores), None, None).item() == pytest.approx(0.25 + 0.5)


def test_a_killed_gan_goes_on_to_the_weights_of_one_that_was_not(tmp_path):
    def train(cache, steps_before_death=None):
        torch.manual_seed(0)
        decode, judge = generators.Decoder([4, 4, 4], 4, 32), generators.encoder([4, 4, 4], 1, 32, spectral=True)
        calls = iter(range(100))

        def batch(step):
            if next(calls) == steps_before_death:
                raise KeyboardInterrupt
            return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(step)) * 2 - 1

        generators.fit_gan(decode, judge, batch, lambda step: torch.randn(2, 4, generator=torch.Generator().manual_seed(step)),
                           steps=4, learning_rate=0.01, ema=0.5, checkpoint=Checkpoint(cache, "gan", {}),
                           checkpoint_seconds=0)
        return decode.state_dict()

    whole = train(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", 2)
    resumed = train(tmp_path / "cut")
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


def test_a_size_that_the_channels_do_not_reach_is_refused():
    with pytest.raises(UserError, match="images of 64 pixels need 4 entries in `channels`"):
        generators.Decoder([4, 4, 4], 4, 64)


def test_a_missing_or_broken_model_is_named(tmp_path):
    with pytest.raises(UserError, match="holds no generator"):
        generators.load_decoder(tmp_path / "gan")
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / generators.WEIGHTS).write_bytes(b"broken")
    with pytest.raises(UserError, match=r"generate\s+vae"):
        generators.load_decoder(tmp_path / "vae")


def test_the_ddpm_starts_from_noise_not_from_an_image(public):
    a, b = (generators.sample("ddpm", public.root / "models/ddpm", 2, 32, seed=seed, inference_steps=2) for seed in (1, 2))
    assert np.abs((a - b).numpy()).mean() > 0.05
