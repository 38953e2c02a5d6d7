"""Each published formula against a result worked out by hand or by another library."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import DDIMInverseScheduler, DDIMScheduler
from scipy.fft import dctn

from anl import residuals, seeds
from anl.baselines import aeroblade, blur_jpeg, dire, distildire, dnf, drct, lare, npr, spectrum
from anl.baselines.interface import Classifier
from anl.detector import Output

DETECTOR = {"backbone": "test_resnet", "stride": 8, "stem_width": 4, "patch": 4, "attention_dim": 4}


def test_npr_is_the_difference_to_the_first_pixel_of_each_block():
    x = torch.arange(16.0).view(1, 1, 4, 4)
    expected = torch.tensor([[0, 1, 0, 1], [4, 5, 4, 5], [0, 1, 0, 1], [4, 5, 4, 5]]) * 2 / 3
    assert torch.allclose(npr.residual(x)[0, 0], expected)
    upsampled = torch.rand(1, 3, 4, 4).repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert npr.residual(upsampled).abs().max() == 0


def test_srm_answers_to_an_impulse_with_its_kernels_and_truncates():
    x = torch.zeros(1, 3, 16, 16)
    x[0, 1, 8, 8] = 1 / 127.5  # one grey level, in green
    found = residuals.residuals(x)
    assert found.shape == (1, 9, 16, 16)
    assert found[0, :3].abs().max() == 0 and found[0, 6:].abs().max() == 0  # red and blue
    assert torch.allclose(found[0, 3, 7:10, 7:10], torch.tensor([[-1., 2, -1], [2, -4, 2], [-1, 2, -1]]) / 4)
    assert found[0, 4, 8, 8] == pytest.approx(-1) and found[0, 5, 8, 7:10].tolist() == pytest.approx([0.5, -1, 0.5])
    assert residuals.residuals(x * 1000).abs().max() == residuals.TRUNCATION
    flat = residuals.residuals(torch.full((1, 3, 8, 8), 0.3)).abs().max()
    assert flat < 1e-4  # every kernel sums to zero


def test_spectrum_is_the_orthonormal_cosine_transform():
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert np.allclose(spectrum.dct(x).numpy(), dctn(x.numpy(), axes=(2, 3), norm="ortho"))


def test_dire_is_the_inversion_of_diffusers_and_back():
    """The same as diffusers' own pair of schedulers, whose timesteps are made the same."""
    steps, total = 5, 1000
    options = {"num_train_timesteps": total, "beta_start": 1e-4, "beta_end": 2e-2, "beta_schedule": "linear",
               "clip_sample": False, "set_alpha_to_one": True}
    forward, backward = DDIMInverseScheduler(**options), DDIMScheduler(**options)
    x = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(0))

    def epsilon(z, step):
        return 0.3 * z + 0.1 * step / total

    alphas = forward.alphas_cumprod
    places = [0, 200, 400, 600, 800, 1000]
    forward.num_inference_steps = backward.num_inference_steps = steps
    # our place k is diffusers' timestep k - 1, and place 0 the clean image, whose alpha is 1
    z = x
    for a, b in itertools.pairwise(places):
        e = epsilon(z, max(a, 1))
        before = torch.tensor(1.0) if a == 0 else alphas[a - 1]
        clean = (z - (1 - before).sqrt() * e) / before.sqrt()
        z = backward.add_noise(clean, e, torch.tensor([b - 1]))
    for a in places[:0:-1]:
        z = backward.step(epsilon(z, a), a - 1, z).prev_sample
    found = dire.reconstruct(epsilon, alphas.double(), x, steps)
    assert torch.allclose(found, z, atol=1e-4)
    assert (found - x).abs().max() > 1e-3


def test_dire_of_a_prior_that_sees_no_noise_is_nought():
    x = torch.randn(1, 3, 4, 4)
    back = dire.reconstruct(lambda z, step: torch.zeros_like(z), torch.linspace(0.99, 0.01, 50), x, 5)
    assert torch.allclose(back, x, atol=1e-5)


def test_aeroblade_takes_the_smallest_error():
    errors = torch.tensor([0.4, 0.1]).view(1, 2, 1, 1).expand(1, 2, 4, 4)
    output = aeroblade.SmallestError()(errors)
    assert output.logit.item() == pytest.approx(-np.log(0.1)) and output.map.sum().item() == pytest.approx(1)


def test_contrastive_loss_by_hand():
    features = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 3.0]])
    output, label = Output(None, None, None, features), torch.tensor([0.0, 0.0, 1.0])
    settings = {"margin": 2.0, "contrastive_weight": 1.0}
    push = (2 - 2**0.5) ** 2  # unit vectors at a right angle are sqrt(2) apart; the two of a class lie together
    assert drct.contrastive(output, label, None, settings).item() == pytest.approx(push / 2, abs=1e-3)


def test_distillation_is_a_mean_square():
    output = Output(None, None, None, torch.tensor([[1.0, 2.0]]))
    assert distildire.distillation(output, None, torch.tensor([[1.0, 4.0]]), {"distillation_weight": 0.5}).item() == 1


@pytest.fixture
def prior(monkeypatch, tmp_path):
    """A prior whose noise at step t is x * t, on a schedule of four steps."""
    made = SimpleNamespace(precision="fp32", alphas_cumprod=torch.tensor([0.9, 0.64, 0.36, 0.1]), check_step=lambda step: step,
                           epsilon=lambda x, step: x * step, noise=lambda x, step: x * step)
    monkeypatch.chdir(tmp_path)  # representations are kept below it
    for module in (dnf, lare):
        monkeypatch.setattr(module, "load_prior", lambda models: made)
        monkeypatch.setattr(module, "prior_hash", lambda models: "made up")
    return made


def test_dnf_is_the_priors_noise_of_the_clean_image(prior):
    x = torch.full((2, 3, 2, 2), 0.25)
    assert torch.equal(dnf.represent({"noise_step": 3}, None)(x), torch.full((2, 3, 2, 2), 0.75))


def test_distildire_sees_the_image_and_one_call_of_the_prior(prior):
    x = torch.full((2, 3, 2, 2), 0.25)
    found = distildire.represent({"noise_step": 2}, None)(x)
    assert torch.equal(found[:, :3], x) and torch.equal(found[:, 3:], 2 * x)


def test_lare_is_the_mean_squared_error_of_the_noise_put_in(prior):
    """x_t = sqrt(a) x + sqrt(1 - a) n with a = 0.64 at t = 2; the error is (epsilon(x_t) - n)^2, here (2 x_t - n)^2."""
    x = torch.full((2, 3, 2, 2), 0.5)
    found = lare.represent({"error_step": 2, "error_draws": 3}, None)(x)
    draws = [torch.randn(3, 2, 2, generator=seeds.torch_generator(0, "lare", draw)) for draw in range(3)]
    expected = sum((2 * (0.8 * 0.5 + 0.6 * noise) - noise).square() for noise in draws) / 3
    assert torch.equal(found[:, :3], x) and torch.allclose(found[:, 3:], expected.expand(2, 3, 2, 2), atol=5e-3)


def test_lare_starts_as_the_plain_detector_and_then_hears_the_error():
    torch.manual_seed(0)
    network = lare.Guided(DETECTOR, 32).eval()
    x = torch.randn(2, 3, 32, 32)
    calm, loud = (network(torch.cat([x, torch.full_like(x, error)], 1)) for error in (0.1, 1.0))
    assert torch.allclose(calm.logit, network.plain(x).logit, atol=1e-5)
    torch.nn.init.normal_(network.gate.channel.weight)
    assert not torch.allclose(network(torch.cat([x, torch.ones_like(x)], 1)).logit, loud.logit)


def test_blur_jpeg_recipe_changes_the_augmentation_alone():
    from anl import params
    from tests.conftest import ROOT, tiny_settings

    settings = params.from_dict(tiny_settings(ROOT), "tiny")
    changed = blur_jpeg.recipe(settings.training, {"strong_probability": 0.5, "strong_blur": 3.0, "strong_jpeg": 30})
    assert (changed.augment_probability, changed.blur_radius, changed.jpeg_quality) == (0.5, [0.0, 3.0], [30, 100])
    assert changed.steps == settings.training.steps and changed.learning_rate == settings.training.learning_rate


def test_a_front_end_is_standardised_before_the_stem():
    torch.manual_seed(0)
    network = Classifier(DETECTOR, 32, 3, lambda x: x / 1000).train()
    heard = []
    network.stem.register_forward_pre_hook(lambda module, inputs: heard.append(inputs[0]))
    network(torch.randn(8, 3, 32, 32))
    assert heard[0].std().item() == pytest.approx(1, abs=0.05)
