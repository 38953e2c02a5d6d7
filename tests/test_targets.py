import numpy as np
import pytest
import torch
from safetensors import safe_open
from scipy.ndimage import convolve

from anl import benchmark, targets
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
    expected = NoisePrior.load(f"{world.models}/prior").noise(x, 10) / scale
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
    with pytest.raises(UserError, match="there is no target 'lowpass'; choose one of prior, highpass, random, shuffled"):
        targets.compute(world.params, 10, "lowpass", **arguments(world, tmp_path))
