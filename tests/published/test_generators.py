import numpy as np
import pytest
import torch

from anl.errors import UserError
from anl.files import sha256_of
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


def test_each_player_of_the_gan_learns_from_its_own_part_of_the_loss():
    torch.manual_seed(0)
    decode = generators.Decoder([4, 4, 4], 4, 32)
    judge = generators.encoder([4, 4, 4], 1, 32, spectral=True)
    x = torch.rand(2, 3, 32, 32) * 2 - 1
    generators.gan_loss(decode, judge, x, torch.Generator().manual_seed(0), 4).backward()
    hinge = [p.grad.clone() for p in judge.parameters()]
    judge.zero_grad()
    fake = decode(torch.randn(2, 4, generator=torch.Generator().manual_seed(0))).detach()
    (torch.relu(1 - judge(x)).mean() + torch.relu(1 + judge(fake)).mean()).backward()
    assert all(torch.allclose(a, b.grad, atol=1e-3) for a, b in zip(hinge, judge.parameters()))
    assert any(p.grad.abs().sum() > 0 for p in decode.parameters())


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
