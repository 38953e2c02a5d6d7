import numpy as np
import pytest
import torch
from safetensors import safe_open

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
    monkeypatch.setattr(targets.NoisePrior, "noise", lambda *a, **k: pytest.fail("the cache was not used"))
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
