"""Noise targets against hand calculations with tiny fake priors."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from scipy.ndimage import convolve
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from anl import seeds
from anl.io import UserError
from anl.training import targets
from tests import tiny_priors

SETTINGS = SimpleNamespace(multistep=[1, 2, 5], error_draws=3, noise_level=15.0, wavelet_levels=2, wavelet_threshold=3.0)
NAMES = ["a", "a", "b", "b", "c", "c"]


class FakePrior:
    """noise(x, t) = gain * t * x + offset, in pixel space."""

    channels, factor, steps, precision, prediction_type, vae, prompt = 3, 1, 100, "fp32", "epsilon", None, None
    device = torch.device("cpu")

    def __init__(self, gain=1.0, offset=0.0):
        self.gain, self.offset = gain, offset
        self.unet = nn.Linear(1, 1)
        nn.init.constant_(self.unet.weight, gain)
        nn.init.constant_(self.unet.bias, offset)
        self.alphas_cumprod = torch.linspace(0.99, 0.01, 100).double()

    def check_step(self, step):
        if not 1 <= step <= self.steps:
            raise UserError(f"step {step} is not one of the steps 1 to {self.steps}")
        return step

    def encode(self, x):
        return x

    def epsilon(self, z, step):
        return self.gain * step * z + self.offset

    def noise(self, x, step):
        return self.epsilon(self.encode(x), self.check_step(step))


@pytest.fixture
def x():
    return torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1


def rows():
    return pd.DataFrame({"image_id": [f"i{k}" for k in range(6)], "pair": NAMES, "sha256": [f"{k:064x}" for k in range(6)],
                         "split": "train"})


def make(kind, prior=None, **options):
    return targets.make_target(kind, prior or FakePrior(), 10, SETTINGS, seed=1, **options)


def compute(x, target, **options):
    return targets.compute_targets(target, x.__getitem__, NAMES, seed=1, **options)


def test_the_target_is_the_priors_noise_over_its_deviation(x):
    values, scale = compute(x, make("prior"))
    assert values.dtype == torch.float16 and scale == pytest.approx(10 * x.double().std().item(), rel=1e-6)
    torch.testing.assert_close(values.float(), 10 * x / scale, atol=2e-3, rtol=1e-3)
    _, scale = compute(x, make("prior"), scale_images=2)  # the first and the last
    assert scale == pytest.approx(10 * x[[0, 5]].double().std().item(), rel=1e-6)


def test_multistep_stacks_steps_each_in_its_own_deviation(x):
    values, _ = compute(x, make("multistep"))
    centred = x - x.mean((0, 2, 3), keepdim=True)
    expected = (centred / centred.double().std()).float()  # the steps of this prior differ in amplitude only
    assert values.shape == (6, 9, 8, 8)
    torch.testing.assert_close(values.float(), expected.repeat(1, 3, 1, 1), atol=5e-3, rtol=1e-3)


def test_the_ensemble_is_a_mean_of_members_of_equal_weight(x):
    class Mirrored(FakePrior):
        def epsilon(self, z, step):
            return 100 * z.flip(-1)

    values, _ = compute(x, make("ensemble", second=Mirrored()))
    centred = x - x.mean((0, 2, 3), keepdim=True)
    mean = centred + centred.flip(-1)
    torch.testing.assert_close(values.float(), (mean / mean.double().std()).float(), atol=5e-3, rtol=1e-3)


def draw(name, index):
    return torch.randn(3, 8, 8, generator=seeds.torch_generator(1, "targets", name, index))


def test_noised_adds_a_draw_that_a_pair_shares(x):
    found = make("noised")(x[:3], NAMES[:3])
    alpha = FakePrior().alphas_cumprod[9].item()
    for image, name, value in zip(x, ["a", "a", "b"], found):
        torch.testing.assert_close(value, 10 * (alpha**0.5 * image + (1 - alpha) ** 0.5 * draw(name, 0)))


def test_error_is_the_mean_square_of_its_draws_where_the_prior_sees_nothing(x):
    found = make("error", FakePrior(gain=0.0))(x[2:3], ["b"])
    torch.testing.assert_close(found[0], sum(draw("b", k).square() for k in range(3)) / 3)


def test_shuffled_is_the_noise_of_another_image(x):
    own, scale = compute(x, make("prior"))
    other, other_scale = compute(x, make("shuffled"))
    index = targets.derangement(6, 1)
    assert (index != np.arange(6)).all() and sorted(index) == list(range(6))
    offset = other.float() * other_scale - own[index].float() * scale  # nothing but the mean
    assert offset.std((0, 2, 3)).max() < 5e-3 * scale


def test_highpass_is_what_the_binomial_filter_removes():
    image = np.random.default_rng(0).normal(size=(9, 9)).astype(np.float32)
    expected = image - convolve(image, np.outer([1, 2, 1], [1, 2, 1]) / 16, mode="mirror")
    found = targets.highpass(torch.from_numpy(image).expand(2, 3, 9, 9))
    torch.testing.assert_close(found[1, 2], torch.from_numpy(expected), atol=1e-6, rtol=1e-5)


def test_the_random_network_follows_its_seed_and_its_input(x):
    one = targets.make_target("random", None, 10, seed=0)(x, NAMES)
    assert one.shape == x.shape and torch.equal(one, targets.make_target("random", None, 99, seed=0)(x, NAMES))
    assert not torch.allclose(one, targets.make_target("random", None, 10, seed=1)(x, NAMES))


def test_haar_residual_by_hand():
    # diagonal coefficients (1, 1, 1, 8): sigma = 1 / 0.6745, so the threshold of 2 sigma clamps the last to 2 / 0.6745
    checker = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]) / 2
    image = torch.zeros(1, 1, 4, 4)
    for index, size in enumerate((1, 1, 1, 8)):
        row, column = 2 * (index // 2), 2 * (index % 2)
        image[0, 0, row:row + 2, column:column + 2] = 5 + size * checker
    expected = image - 5
    expected[0, 0, 2:, 2:] *= (2 / 0.6745) / 8
    torch.testing.assert_close(targets.haar_residual(image, 1, 2.0), expected)


def test_haar_residual_limits(x):
    assert targets.haar_residual(x, 3, 0.0).abs().max() == 0
    means = x.unflatten(2, (2, 4)).unflatten(4, (2, 4)).mean((3, 5))  # without any shrinkage all but the coarse means go
    coarse = means.repeat_interleave(4, 2).repeat_interleave(4, 3)
    torch.testing.assert_close(targets.haar_residual(x, 2, 1e6), x - coarse)
    with pytest.raises(UserError, match="wavelet_levels"):
        targets.haar_residual(x[..., :6], 2)


def test_ffdnet_is_what_the_denoiser_removes(x):
    class Half(nn.Module):
        def forward(self, y, sigma):
            assert sigma.shape == (len(y), 1, 1, 1)
            return y / 2 + sigma

    torch.testing.assert_close(make("ffdnet", Half())(x, NAMES), 2 * ((x + 1) / 4 - 15 / 255))


@pytest.mark.parametrize("kind", ["prior", "multistep", "ensemble", "noised", "error", "shuffled", "highpass", "random", "wavelet",
                                  "denoiser"])
def test_every_kind_has_unit_deviation_and_live_targets_equal_the_cache(x, kind):
    target = make(kind, second=FakePrior(0.5))
    values, _ = compute(x, target, batch_size=1)
    assert values.double().std().item() == pytest.approx(1, abs=1e-2) and torch.isfinite(values).all()
    if kind != "prior":
        assert values.double().mean((0, 2, 3)).abs().max() < 1e-2
    live = targets.LiveTargets(target, x.__getitem__, NAMES, seed=1, batch_size=4)
    assert live.shape == tuple(values.shape)
    torch.testing.assert_close(live[torch.tensor([5, 0, 2])], values[[5, 0, 2]], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("kind", ["prior", "multistep", "ensemble"])
def test_the_scale_of_many_images_is_computed_in_parts(x, kind):
    target = make(kind, second=FakePrior(0.5))
    noise = torch.randn(600, target(x[:1], NAMES[:1]).shape[1], 4, 4, generator=torch.Generator().manual_seed(2)) * 3 + 1
    found = targets.fit_normaliser(target, noise)
    mean = torch.zeros(noise.shape[1]) if kind == "prior" else noise.double().mean((0, 2, 3)).float()
    members = (noise - mean[:, None, None]).unflatten(1, (target.members, -1)).transpose(0, 1).flatten(1)
    torch.testing.assert_close(found.mean, mean)
    if target.members > 1:
        torch.testing.assert_close(found.member_scale, members.std(1))
    assert found.scale == pytest.approx(found.combined(noise).double().std().item())


def test_mistakes_are_one_line(x):
    for kind in ("prior", "noised"):
        with pytest.raises(UserError, match="step 500"):
            targets.make_target(kind, FakePrior(), 500, SETTINGS, seed=1)
    with pytest.raises(UserError, match="step 150"):
        compute(x, targets.make_target("multistep", FakePrior(), 30, SETTINGS, seed=1))
    with pytest.raises(UserError, match="standard deviation of 0.0"):
        compute(x, make("prior", FakePrior(0.0)))
    with pytest.raises(UserError, match="needs two training images"):
        targets.derangement(1, 1)


def load(folder, x, **options):
    return targets.load_targets(folder, "mine", make("prior"), x.__getitem__, rows(), seed=1, **options)


def test_a_good_cache_is_used_and_a_damaged_one_rebuilt(tmp_path, x):
    computed = load(tmp_path, x)
    (path,) = tmp_path.iterdir()
    written = path.read_bytes()
    assert torch.equal(load(tmp_path, torch.zeros_like(x)), computed) and path.name.startswith("mine-")
    save_file({"target": torch.zeros(6, 3, 8, 8)}, tmp_path / "foreign")  # without our metadata
    for damaged in (written[:len(written) // 2], b"", b"not a cache", (tmp_path / "foreign").read_bytes()):
        path.write_bytes(damaged)
        assert torch.equal(load(tmp_path, x), computed) and path.read_bytes() == written


def test_targets_that_are_too_large_are_not_kept(tmp_path, x):
    live = load(tmp_path, x, most_bytes=6 * 3 * 8 * 8)
    assert isinstance(live, targets.LiveTargets) and not list(tmp_path.iterdir())


def test_the_key_covers_what_decides_the_numbers():
    other, changed, latent = FakePrior(), rows(), [FakePrior(), FakePrior()]
    other.precision = "fp16"  # bf16 is computed as fp32 where a CPU has none
    for prior, factor in zip(latent, (0.1, 0.2)):
        prior.vae = tiny_priors.vae(scaling_factor=factor)
    changed.loc[5, "sha256"] = "f" * 64
    found = [(make("prior"), rows()), (make("prior", FakePrior(2.0)), rows()), (make("prior", other), rows()),
             (make("prior"), changed), (make("prior"), rows()[::-1]), (make("prior"), rows(), 2), (make("shuffled"), rows()),
             (targets.make_target("prior", FakePrior(), 11, SETTINGS, seed=1), rows()), (make("noised"), rows()),
             (targets.make_target("shuffled", FakePrior(), 10, SETTINGS, seed=2), rows()), (make("error"), rows()),
             (targets.make_target("error", FakePrior(), 10, SimpleNamespace(error_draws=2), seed=1), rows()),
             (make("denoiser"), rows()), *((make("prior", prior), rows()) for prior in latent)]
    assert len({targets.cache_key(*arguments) for arguments in found}) == len(found)
    assert targets.cache_key(*found[0]) == targets.cache_key(make("prior"), rows())


@pytest.mark.parametrize("kind", ["prior", "multistep", "noised", "error", "highpass", "random", "wavelet"])
def test_targets_are_computed_on_the_images_device(kind):
    target = make(kind)
    with FakeTensorMode(allow_non_fake_inputs=True):
        found = target(torch.rand(2, 3, 8, 8, device="cuda"), ["a", "b"])
    assert found.device.type == "cuda" and found.shape[2:] == (8, 8)
