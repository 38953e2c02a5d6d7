"""A known denoiser gets the error that arithmetic gives it."""

import numpy as np
import pytest
import torch

from anl.evaluation import prior_quality
from anl.io import UserError
from anl.models.detector import Detector
from anl.models.generators.diffusion import noise_scheduler
from anl.models.prior import NoisePrior, build_prior


@pytest.fixture(scope="module")
def pixels():
    ramp = np.linspace(60, 190, 32)
    return np.stack([np.broadcast_to(ramp[:, None, None] + shift, (32, 32, 3)) for shift in range(6)]).astype(np.uint8)


class Perfect:
    """Stands in for a prior that knows the clean image, and adds `share` to it."""

    factor = 1
    alphas_cumprod = torch.linspace(0.9999, 0.01, 1000, dtype=torch.float64)

    def __init__(self, share):
        self.share, self.place = share, 0

    def check_step(self, step):
        return step

    def forward_noise(self, x, step, generator):
        self.clean, self.place = x, 0
        alpha = self.alphas_cumprod[step - 1]
        return (alpha.sqrt() * x + (1 - alpha).sqrt() * torch.randn(x.shape, generator=generator)).float(), None

    def denoise(self, noised, step):
        self.place += len(noised)
        return self.clean[self.place - len(noised):self.place] + self.share


def test_a_prior_that_knows_the_image_is_off_by_what_it_adds(pixels):
    table = prior_quality.denoising_table(Perfect(2 / 127.5), pixels, pixels, list("aabbcc"), [1, 500], seed=0,
                                          replicates=30, batch_size=4)
    for column in ("prior_rmse", "prior_rmse_low", "prior_rmse_high"):
        assert np.allclose(table[column], 2, atol=1e-4)
    assert (table["gaussian_rmse"].diff().dropna() > 0).all()
    assert (table["gaussian_width"].diff().dropna() >= 0).all(), "more noise needs a wider filter"
    assert table["gaussian_rmse"].iloc[1] < table["noise"].iloc[1] / 2 and table["ratio"].iloc[1] < 1 and table["n"].eq(6).all() and table["timestep"].tolist() == [0, 499]
    assert ((table["ratio_low"] <= table["ratio"]) & (table["ratio"] <= table["ratio_high"])).all()


def test_tables_of_a_real_prior_are_repeatable(pixels):
    torch.manual_seed(0)
    prior = NoisePrior(build_prior([8, 8], 1), noise_scheduler(), precision="fp32")
    tables = [prior_quality.denoising_table(prior, pixels, pixels, list("aabbcc"), [1, 100], seed=0, replicates=30)
              for _ in range(2)]
    assert tables[0].equals(tables[1]) and np.isfinite(tables[0].to_numpy(float)).all()
    noise = prior_quality.clean_noise(prior, pixels, 100, batch_size=4)
    assert torch.equal(noise, prior_quality.clean_noise(prior, pixels, 100))


def test_grey_levels_need_a_prior_of_pixels(pixels):
    latent = Perfect(0)
    latent.factor = 8
    with pytest.raises(UserError, match="latents"):
        prior_quality.denoising_table(latent, pixels, pixels, list("aabbcc"), [1], seed=0, replicates=30)


def test_correlation_equals_numpys_and_ignores_scale():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(4, 3, 8, 8)), rng.normal(size=(4, 3, 8, 8))
    expected = [np.corrcoef(x.ravel(), y.ravel())[0, 1] for x, y in zip(a, b)]
    assert np.allclose(prior_quality.correlation(a, b), expected)
    assert np.allclose(prior_quality.correlation(a, 3 * a + 1), 1)
    assert prior_quality.correlation(np.zeros_like(a), b).tolist() == [0, 0, 0, 0]


def test_the_detectors_noise_and_the_priors_come_in_the_order_of_the_images(pixels):
    prior = NoisePrior(build_prior([8, 8], 1), noise_scheduler(), precision="fp32")
    detector = Detector("test_resnet", 8, 8, 32, noise=True, seed=0).eval()
    predicted, target = prior_quality.noise_pair(detector, prior, pixels, 1, batch_size=4)
    assert predicted.shape == target.shape == (6, 3, 32, 32) and not predicted.requires_grad
    assert torch.equal(target, prior_quality.clean_noise(prior, pixels, 1))
    last, _ = prior_quality.noise_pair(detector, prior, pixels[4:], 1)
    assert torch.allclose(predicted[4:], last, atol=1e-6)
