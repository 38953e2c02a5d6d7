from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from torch import nn

from anl.errors import UserError
from anl.files import sha256_of
from anl.generators.diffusion import noise_scheduler
from anl.prior import NoisePrior
from tests import tiny_priors


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A pixel prior with learned variances and a latent one, as diffusers saves them."""
    root = tmp_path_factory.mktemp("priors")
    return {"pixel": tiny_priors.pixel_folder(root / "pixel", out_channels=6),
            "latent": tiny_priors.latent_folder(root / "latent")}


def load(world):
    return NoisePrior.load(f"{world.models}/prior")


def images(count=2, side=32):
    return torch.rand((count, 3, side, side), generator=torch.Generator().manual_seed(7)) * 2 - 1


# ---- the default prior -------------------------------------------------------------------------------------------------
def test_step_is_the_papers_and_timestep_is_one_less(world):
    frozen, x = load(world), images()
    torch.testing.assert_close(frozen.noise(x, 10, precision="fp32"), frozen.unet(x, 9).sample)


def test_no_noise_is_added_and_a_second_call_says_the_same(world):
    assert torch.equal(load(world).noise(images(), 1), load(world).noise(images(), 1))


def test_bf16_is_autocast_over_float32_weights_in_channels_last(world):
    """To the bit what the cached targets of the default prior were made with."""
    frozen, x = load(world), images()
    assert frozen.precision == "bf16" and frozen.unet.dtype == torch.float32
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = frozen.unet(x.to(memory_format=torch.channels_last), 0).sample.float()
    assert torch.equal(frozen.noise(x, 1), expected)


@pytest.mark.parametrize("precision, tolerance", [("bf16", 0.05), ("fp16", 0.01), ("fp32", 0)])
def test_precision_is_the_objects_or_the_calls(world, precision, tolerance):
    exact = NoisePrior.load(f"{world.models}/prior", precision="fp32").noise(images(), 10)
    own = NoisePrior.load(f"{world.models}/prior", precision=precision).noise(images(), 10)
    assert torch.equal(own, load(world).noise(images(), 10, precision=precision)) and own.dtype == torch.float32
    assert (own - exact).abs().max() <= tolerance
    assert precision == "fp32" or not torch.equal(own, exact)


def test_an_unknown_precision(world):
    with pytest.raises(UserError, match="precision 'half' is unknown; choose one of fp32, bf16, fp16"):
        NoisePrior.load(f"{world.models}/prior", precision="half")


@pytest.mark.parametrize("step", [0, -1, 1001, 2.5, True])
def test_a_step_outside_the_schedule_is_refused(world, step):
    with pytest.raises(UserError, match="is not one of the prior's steps 1 to 1000"):
        load(world).noise(torch.zeros(1, 3, 32, 32), step)


def test_noise_amplitude_in_grey_levels_at_the_first_steps(world):
    """1.27 grey levels at t = 1 for beta from 1e-4 to 2e-2: sqrt(1e-4) of half the range."""
    assert load(world).sigma(1) * 127.5 == pytest.approx(1.275, abs=0.005)
    assert load(world).sigma(2) * 127.5 == pytest.approx(1.39 * 1.275 * 1.064, rel=0.02)


def test_what_is_not_finite_is_refused(world):
    with pytest.raises(UserError, match="noise at step 3 holds NaN or infinite numbers in bf16"):
        load(world).noise(torch.full((1, 3, 32, 32), float("inf")), 3)


# ---- pixels and latents ------------------------------------------------------------------------------------------------
def test_frozen_stays_frozen(world, folders):
    for folder in (f"{world.models}/prior", *folders.values()):
        before = sha256_of(folder)
        frozen = NoisePrior.load(folder)
        models = [model for model in (frozen.unet, frozen.vae) if model is not None]
        weights = [{key: value.clone() for key, value in model.state_dict().items()} for model in models]
        x = torch.zeros(1, 3, 32, 32, requires_grad=True)
        assert not frozen.noise(x, 1).requires_grad and not frozen.denoise(frozen.encode(x), 1).requires_grad
        for model, held in zip(models, weights, strict=True):
            assert not model.training and not any(p.requires_grad for p in model.parameters())
            assert all(torch.equal(held[key], value) for key, value in model.state_dict().items())
        assert sha256_of(folder) == before


def test_a_learned_variance_is_left_out(folders):
    frozen, x = NoisePrior.load(folders["pixel"], precision="fp32"), images()
    output = frozen.unet(x, 4).sample
    assert output.shape[1] == 6 and (frozen.channels, frozen.factor) == (3, 1)
    torch.testing.assert_close(frozen.noise(x, 5), output[:, :3])
    assert frozen.encode(x) is x


def test_a_latent_prior_sees_the_mode_of_the_posterior_and_the_empty_prompt(folders):
    frozen, x = NoisePrior.load(folders["latent"], precision="fp32"), images()
    assert (frozen.channels, frozen.factor, frozen.steps) == (4, 2, 1000)
    z = frozen.vae.encode(x).latent_dist.mode() * frozen.vae.config.scaling_factor
    torch.testing.assert_close(frozen.encode(x), z)
    expected = frozen.unet(z, 0, encoder_hidden_states=frozen.prompt.expand(2, -1, -1)).sample
    noise = frozen.noise(x, 1)
    torch.testing.assert_close(noise, expected)
    assert noise.shape == (2, 4, 16, 16) and torch.equal(noise, frozen.noise(x, 1))
    assert not torch.equal(noise, frozen.unet(z, 0, torch.zeros_like(frozen.prompt).expand(2, -1, -1)).sample)


def test_the_latent_shift_is_taken_off_before_the_scale(tmp_path):
    plain = NoisePrior.load(tiny_priors.latent_folder(tmp_path / "plain"))
    shifted = NoisePrior.load(tiny_priors.latent_folder(
        tmp_path / "shifted", vae_config={"shift_factor": 0.1, "scaling_factor": 2.0}))
    mode = plain.encode(images()) / plain.vae.config.scaling_factor
    torch.testing.assert_close(shifted.encode(images()), (mode - 0.1) * 2)


# ---- what the network predicts -----------------------------------------------------------------------------------------
class Knows(nn.Module):
    """Stands in for a UNet whose raw output is given."""

    def __init__(self, output):
        super().__init__()
        self.output = output
        self.config = SimpleNamespace(in_channels=output.shape[1], block_out_channels=(8,), sample_size=None)

    def forward(self, z, timestep, *prompt):
        return SimpleNamespace(sample=self.output)


@pytest.mark.parametrize("step", [1, 2, 50, 300, 1000])
@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_every_parametrisation_becomes_the_same_epsilon(prediction_type, channels, step):
    generator = torch.Generator().manual_seed(step)
    clean = torch.rand((2, channels, 8, 8), generator=generator, dtype=torch.float64) * 1.8 - 0.9
    epsilon = torch.randn(clean.shape, generator=generator, dtype=torch.float64)
    scheduler = DDPMScheduler(prediction_type=prediction_type)
    alpha = scheduler.alphas_cumprod[step - 1].double()
    z = (alpha.sqrt() * clean + (1 - alpha).sqrt() * epsilon).float()
    raw = {"epsilon": epsilon, "v_prediction": alpha.sqrt() * epsilon - (1 - alpha).sqrt() * clean, "sample": clean}
    latent = {"vae": tiny_priors.vae(), "prompt": torch.zeros(1, *tiny_priors.PROMPT)} if channels == 4 else {}
    frozen = NoisePrior(Knows(raw[prediction_type].float()), scheduler, precision="fp32", **latent)
    torch.testing.assert_close(frozen.epsilon(z, step), epsilon.float(), atol=1e-5, rtol=0)
    loss = 1e-5 if prediction_type != "epsilon" or step < 1000 else 1e-4  # float32 over sqrt(alpha) = 0.006
    torch.testing.assert_close(frozen.denoise(z, step), clean.float(), atol=loss, rtol=0)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("kind", ["pixel", "latent"])
def test_noise_denoised_image_and_input_are_one_identity(tmp_path, kind, prediction_type):
    """sqrt(a) z0 + sqrt(1 - a) eps = z holds for the prior's own estimate of z0 and eps, whatever it predicts."""
    make = {"pixel": tiny_priors.pixel_folder, "latent": tiny_priors.latent_folder}[kind]
    frozen = NoisePrior.load(make(tmp_path, prediction_type))
    noised, noise = frozen.forward_noise(frozen.encode(images()), 200, torch.Generator().manual_seed(0))
    alpha = frozen.alphas_cumprod[199]
    rebuilt = alpha.sqrt() * frozen.denoise(noised, 200) + (1 - alpha).sqrt() * frozen.epsilon(noised, 200)
    torch.testing.assert_close(rebuilt, noised.double(), atol=1e-5, rtol=1e-5, check_dtype=False)
    torch.testing.assert_close(noised, alpha.sqrt().float() * frozen.encode(images()) + (1 - alpha).sqrt().float() * noise)


def test_the_default_priors_identity_and_schedule(world):
    frozen = load(world)
    assert torch.equal(frozen.alphas_cumprod, noise_scheduler().alphas_cumprod.double())
    noised, _ = frozen.forward_noise(images(), 200, torch.Generator().manual_seed(0))
    alpha = frozen.alphas_cumprod[199]
    rebuilt = alpha.sqrt() * frozen.denoise(noised, 200) + (1 - alpha).sqrt() * frozen.noise(noised, 200)
    torch.testing.assert_close(rebuilt, noised.double(), atol=1e-5, rtol=1e-5, check_dtype=False)


def test_a_schedule_that_ends_in_pure_noise_has_an_image_under_v():
    scheduler = DDIMScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing")
    assert scheduler.alphas_cumprod[-1] == 0
    output = torch.rand(1, 3, 8, 8)
    frozen = NoisePrior(Knows(output), scheduler, precision="fp32")
    z = torch.randn(1, 3, 8, 8)
    assert torch.equal(frozen.epsilon(z, 1000), z) and torch.equal(frozen.denoise(z, 1000), -output)


# ---- sizes -------------------------------------------------------------------------------------------------------------
def test_a_crop_must_fit_the_networks_halvings(folders):
    pixel, latent = (NoisePrior.load(folders[kind]) for kind in ("pixel", "latent"))
    assert pixel.check_size(18) == 18 and latent.check_size(20) == 20
    for frozen, side, unit in ((pixel, 17, 2), (pixel, 0, 2), (latent, 18, 4)):
        with pytest.raises(UserError, match=f"a crop of {side} pixels does not fit .* multiple of {unit}; mend"):
            frozen.check_size(side)
    with pytest.raises(UserError, match="a crop of 17 pixels"):
        pixel.noise(torch.zeros(1, 3, 16, 17), 1)


def test_notes_tell_of_another_size_and_of_rounding(world, folders, tmp_path):
    assert load(world).notes(32) == [], "made for no one size"
    assert NoisePrior.load(folders["pixel"]).notes(16) == [] and NoisePrior.load(folders["latent"]).notes(16) == []
    (note,) = NoisePrior.load(folders["latent"]).notes(32)
    assert "images of 16 pixels and sees crops of 32" in note and "never a resized copy" in note
    folder = tiny_priors.pixel_folder(tmp_path, "sample")
    (note,) = NoisePrior.load(folder).notes(16)
    assert "use precision fp32" in note and NoisePrior.load(folder, precision="fp32").notes(16) == []
