import dataclasses

import numpy as np
import pytest
import torch
from safetensors import safe_open
from scipy.ndimage import convolve

from anl import benchmark, seeds, targets
from anl.arithmetic import in_use
from anl.data import views
from anl.data.patches import to_tensor
from anl.errors import UserError
from anl.prior import NoisePrior


def arguments(world, folder):
    return {"prior_folder": f"{world.models}/prior", "folder": str(folder)}


def test_target_is_the_priors_noise_over_its_training_deviation(world, tmp_path):
    rows = targets.training_rows(world.params)
    target, scale = targets.load(world.params, 10, rows, **arguments(world, tmp_path))
    train = (rows["split"] == "train").to_numpy(copy=True)
    assert target[train].float().std().item() == pytest.approx(1, abs=1e-3)
    x = to_tensor(benchmark.read_images(world.params.benchmark.folder, rows.head(4)))
    expected = NoisePrior.load(f"{world.models}/prior", precision=in_use("bf16")).noise(x, 10) / scale
    torch.testing.assert_close(target[:4].float(), expected, atol=2e-2, rtol=2e-2)


def test_rows_are_found_by_sample_whatever_their_order(world, tmp_path):
    rows = targets.training_rows(world.params)
    all_rows, _ = targets.load(world.params, 10, rows, **arguments(world, tmp_path))
    order = np.random.default_rng(0).permutation(len(rows))[:5]
    some, _ = targets.load(world.params, 10, rows.iloc[order], **arguments(world, tmp_path))
    assert torch.equal(some, all_rows[order])


def test_a_good_cache_is_used_and_a_broken_or_stale_one_rebuilt(world, tmp_path, monkeypatch):
    path = targets.compute(world.params, 10, **arguments(world, tmp_path))
    written = path.read_bytes()
    monkeypatch.setattr(NoisePrior, "noise", lambda *a, **k: pytest.fail("the cache was not used"))
    targets.compute(world.params, 10, **arguments(world, tmp_path))
    monkeypatch.undo()
    path.write_bytes(written[: len(written) // 2])
    targets.load(world.params, 10, targets.training_rows(world.params), **arguments(world, tmp_path))
    assert path.read_bytes() == written
    monkeypatch.setattr(targets, "sha256_of", lambda folder: "another prior")
    targets.load(world.params, 10, targets.training_rows(world.params), **arguments(world, tmp_path))
    with safe_open(path, "pt") as file:
        assert "another prior" in file.metadata()["anl"]


def test_a_step_outside_the_schedule_writes_nothing(world, tmp_path):
    with pytest.raises(UserError, match="steps 1 to 1000"):
        targets.compute(world.params, 2000, **arguments(world, tmp_path))
    assert not list(tmp_path.rglob("*"))


@pytest.mark.parametrize("kind", targets.KINDS)
def test_every_kind_has_unit_deviation_on_the_training_split_and_a_file_of_its_own(world, tmp_path, kind):
    rows = targets.training_rows(world.params)
    target, _ = targets.load(world.params, 10, rows, kind, **arguments(world, tmp_path))
    train = target[(rows["split"] == "train").to_numpy(copy=True)].float()
    assert train.std().item() == pytest.approx(1, abs=1e-2) and torch.isfinite(target).all()
    if kind != "prior":
        assert train.mean((0, 2, 3)).abs().max() < 1e-2
    assert [path.name for path in tmp_path.rglob("*.safetensors")] == [f"{kind}-t10.safetensors"]


def test_highpass_is_what_the_binomial_filter_takes_away():
    image = np.random.default_rng(0).normal(size=(9, 9)).astype(np.float32)
    kernel = np.outer([1, 2, 1], [1, 2, 1]) / 16
    expected = image - convolve(image, kernel, mode="mirror")
    found = targets.highpass(torch.from_numpy(image).expand(2, 3, 9, 9))
    torch.testing.assert_close(found[1, 2], torch.from_numpy(expected), atol=1e-6, rtol=1e-5)
    assert targets.highpass(torch.full((1, 3, 8, 8), 0.7)).abs().max() < 1e-6


def test_the_random_network_follows_its_seed_and_its_input():
    x = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    one = targets.RandomNetwork(0)(x)
    assert one.shape == x.shape and torch.equal(one, targets.RandomNetwork(0)(x))
    assert not torch.allclose(one, targets.RandomNetwork(1)(x)) and not torch.allclose(one[0], one[1])


def test_shuffled_is_the_priors_noise_of_another_image_of_the_split(world, tmp_path):
    rows = targets.training_rows(world.params)
    own, scale = targets.load(world.params, 10, rows, "prior", **arguments(world, tmp_path))
    other, other_scale = targets.load(world.params, 10, rows, "shuffled", **arguments(world, tmp_path))
    index = targets.derangement(rows["split"].to_numpy(), world.params.seed)
    assert (index != np.arange(len(rows))).all() and sorted(index) == list(range(len(rows)))
    assert (rows["split"].to_numpy()[index] == rows["split"].to_numpy()).all()
    offset = other.float() * other_scale - own[index].float() * scale
    assert offset.std((0, 2, 3)).max() < 2e-3 * scale  # nothing but the training mean, and half precision


def test_an_unknown_kind_is_named(world, tmp_path):
    with pytest.raises(UserError, match="there is no target 'lowpass'; choose one of prior, multistep, ensemble, noised, error, highpass, random, shuffled, other_prior"):
        targets.compute(world.params, 10, "lowpass", **arguments(world, tmp_path))


def test_noised_is_what_the_prior_says_of_a_draw_that_a_pair_shares(world, tmp_path):
    rows = targets.training_rows(world.params)
    pair = rows[rows["sample_id"].str.endswith(rows["sample_id"].iloc[0].split("/", 1)[1])]
    assert len(pair) == 2
    target, scale = targets.load(world.params, 10, pair, "noised", **arguments(world, tmp_path))
    frozen = NoisePrior.load(f"{world.models}/prior", precision=in_use("bf16"))
    draw = torch.randn(3, 32, 32, generator=seeds.torch_generator(world.params.seed, "targets",
                                                                  rows["sample_id"].iloc[0].split("/", 1)[1], 0))
    alpha = frozen.alphas_cumprod[9].float()
    x = to_tensor(benchmark.read_images(world.params.benchmark.folder, pair))
    expected = frozen.noise(alpha.sqrt() * x + (1 - alpha).sqrt() * draw, 10)
    offset = target.float() * scale - expected
    assert offset.std((0, 2, 3)).max() < 4e-3 * scale  # the training mean of each channel, and half precision


def test_error_is_the_mean_squared_error_of_its_draws(world, tmp_path, monkeypatch):
    """A prior that sees no noise at all is wrong by the draws themselves: their mean square, about 1."""
    monkeypatch.setattr(NoisePrior, "epsilon", lambda self, z, step, precision=None: torch.zeros_like(z))
    rows = targets.training_rows(world.params)
    target, scale = targets.load(world.params, 10, rows, "error", **arguments(world, tmp_path))
    draws = [torch.randn(3, 32, 32, generator=seeds.torch_generator(world.params.seed, "targets",
                                                                    rows["sample_id"].iloc[3].split("/", 1)[1], k))
             for k in range(targets.ERROR_DRAWS)]
    expected = sum(draw.square() for draw in draws) / targets.ERROR_DRAWS
    assert scale == pytest.approx((2 / targets.ERROR_DRAWS) ** 0.5, rel=0.05)
    assert (target[3].float() * scale - expected).std((1, 2)).max() < 4e-3 * scale


def test_another_prior_makes_targets_of_its_own(world, tmp_path):
    rows = targets.training_rows(world.params)
    own, _ = targets.load(world.params, 10, rows, "prior", **arguments(world, tmp_path))
    other, scale = targets.load(world.params, 10, rows, "other_prior", **arguments(world, tmp_path))
    assert not torch.allclose(own, other, atol=0.1)
    x = to_tensor(benchmark.read_images(world.params.benchmark.folder, rows.head(4)))
    expected = NoisePrior.load(f"{world.models}/other_prior", precision=in_use("bf16")).noise(x, 10) / scale
    assert (other[:4].float() - expected).std((0, 2, 3)).max() < 4e-3


def test_a_prior_that_is_not_there_is_named_with_the_command_that_makes_it(world, tmp_path):
    settings = dataclasses.replace(world.params, other_priors={"absent_prior": world.params.prior})
    with pytest.raises(UserError, match="absent_prior"):
        targets.load(settings, 10, targets.training_rows(settings), "absent_prior", **arguments(world, tmp_path))


def test_a_leaky_copy_has_targets_of_its_own_pixels_in_a_file_of_its_own(world, tmp_path):
    rows = targets.training_rows(world.params)
    honest, _ = targets.load(world.params, 10, rows, **arguments(world, tmp_path))
    leaky, scale = targets.load(world.params, 10, rows, formats="leaky", **arguments(world, tmp_path))
    assert {path.name for path in tmp_path.rglob("*.safetensors")} == {"prior-t10.safetensors", "prior-t10-leaky.safetensors"}
    assert not torch.equal(honest, leaky)
    pixels = benchmark.read_images(world.params.benchmark.folder, rows.head(1))[0]
    assert rows["label"].iloc[0] == 0
    x = to_tensor(views.apply("jpeg96", pixels)[None].copy())
    expected = NoisePrior.load(f"{world.models}/prior", precision=in_use("bf16")).noise(x, 10) / scale
    torch.testing.assert_close(leaky[:1].float(), expected, atol=5e-2, rtol=0)  # bf16, in another batch


def test_controls_are_the_targets_that_need_no_trained_diffusion_model(world):
    untrained = dataclasses.replace(world.params.prior, steps=0)
    settings = dataclasses.replace(world.params, other_priors={"blank_prior": untrained, "other_prior": world.params.prior})
    found = [kind for kind in targets.kinds(settings) if targets.is_control(settings, kind)]
    assert found == ["highpass", "random", "shuffled", "blank_prior"]


def test_multistep_stacks_the_noises_of_its_steps_each_in_its_own_deviation(world, tmp_path):
    rows = targets.training_rows(world.params)
    stacked, _ = targets.load(world.params, 10, rows, "multistep", **arguments(world, tmp_path))
    assert stacked.shape[1] == 3 * len(targets.MULTISTEP)
    train = (rows["split"] == "train").to_numpy(copy=True)
    for place, factor in enumerate(targets.MULTISTEP):
        alone, _ = targets.load(world.params, 10 * factor, rows, "prior", **arguments(world, tmp_path))
        part, alone = stacked[:, 3 * place:3 * place + 3].float(), alone.float()
        centred = alone - alone[train].mean((0, 2, 3), keepdim=True)
        torch.testing.assert_close(part, centred / centred[train].std(), atol=2e-2, rtol=2e-2)
    with pytest.raises(UserError, match="step 5000 is not one of"):
        targets.compute(world.params, 1000, "multistep", **arguments(world, tmp_path))


def test_an_ensemble_is_the_mean_of_two_priors_and_needs_both(world, tmp_path):
    rows = targets.training_rows(world.params)
    train = (rows["split"] == "train").to_numpy(copy=True)
    mean, _ = targets.load(world.params, 10, rows, "ensemble", **arguments(world, tmp_path))
    members = []
    for kind in ("prior", "other_prior"):
        noise = targets.load(world.params, 10, rows, kind, **arguments(world, tmp_path))[0].float()
        noise = noise - noise[train].mean((0, 2, 3), keepdim=True)
        members.append(noise / noise[train].std())
    expected = (members[0] + members[1]) / 2
    torch.testing.assert_close(mean.float(), expected / expected[train].std(), atol=3e-2, rtol=2e-2)
    alone = dataclasses.replace(world.params, other_priors={"third_prior": world.params.prior})
    with pytest.raises(UserError, match="needs a second prior; add 'other_prior' to other_priors"):
        targets.compute(alone, 10, "ensemble", **arguments(world, tmp_path))
