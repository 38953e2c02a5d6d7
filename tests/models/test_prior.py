from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from anl.io import UserError, sha256_of
from anl.models import precision, prior
from anl.models.baselines import frozen_hash
from anl.models.generators.diffusion import noise_scheduler
from anl.models.prior import NoisePrior, build_prior, save_prior, training_loss
from tests import tiny_priors


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A pixel prior with learned variances, a latent one, and one as trained here, each as saved."""
    root = tmp_path_factory.mktemp("priors")
    torch.manual_seed(0)
    save_prior(build_prior([8, 8], 1), root / "own")
    return {"pixel": tiny_priors.pixel_folder(root / "pixel", out_channels=6),
            "latent": tiny_priors.latent_folder(root / "latent", vae_config={"shift_factor": 0.1}), "own": root / "own"}


def images(count=2, side=16):
    return torch.rand((count, 3, side, side), generator=torch.Generator().manual_seed(7)) * 2 - 1


def test_step_is_the_papers_and_diffusers_timestep_is_one_less(folders):
    frozen, x = NoisePrior.load(folders["own"], precision="fp32"), images()
    torch.testing.assert_close(frozen.noise(x, 10), frozen.unet(x, 9).sample)
    assert torch.equal(frozen.noise(x, 10), frozen.noise(x, 10)), "nothing random is added"
    assert torch.equal(frozen.alphas_cumprod, noise_scheduler().alphas_cumprod.double()) and frozen.steps == 1000


@pytest.mark.parametrize("requested, dtype", [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_precision_is_autocast_over_float32_weights(folders, monkeypatch, requested, dtype):
    monkeypatch.setattr(precision, "cpu_has_bf16", lambda: True)
    frozen, x = NoisePrior.load(folders["own"], precision=requested), images()
    with torch.no_grad(), torch.autocast("cpu", dtype):
        expected = frozen.unet(x.to(memory_format=torch.channels_last), 0).sample.float()
    assert torch.equal(frozen.noise(x, 1), expected) and frozen.unet.dtype == torch.float32
    assert not torch.equal(NoisePrior.load(folders["own"], precision="fp32").noise(x, 1), expected)


def test_bf16_is_fp32_on_a_cpu_without_it(folders, monkeypatch):
    monkeypatch.setattr(precision, "cpu_has_bf16", lambda: False)
    assert precision.effective_precision("bf16", torch.device("cpu")) == "fp32"
    assert precision.effective_precision("bf16", torch.device("cuda")) == "bf16"
    assert precision.effective_precision("fp16", "cpu") == "fp16"
    slow, exact = (NoisePrior.load(folders["own"], precision=name) for name in ("bf16", "fp32"))
    assert torch.equal(slow.noise(images(), 1), exact.noise(images(), 1))
    with pytest.raises(UserError, match="there is no precision 'half'; choose one of fp32, bf16, fp16"):
        NoisePrior.load(folders["own"], precision="half")


def test_steps_and_images_that_cannot_work(folders):
    frozen = NoisePrior.load(folders["own"], precision="fp32")
    for step in (0, -1, 1001, 2.5, True):
        with pytest.raises(UserError, match="is not one of the prior's steps 1 to 1000"):
            frozen.noise(images(), step)
    with pytest.raises(UserError, match="noise at step 3 holds NaN or infinite numbers in fp32"):
        frozen.noise(torch.full((1, 3, 16, 16), float("inf")), 3)


@pytest.mark.parametrize("kind", ["pixel", "latent", "own"])
def test_the_prior_is_frozen(folders, kind):
    before, frozen = sha256_of(folders[kind]), NoisePrior.load(folders[kind])
    weights, x = frozen_hash(frozen), images().requires_grad_()
    assert not frozen.noise(x, 1).requires_grad and not frozen.denoise(frozen.encode(x), 1).requires_grad
    for model in filter(None, (frozen.unet, frozen.vae)):
        assert not model.training and not any(p.requires_grad for p in model.parameters())
    assert frozen_hash(frozen) == weights and sha256_of(folders[kind]) == before


def test_learned_variances_are_dropped(folders):
    frozen, x = NoisePrior.load(folders["pixel"], precision="fp32"), images()
    output = frozen.unet(x, 4).sample
    assert output.shape[1] == 6 and (frozen.channels, frozen.factor) == (3, 1) and frozen.encode(x) is x
    torch.testing.assert_close(frozen.noise(x, 5), output[:, :3])


def test_a_latent_prior_uses_the_posteriors_mode_and_the_empty_prompt(folders):
    frozen, x = NoisePrior.load(folders["latent"], precision="fp32"), images()
    assert (frozen.channels, frozen.factor, frozen.steps) == (4, 2, 1000)
    z = (frozen.vae.encode(x).latent_dist.mode() - 0.1) * frozen.vae.config.scaling_factor
    torch.testing.assert_close(frozen.encode(x), z)
    noise = frozen.noise(x, 1)
    torch.testing.assert_close(noise, frozen.unet(z, 0, encoder_hidden_states=frozen.prompt.expand(2, -1, -1)).sample)
    assert noise.shape == (2, 4, 8, 8)


class Oracle(nn.Module):
    """Stands in for a UNet with a known output."""

    def __init__(self, output):
        super().__init__()
        self.output = nn.Parameter(output)
        self.config = SimpleNamespace(in_channels=output.shape[1], block_out_channels=(8,), sample_size=None)

    def forward(self, z, timestep, *prompt):
        return SimpleNamespace(sample=self.output)


@pytest.mark.parametrize("step", [1, 300, 1000])
@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_every_parametrisation_gives_the_same_noise(prediction_type, channels, step):
    draws = torch.Generator().manual_seed(step)
    clean = torch.rand((2, channels, 8, 8), generator=draws, dtype=torch.float64) * 1.8 - 0.9
    epsilon = torch.randn(clean.shape, generator=draws, dtype=torch.float64)
    scheduler = DDPMScheduler(prediction_type=prediction_type)
    alpha = scheduler.alphas_cumprod[step - 1].double()
    z = (alpha.sqrt() * clean + (1 - alpha).sqrt() * epsilon).float()
    raw = {"epsilon": epsilon, "v_prediction": alpha.sqrt() * epsilon - (1 - alpha).sqrt() * clean, "sample": clean}
    latent = {"vae": tiny_priors.vae(), "prompt": torch.zeros(1, *tiny_priors.PROMPT)} if channels == 4 else {}
    frozen = NoisePrior(Oracle(raw[prediction_type].float()), scheduler, precision="fp32", **latent)
    torch.testing.assert_close(frozen.epsilon(z, step), epsilon.float(), atol=1e-5, rtol=0)
    tolerance = 1e-5 if prediction_type != "epsilon" or step < 1000 else 1e-4  # float32 over sqrt(alpha) = 0.006
    torch.testing.assert_close(frozen.denoise(z, step), clean.float(), atol=tolerance, rtol=0)
    noised, noise = frozen.forward_noise(clean, step, torch.Generator().manual_seed(0))
    torch.testing.assert_close(noised, alpha.sqrt() * clean + (1 - alpha).sqrt() * noise)


def test_a_schedule_that_ends_in_pure_noise_works_with_v_prediction():
    scheduler = DDIMScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing")
    output, z = torch.rand(1, 3, 8, 8), torch.randn(1, 3, 8, 8)
    frozen = NoisePrior(Oracle(output), scheduler, precision="fp32")
    assert torch.equal(frozen.epsilon(z, 1000), z) and torch.equal(frozen.denoise(z, 1000), -output)


def test_a_crop_must_fit_the_networks_downsampling(folders):
    pixel, latent = (NoisePrior.load(folders[kind]) for kind in ("pixel", "latent"))
    assert pixel.check_size(18) == 18 and latent.check_size(20) == 20
    for frozen, side, unit in ((pixel, 17, 2), (pixel, 0, 2), (latent, 18, 4)):
        with pytest.raises(UserError, match=f"a crop of {side} pixels does not fit .* multiple of {unit}; change"):
            frozen.check_size(side)
    with pytest.raises(UserError, match="a crop of 17 pixels"):
        pixel.noise(torch.zeros(1, 3, 16, 17), 1)


def test_notes_about_size_and_rounding(folders, tmp_path):
    assert NoisePrior.load(folders["own"]).notes(32) == [], "trained for no particular size"
    (note,) = NoisePrior.load(folders["latent"]).notes(32)
    assert "images of 16 pixels and sees crops of 32" in note
    folder = tiny_priors.pixel_folder(tmp_path, "sample")
    assert "use precision fp32" in NoisePrior.load(folder).notes(16)[0]
    assert NoisePrior.load(folder, precision="fp32").notes(16) == []


def test_the_denoiser_is_trained_at_its_one_step():
    seen = []

    class Listener(nn.Module):
        def forward(self, noised, timestep):
            seen.append((noised, timestep))
            return SimpleNamespace(sample=torch.zeros_like(noised))

    x = images(64, 8)
    loss = training_loss("denoiser", 30)(Listener(), x, torch.Generator().manual_seed(0))
    noised, timestep = seen.pop()
    alpha = noise_scheduler().alphas_cumprod[29]
    noise = (noised - alpha.sqrt() * x) / (1 - alpha).sqrt()
    assert set(timestep.tolist()) == {29} and loss == pytest.approx(noise.square().mean().item(), rel=1e-4)
    training_loss("blind_denoiser", 30)(Listener(), x, torch.Generator().manual_seed(0))
    noised, timestep = seen.pop()
    assert set(timestep.tolist()) == {29}, "it is not told the step"
    spread = (noised - x).flatten(1).std(1)
    assert spread.min() < 0.3 * spread.max() and spread.max() < 0.15  # sigma(1) = 0.01, sigma(30) = 0.1
    for seed in range(30):
        training_loss("diffusion")(Listener(), x, torch.Generator().manual_seed(seed))
    steps = torch.cat([timestep for _, timestep in seen])
    assert steps.min() < 20 and 979 < steps.max() < 1000


@pytest.mark.parametrize("kind", ["pixel", "latent", "own"])
def test_runs_on_cuda(folders, kind, monkeypatch):
    monkeypatch.setattr(prior, "check_finite", lambda *arguments: None)  # reads a value, which fake tensors do not have
    frozen = NoisePrior.load(folders[kind], precision="fp32")
    with FakeTensorMode(), torch.device("cuda"):  # the constructor's .to() does not work with fake weights
        frozen.device = torch.device("cuda")
        frozen.unet, frozen.vae = (part if part is None else type(part).from_config(part.config)
                                   for part in (frozen.unet, frozen.vae))
        frozen.prompt = frozen.prompt if frozen.prompt is None else torch.empty(frozen.prompt.shape)
        x = torch.empty(2, 3, 16, 16)
        noise, clean = frozen.noise(x, 3), frozen.denoise(frozen.encode(x), 3)
        assert frozen.forward_noise(x, 3, None)[0].device.type == "cuda"
    assert noise.device.type == clean.device.type == "cuda" and noise.shape == clean.shape
    assert noise.shape == (2, frozen.channels, 16 // frozen.factor, 16 // frozen.factor)
