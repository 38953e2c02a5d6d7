from dataclasses import asdict

import pytest
import torch
from safetensors.torch import load_file

from anl import prior_training, seeds
from anl.errors import UserError
from anl.fitting import Checkpoint
from anl.prior import NoisePrior
from tests.conftest import photograph


@pytest.fixture
def train(world, tmp_path):
    """Trains into a folder of its own; returns its weights."""
    def call(name, seed=1, **changes):
        config = {**asdict(world.params.prior), **changes}
        prior_training.fit_prior([photograph(1), photograph(2)], config, tmp_path / name, seed=seed,
                                 cache=str(tmp_path / "cache"))
        return load_file(tmp_path / name / "unet/diffusion_pytorch_model.safetensors")
    return call


def same(one, other):
    return all(torch.equal(one[key], other[key]) for key in one)


def test_fit_writes_a_diffusers_pipeline_folder(train, tmp_path):
    train("prior")
    frozen = NoisePrior.load(tmp_path / "prior")
    assert frozen.noise(torch.zeros(1, 3, 16, 16), 1).shape == (1, 3, 16, 16)
    assert not list((tmp_path / "cache").glob("*.pt"))
    assert len((tmp_path / "prior/curve.csv").read_text().splitlines()) == 5


def test_no_steps_save_the_untrained_network(train, tmp_path):
    weights = train("none", steps=0)
    seeds.fix(1, "prior")
    assert same(weights, prior_training.build([8, 8], 1).state_dict())
    assert (tmp_path / "none/curve.csv").read_text() == "step,loss\n"
    assert NoisePrior.load(tmp_path / "none").noise(torch.zeros(1, 3, 16, 16), 1).isfinite().all()
    assert same(weights, train("no_average", steps=0, ema=0.0))


def test_a_shorter_training_and_another_seed_make_another_prior(train):
    whole = train("whole")
    assert not same(whole, train("half", steps=2)) and not same(whole, train("other", seed=2))
    assert same(whole, train("whole again"))


def test_the_checkpoint_is_named_by_config_seed_and_sources(train, world, tmp_path, monkeypatch):
    monkeypatch.setattr(Checkpoint, "remove", lambda self: seen.append(self.path.name))
    seen = []
    train("whole")
    config = {"config": asdict(world.params.prior), "seed": 1, "sources": 2}
    assert seen == [Checkpoint(tmp_path, "prior", config).path.name]


def test_a_negative_length_is_refused(train):
    with pytest.raises(UserError, match="prior.steps: -1 is negative"):
        train("never", steps=-1)
