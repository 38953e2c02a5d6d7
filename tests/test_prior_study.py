"""The study of the prior: a known denoiser gets the error that arithmetic gives it."""

import numpy as np
import pytest
import torch

from anl import prior_study
from anl.benchmark import read_images, read_manifest
from anl.errors import UserError
from anl.prior import NoisePrior
from tests import tiny_priors


@pytest.fixture(scope="module")
def pixels():
    ramp = np.linspace(60, 190, 32)
    images = [np.broadcast_to(ramp[:, None, None] + shift, (32, 32, 3)) for shift in range(6)]
    return np.stack(images).astype(np.uint8)


class Perfect:
    """Stands in for a prior that knows the clean image."""

    factor = 1
    alphas_cumprod = torch.linspace(0.9999, 0.01, 1000, dtype=torch.float64)

    def __init__(self, share):
        self.share = share

    def check_step(self, step):
        return step

    def forward_noise(self, x, step, generator):
        self.clean = x
        alpha = self.alphas_cumprod[step - 1]
        return (alpha.sqrt() * x + (1 - alpha).sqrt() * torch.randn(x.shape, generator=generator)).float(), None

    def denoise(self, noised, step):
        return self.clean + self.share


def test_a_prior_that_knows_the_image_is_off_by_what_it_adds(pixels):
    table = prior_study.denoising_table(Perfect(2 / 127.5), pixels, pixels, list("aabbcc"), [1, 500], seed=0,
                                        replicates=30)
    assert np.allclose(table["prior_rmse"], 2, atol=1e-4) and np.allclose(table["prior_rmse_low"], 2, atol=1e-4)
    assert (table["gaussian_rmse"].diff().dropna() > 0).all()
    assert (table["gaussian_width"].diff().dropna() >= 0).all(), "more noise asks for a wider filter"
    assert table["ratio"].iloc[1] < 1 and table["n"].eq(6).all() and table["timestep"].tolist() == [0, 499]


def test_the_filter_takes_out_noise_that_identity_leaves(pixels):
    row = prior_study.denoising_table(Perfect(0), pixels, pixels, list("aabbcc"), [300], seed=0, replicates=30).iloc[0]
    assert row["gaussian_width"] > 0 and row["gaussian_rmse"] < row["noise"] / 2


def test_tables_of_a_real_prior_are_repeatable(world):
    prior = NoisePrior.load(f"{world.models}/prior")
    manifest = read_manifest(world.params.benchmark.folder)
    real = manifest[(manifest["generator"] == "real") & (manifest["split"] == "test")]
    pixels = read_images(world.params.benchmark.folder, real)
    tables = [prior_study.denoising_table(prior, pixels, pixels, real["cluster"], [1, 100], seed=0, replicates=30)
              for _ in range(2)]
    assert tables[0].equals(tables[1])
    assert np.isfinite(tables[0].to_numpy(float)).all()
    amplitude = prior_study.amplitude_table(prior, {"real": pixels}, [1, 100])
    noise = prior_study.clean_noise(prior, pixels, 100)
    assert noise.shape == (len(pixels), 3, 32, 32)
    assert amplitude["standard_deviation"].iloc[1] == pytest.approx(float(noise.double().std()))


def test_grey_levels_need_a_pixel_prior(pixels, tmp_path):
    latent = NoisePrior.load(tiny_priors.latent_folder(tmp_path))
    with pytest.raises(UserError, match="in grey levels and the prior works on latents"):
        prior_study.denoising_table(latent, pixels, pixels, list("aabbcc"), [1], seed=0, replicates=30)
    with pytest.raises(UserError, match="take a pixel-space prior"):
        prior_study.amplitude_table(latent, {"real": pixels}, [1])
    assert prior_study.clean_noise(latent, pixels, 1).shape == (6, 4, 16, 16)


def test_correlation_equals_numpys_and_knows_no_scale():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(4, 3, 8, 8)), rng.normal(size=(4, 3, 8, 8))
    expected = [np.corrcoef(x.ravel(), y.ravel())[0, 1] for x, y in zip(a, b)]
    assert np.allclose(prior_study.correlation(a, b), expected)
    assert np.allclose(prior_study.correlation(a, 3 * a + 1), 1)
    assert prior_study.correlation(np.zeros_like(a), b).tolist() == [0, 0, 0, 0]


def test_smoothing_keeps_the_mean_and_width_0_changes_nothing():
    image = np.random.default_rng(0).normal(size=(2, 3, 16, 16))
    assert prior_study.smooth(image, 0) is image
    assert np.allclose(prior_study.smooth(np.ones_like(image), 2.0), 1)
    assert prior_study.smooth(image, 2.0).std() < image.std() / 2
