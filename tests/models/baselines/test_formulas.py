"""Each published formula against a result worked out by hand or by another library."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler
from scipy.fft import dctn
from torch import nn

from anl import seeds
from anl.io import UserError
from anl.models.baselines import aeroblade, diffusion, pixels
from anl.models.detector import Output
from anl.models.generators.autoencoders import reconstruct
from anl.models.prior import NoisePrior
from tests import tiny_priors


def linear_prior(alphas, epsilon=lambda z, step: z * step):
    return SimpleNamespace(alphas_cumprod=torch.as_tensor(alphas, dtype=torch.float64), epsilon=epsilon,
                           encode=lambda x: x, vae=None)


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


PRIOR = linear_prior([0.9, 0.64, 0.36, 0.1])  # its noise at step t is t * z


def test_npr_is_the_difference_to_the_first_pixel_of_each_block():
    x = torch.arange(16.0).view(1, 1, 4, 4)
    expected = torch.tensor([[0, 1, 0, 1], [4, 5, 4, 5], [0, 1, 0, 1], [4, 5, 4, 5]]) * 2 / 3
    assert torch.allclose(pixels.upsampling_residual(x)[0, 0], expected)
    x = noise(2, 3, 8, 8)
    down = nn.functional.interpolate(x, scale_factor=0.5, mode="nearest")  # the authors' code
    up = nn.functional.interpolate(down, scale_factor=2, mode="nearest")
    assert torch.equal(pixels.upsampling_residual(x), (x - up) * 2 / 3)
    assert pixels.upsampling_residual(noise(1, 3, 4, 4).repeat_interleave(2, 2).repeat_interleave(2, 3)).abs().max() == 0
    with pytest.raises(UserError, match="7 x 8 pixels; use crops with even sides"):
        pixels.upsampling_residual(torch.zeros(1, 3, 8, 7))


def test_spectrum_is_the_orthonormal_cosine_transform():
    x = noise(2, 3, 8, 8).double()
    assert np.allclose(pixels.dct(x).numpy(), dctn(x.numpy(), axes=(2, 3), norm="ortho"))
    with pytest.raises(UserError, match="16 x 16 pixels; use crops of 8 pixels"):
        pixels.Spectrum({}, 8)(torch.zeros(1, 3, 16, 16))


def test_dire_inverts_and_samples_as_diffusers_does():
    """A linear prior. Place k here is diffusers' timestep k - 1; place 0 is the clean image, whose alpha is 1."""
    backward = DDIMScheduler(num_train_timesteps=1000, beta_start=1e-4, beta_end=2e-2, beta_schedule="linear",
                             clip_sample=False, set_alpha_to_one=True)
    backward.num_inference_steps = 5
    alphas, x = backward.alphas_cumprod, noise(1, 3, 4, 4)

    def epsilon(z, step):
        return 0.3 * z + 0.1 * step / 1000

    z = x
    for a, b in itertools.pairwise([0, 200, 400, 600, 800, 1000]):
        e = epsilon(z, max(a, 1))
        before = torch.tensor(1.0) if a == 0 else alphas[a - 1]
        z = backward.add_noise((z - (1 - before).sqrt() * e) / before.sqrt(), e, torch.tensor([b - 1]))
    for a in [1000, 800, 600, 400, 200]:
        z = backward.step(epsilon(z, a), a - 1, z).prev_sample
    prior = linear_prior(alphas, epsilon)
    found = diffusion.inverted(prior, x, 5)
    assert torch.allclose(found, z, atol=1e-4) and (found - x).abs().max() > 1e-3
    assert torch.equal(diffusion.inversion_error(prior, {"inversion_steps": 5})(x), (x - found).abs())


def test_dnf_and_distildire_make_one_call_on_the_clean_image():
    x = torch.full((2, 3, 2, 2), 0.25)
    assert torch.equal(diffusion.predicted_noise(PRIOR, {"noise_step": 3})(x), torch.full((2, 3, 2, 2), 0.75))
    found = diffusion.image_and_noise(PRIOR, {"noise_step": 2})(x)
    assert torch.equal(found[:, :3], x) and torch.equal(found[:, 3:], 2 * x)


def test_lare_is_the_mean_squared_error_of_the_noise_put_in():
    """x_t = sqrt(a) x + sqrt(1 - a) n with a = 0.64 at t = 2; the error is (epsilon(x_t) - n)^2, here (2 x_t - n)^2."""
    x = torch.full((2, 3, 2, 2), 0.5)
    found = diffusion.denoising_error(PRIOR, {"error_step": 2, "error_draws": 3})(x)
    draws = [torch.randn(3, 2, 2, generator=seeds.torch_generator(0, "lare", draw)) for draw in range(3)]
    expected = sum((2 * (0.8 * 0.5 + 0.6 * n) - n).square() for n in draws) / 3
    assert torch.equal(found[:, :3], x) and torch.allclose(found[:, 3:], expected.expand(2, 3, 2, 2), atol=1e-5)


def test_representations_of_a_latent_prior_have_the_images_resolution(tmp_path):
    prior = NoisePrior.load(tiny_priors.latent_folder(tmp_path / "latent"), precision="fp32")
    side = 4 * prior.factor
    x, channels = noise(2, 3, side, side).clamp(-1, 1), prior.channels
    options = {"noise_step": 1, "error_step": 5, "error_draws": 1, "inversion_steps": 1}
    found = diffusion.predicted_noise(prior, options)(x)
    cells = found.unflatten(2, (-1, prior.factor)).unflatten(4, (-1, prior.factor))
    assert torch.equal(cells[:, :, :, 0, :, 0], prior.noise(x, 1))
    assert torch.equal(cells[:, :, :, 1, :, 1], prior.noise(x, 1))
    assert diffusion.denoising_error(prior, options)(x).shape == (2, 3 + channels, side, side)
    assert diffusion.inversion_error(prior, options)(x).shape == (2, channels, side, side)
    made = diffusion.reconstructed(prior, x, torch.Generator().manual_seed(0),
                            {"reconstruction_strength": 0.01, "reconstruction_steps": 1})
    assert made.shape == x.shape and made.abs().max() <= 1 and (made - x).abs().max() > 0


def test_aeroblade_takes_the_smallest_reconstruction_error():
    vae = AutoencoderKL(block_out_channels=(4,), norm_num_groups=2).eval()
    half = nn.Conv2d(3, 3, 1, bias=False).requires_grad_(False)
    half.weight.copy_(torch.eye(3)[:, :, None, None] / 2)
    x = noise(2, 3, 8, 8)
    found = aeroblade.errors([vae, half], {})(x)
    torch.testing.assert_close(found, torch.stack([(x - reconstruct(vae, x)).abs().mean(1), x.abs().mean(1) / 2], 1))
    assert not found.requires_grad
    errors = torch.tensor([0.4, 0.1]).view(1, 2, 1, 1).repeat(2, 1, 4, 4)
    errors[1, 1, 0, 0] = 100.0  # now the first autoencoder is the better one of the second image
    output = aeroblade.SmallestError()(errors)
    assert output.logit.tolist() == pytest.approx([-np.log(0.1), -np.log(0.4)])
    assert output.map.sum((1, 2)).tolist() == pytest.approx([1, 1])


def test_drct_reconstructs_by_ddim_from_the_given_strength():
    """Noised to step 2 of 4, then two steps back, each by hand, with epsilon = t z."""
    x = noise(1, 3, 2, 2) / 10
    options = {"reconstruction_strength": 0.5, "reconstruction_steps": 2}
    found = diffusion.reconstructed(PRIOR, x, torch.Generator().manual_seed(3), options)
    z = 0.8 * x + 0.6 * noise(1, 3, 2, 2, seed=3)
    z = 0.9**0.5 * (z - 0.6 * 2 * z) / 0.8 + 0.1**0.5 * 2 * z
    z = (z - 0.1**0.5 * z) / 0.9**0.5
    assert torch.allclose(found, z.clamp(-1, 1), atol=1e-5)


def test_diffusionfake_is_told_by_the_features_what_to_denoise():
    """With hints that undo the noise of a model that returns its input, half of the loss is what it should be by hand."""
    z, hints = noise(2, 6, 4, 4), noise(2, 6, 2, 2, seed=1)
    prior = SimpleNamespace(steps=4, alphas_cumprod=torch.tensor([0.9, 0.64, 0.36, 0.1]).double(), prediction_type="epsilon",
                            predict=lambda z, timestep: z)
    output = Output(torch.zeros(2), hints, None)
    torch.manual_seed(5)
    found = diffusion.guidance(output, None, z, None, {"guide_weight": 2.0}, prior)
    torch.manual_seed(5)
    step, drawn = torch.randint(4, (4,)), torch.randn(4, 3, 4, 4)
    both = torch.cat([z[:, :3], z[:, 3:]])
    hint = torch.cat([hints[:, :3], hints[:, 3:]]).repeat_interleave(2, 2).repeat_interleave(2, 3)
    alpha = prior.alphas_cumprod[step].float()[:, None, None, None]
    expected = 2 * (alpha.sqrt() * both + (1 - alpha).sqrt() * drawn + hint - drawn).square().mean()
    torch.testing.assert_close(found, expected)


def test_the_guide_is_gone_at_inference():
    detector = {"backbone": "test_resnet", "stride": 8, "stem_width": 4}
    network, x = diffusion.Guide(detector, 32, 6), noise(2, 3, 32, 32)
    assert network.train()(x).noise.shape == (2, 6, 4, 4) and not network(x).noise.any()  # neutral at first
    plain = network.eval().for_inference()
    assert torch.equal(network(x).logit, plain(x).logit) and not [name for name, _ in plain.named_parameters() if "hint" in name]


def test_find_adds_noise_of_the_given_strength():
    x = torch.zeros(4, 3, 64, 64)
    found = pixels.noised(None, x, torch.Generator().manual_seed(3), {"noise_deviation": 2.0})
    assert (found * 127.5).std().item() == pytest.approx(2, rel=0.02) and abs(found.mean().item()) < 1e-3
    assert pixels.noised(None, x + 1, torch.Generator().manual_seed(3), {"noise_deviation": 64.0}).max() == 1


def test_contrastive_loss_by_hand():
    output = Output(None, None, None, torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 3.0]]))
    options = {"margin": 2.0, "contrastive_weight": 1.0}
    push = (2 - 2**0.5) ** 2  # unit vectors at a right angle are sqrt(2) apart; the two of a class lie together
    found = diffusion.contrastive(output, torch.tensor([0.0, 0.0, 1.0]), None, None, options)
    assert found.item() == pytest.approx(push / 2, abs=1e-3)
    alone = diffusion.contrastive(Output(None, None, None, torch.ones(1, 2)), torch.ones(1), None, None, options)
    assert alone.item() == 0  # no pair at all


def test_distillation_is_a_mean_square_over_valid_targets():
    output = Output(None, None, None, torch.tensor([[1.0, 2.0], [0.0, 0.0]]))
    target, options = torch.tensor([[1.0, 4.0], [9.0, 9.0]]), {"distillation_weight": 0.5}
    assert diffusion.distillation(output, None, target, torch.tensor([True, False]), options).item() == 1
    assert diffusion.distillation(output, None, target, torch.tensor([False, False]), options).item() == 0
