import dataclasses
import json

import pytest
import torch
from safetensors import safe_open

from anl import live_targets, targets
from anl.errors import UserError
from anl.prior import NoisePrior


def small(world):
    """The world's profile with no room for a cache."""
    return dataclasses.replace(world.params, cache=dataclasses.replace(world.params.cache, targets=1e-9))


@pytest.mark.parametrize("kind", ["prior", "other_prior", "noised", "error", "highpass", "random", "shuffled"])
def test_targets_made_when_asked_for_are_those_of_the_cache(world, tmp_path, kind):
    rows = targets.training_rows(world.params)
    prior = f"{world.models}/prior"
    cached, scale = targets.load(world.params, 10, rows, kind, prior_folder=prior, folder=str(tmp_path / "cache"))
    live, live_scale = targets.load(small(world), 10, rows, kind, prior_folder=prior, folder=str(tmp_path / "live"))
    assert live_scale == pytest.approx(scale, rel=1e-6) and tuple(live.shape) == tuple(cached.shape)
    order = [5, 0, 3]
    made = live[order]
    assert made.dtype == torch.float16
    # a batch of other images may be rounded otherwise by the prior, which computes in bf16 where it can
    torch.testing.assert_close(made.float(), cached[order].float(), atol=2e-3, rtol=2e-3)


def test_the_file_in_the_caches_place_holds_the_scale_alone_and_is_used_again(world, tmp_path, monkeypatch):
    prior = f"{world.models}/prior"
    path = targets.compute(small(world), 10, prior_folder=prior, folder=str(tmp_path))
    with safe_open(path, "pt") as file:
        assert list(file.keys()) == ["mean"] and json.loads(file.metadata()["anl"])["key"].endswith("-live")
    assert path.stat().st_size < 20000
    monkeypatch.setattr(live_targets, "write", lambda *a: pytest.fail("made again"))
    assert targets.compute(small(world), 10, prior_folder=prior, folder=str(tmp_path)) == path
    monkeypatch.undo()
    targets.compute(world.params, 10, prior_folder=prior, folder=str(tmp_path))  # with room, the cache takes its place
    with safe_open(path, "pt") as file:
        assert list(file.keys()) == ["target"]


def test_a_training_without_a_cache_asks_the_prior_for_its_batches(world, tmp_path, monkeypatch):
    from tests.test_train import fit, spec_of

    monkeypatch.chdir(world.root)
    monkeypatch.setattr(targets, "load", lambda params, step, rows, kind, formats, load=targets.load: load(
        params, step, rows, kind, formats, folder=str(tmp_path / params.profile)))
    _, cached = fit(world, spec_of(world), tmp_path / "a")
    sizes, ask = [], NoisePrior.noise
    monkeypatch.setattr(NoisePrior, "noise", lambda self, x, *a, **k: sizes.append(len(x)) or ask(self, x, *a, **k))
    monkeypatch.setattr(world, "params", dataclasses.replace(small(world), profile="live"))
    _, live = fit(world, spec_of(world), tmp_path / "b")
    assert sizes.count(world.params.training.batch_size) >= world.params.training.steps
    assert live[0]["noise_loss"] == pytest.approx(cached[0]["noise_loss"], rel=1e-3)


def test_targets_of_several_noises_need_the_cache(world, tmp_path):
    with pytest.raises(UserError, match=r"the targets 'multistep' are too large for cache.targets"):
        targets.compute(small(world), 10, "multistep", prior_folder=f"{world.models}/prior", folder=str(tmp_path))
    assert not list(tmp_path.rglob("*.safetensors"))
