"""Priors and generators are trained where they are missing, resume, and are kept while their settings are the same."""

import csv
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from anl.io import UserError
from anl.models import generators as models
from anl.models.prior import NoisePrior
from anl.training import generators, loop
from tests.training import tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Photographs and all priors and generators of the tiny profile."""
    place = tiny.write_photographs(tmp_path_factory.mktemp("embedded"))
    generators.make_priors(tiny.embedded_profile(place))
    generators.make_generators(tiny.embedded_profile(place))
    return place


def times(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}


def test_every_prior_and_generator_can_be_loaded(folder):
    config = tiny.embedded_profile(folder)
    for name in ("prior", *config.other_priors):
        prior = NoisePrior.load(generators.prior_folder(config, name), "cpu", "fp32")
        assert prior.noise(torch.zeros(1, 3, 16, 16), 1).shape == (1, 3, 16, 16)
        curve = generators.prior_folder(config, name) / "curve.csv"
        assert curve.exists() == (name != "untrained_prior")
    for name in config.models:
        models.load_model(name, generators.generator_folder(config, name))
    with open(folder / "models/generators/vae/curve.csv", newline="") as stream:
        assert [row["step"] for row in csv.DictReader(stream)] == ["1", "2", "3", "4"]
    assert not list((folder / "cache").rglob("*.pt")) and not list(folder.rglob("*.new"))


def test_models_with_the_same_settings_are_kept_and_others_replaced(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy", dirs_exist_ok=True)
    place = tmp_path / "copy"
    config, before = tiny.embedded_profile(place), times(place)
    same = config.override(prior={"precision": "fp32"}, run={"jobs": 3}, benchmark={"least_std": 0.0})
    generators.make_priors(same)
    generators.make_generators(same)
    assert times(place) == before
    other = config.override(models={"vae": {"steps": 3}})
    generators.make_generators(other, ["pixel", "latent"])
    changed = {path.parent.name for path, time in times(place).items() if before[path] != time}
    assert changed == {"vae", "latent"}  # the latent model depends on the autoencoder, and brings it along
    (place / "models/priors/prior/identity.json").write_text("{")
    generators.make_priors(config, ["prior"])
    record = json.loads((place / "models/priors/prior/identity.json").read_text())
    assert record["settings"]["config"]["steps"] == 4 and record["settings"]["seed"] == config.seed


def test_another_length_of_training_starts_from_the_same_weights(folder):
    config = tiny.embedded_profile(folder)
    untrained, trained = (load_file(generators.prior_folder(config, name) / "unet/diffusion_pytorch_model.safetensors")
                          for name in ("untrained_prior", "tenth_prior"))
    assert all((untrained[key] - trained[key]).abs().max() < 0.02 for key in untrained)
    assert any(not torch.equal(untrained[key], trained[key]) for key in untrained)


@pytest.mark.parametrize("make, name", [(generators.make_priors, "prior"), (generators.make_generators, "pixel")])
def test_a_killed_training_resumes_to_the_same_weights(folder, tmp_path, monkeypatch, make, name):
    place = tiny.write_photographs(tmp_path / "again")
    config = tiny.embedded_profile(place)
    monkeypatch.setattr(loop.time, "monotonic", iter(range(0, 10**6, 100)).__next__)  # a checkpoint at every step
    save = loop.Checkpoint.save

    def die(checkpoint, state):
        save(checkpoint, state)
        if state["step"] == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop.Checkpoint, "save", die)
    with pytest.raises(KeyboardInterrupt):
        make(config, [name])
    assert not (place / "models").exists() and len(list((place / "cache").rglob("*.pt"))) == 1
    monkeypatch.setattr(loop.Checkpoint, "save", save)
    made = make(config, [name])[name]
    whole = (generators.prior_folder if name == "prior" else generators.generator_folder)(tiny.embedded_profile(folder), name)
    assert generators.weights_of(made) == generators.weights_of(whole)


def test_a_prior_with_a_source_is_checked_and_recorded(folder, tmp_path):
    source = folder / "models/priors/prior"
    config = tiny.embedded_profile(folder, prior={"source": str(source), "channels": []}, run={"models": str(tmp_path)})
    place = generators.make_priors(config, ["prior"])["prior"]
    assert [path.name for path in place.iterdir()] == ["identity.json"]
    assert json.loads((place / "identity.json").read_text())["settings"]["source"] == str(source)
    with pytest.raises(UserError, match="no such folder"):
        generators.make_priors(config.override(prior={"source": str(tmp_path / "nowhere")}))


def test_mistakes_are_named(folder, tmp_path):
    config = tiny.embedded_profile(folder)
    with pytest.raises(UserError, match="no prior 'priro'; did you mean 'prior'"):
        generators.make_priors(config, ["priro"])
    with pytest.raises(UserError, match="no generator model 'gan'; choose one of pixel, "):
        generators.make_generators(config, ["gan"])
    with pytest.raises(UserError, match="photos.csv is missing"):
        generators.make_priors(tiny.embedded_profile(tmp_path))
    with pytest.raises(UserError, match="holds no weights"):
        generators.weights_of(tmp_path)


def test_published_reals_train_prior_and_generators(tmp_path):
    config = tiny.published_profile(tiny.write_cifake(tmp_path))
    images = generators.training_images(config)
    assert {image.shape for image in images} == {(32, 32, 3)} and len(images) == 8  # 12, less a repeated and three held out
    generators.make_priors(config)
    before = times(tmp_path / "models")
    generators.make_priors(config)
    assert times(tmp_path / "models") == before
    assert set(generators.make_generators(config)) == {"vae", "unconditional"}
    assert models.load_model("unconditional", tmp_path / "models/generators/unconditional").config.in_channels == 3


def train(loss, steps=4, **options):
    """Train one convolution; returns it and its curve."""
    torch.manual_seed(0)
    models = {"net": torch.nn.Conv2d(3, 3, 1)}
    batches = torch.rand(steps, 4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    section = tiny.smoke().prior.model_copy(update={"steps": steps})
    return models["net"], generators.train_generative("tiny", models, loss, batches.__getitem__, section, seed=3, **options)


def test_draws_depend_on_seed_name_and_step_only():
    draws = []

    def loss(models, x, generator, step):
        draws.append((step, torch.rand(1, generator=generator).item()))
        return models["net"](x).mean()

    train(loss)
    torch.rand(5)
    train(loss)
    assert draws[:4] == draws[4:] and len({value for _, value in draws}) == 4


def test_several_losses_are_recorded_and_preparation_comes_first():
    order = []

    def loss(models, x, generator, step):
        order.append(("loss", step))
        value = models["net"](x).square().mean()
        return {"loss": 2 * value, "part": value}

    net, curve = train(loss, steps=2, before_step=lambda step: order.append(("before", step)))
    assert order == [("before", 0), ("loss", 0), ("before", 1), ("loss", 1)] and not net.training
    assert curve[0]["loss"] == pytest.approx(2 * curve[0]["part"])
