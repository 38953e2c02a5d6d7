import pytest
import torch

from anl import prior
from anl.errors import UserError
from anl.files import sha256_of
from anl.generators.diffusion import noise_scheduler


def load(world):
    return prior.NoisePrior.load(f"{world.models}/prior")


def test_step_is_the_papers_and_timestep_is_one_less(world):
    frozen = load(world)
    x = torch.rand(2, 3, 32, 32) * 2 - 1
    expected = frozen.unet(x, 9).sample
    torch.testing.assert_close(frozen.noise(x, 10, autocast=False), expected)


def test_no_noise_is_added_and_a_second_call_says_the_same(world):
    x = torch.rand(2, 3, 32, 32) * 2 - 1
    assert torch.equal(load(world).noise(x, 1), load(world).noise(x, 1))


@pytest.mark.parametrize("step", [0, -1, 1001, 2.5, True])
def test_a_step_outside_the_schedule_is_refused(world, step):
    with pytest.raises(UserError, match="is not one of the prior's steps 1 to 1000"):
        load(world).noise(torch.zeros(1, 3, 32, 32), step)


def test_frozen_stays_frozen(world):
    before = sha256_of(f"{world.models}/prior")
    frozen = load(world)
    weights = {key: value.clone() for key, value in frozen.unet.state_dict().items()}
    x = torch.zeros(1, 3, 32, 32, requires_grad=True)
    assert not frozen.noise(x, 1).requires_grad
    assert not frozen.unet.training and not any(p.requires_grad for p in frozen.unet.parameters())
    assert all(torch.equal(weights[key], value) for key, value in frozen.unet.state_dict().items())
    assert sha256_of(f"{world.models}/prior") == before


def test_noise_denoised_image_and_input_are_one_identity(world):
    """x_t = sqrt(a) x0 + sqrt(1 - a) eps holds for the prior's own estimate of x0 and eps."""
    frozen = load(world)
    noised, _ = frozen.forward_noise(torch.rand(2, 3, 32, 32), 200, torch.Generator().manual_seed(0))
    alpha = noise_scheduler().alphas_cumprod[199]
    rebuilt = alpha.sqrt() * frozen.denoise(noised, 200) + (1 - alpha).sqrt() * frozen.noise(noised, 200)
    torch.testing.assert_close(rebuilt, noised, atol=1e-5, rtol=1e-5)


def test_noise_amplitude_in_grey_levels_at_the_first_steps(world):
    """1.27 grey levels at t = 1 for beta from 1e-4 to 2e-2: sqrt(1e-4) of half the range."""
    assert load(world).sigma(1) * 127.5 == pytest.approx(1.275, abs=0.005)
    assert load(world).sigma(2) * 127.5 == pytest.approx(1.39 * 1.275 * 1.064, rel=0.02)


def test_a_folder_that_is_no_prior_is_named(tmp_path):
    with pytest.raises(UserError, match="holds no diffusion prior"):
        prior.NoisePrior.load(tmp_path)


def test_fit_writes_a_diffusers_pipeline_folder(world, tmp_path):
    from dataclasses import asdict

    from tests.conftest import photograph
    prior.fit_prior([photograph(1), photograph(2)], asdict(world.params.prior), tmp_path / "prior", seed=1,
                    cache=str(tmp_path / "cache"))
    frozen = prior.NoisePrior.load(tmp_path / "prior")
    assert frozen.noise(torch.zeros(1, 3, 16, 16), 1).shape == (1, 3, 16, 16)
    assert not list((tmp_path / "cache").glob("*.pt"))
