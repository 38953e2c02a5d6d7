import shutil

import pytest
import torch

from anl.errors import UserError
from anl.files import sha256_of
from anl.generators import MODELS, fit_model, load_model, regenerate
from anl.making import config_dict
from tests.conftest import photograph

SOURCES = [photograph(1, 60, 80), photograph(2, 60, 60)]


def fit(world, name, folder):
    vae = load_model("vae", f"{world.models}/vae") if name == "latent" else None
    config = (world.params.models | world.params.more_models)[name]
    fit_model(name, SOURCES, config_dict(config), folder / name, seed=5, cache=folder / "cache", vae=vae)
    return folder / name


@pytest.mark.parametrize("name", MODELS)
def test_twice_the_same_training_gives_the_same_files(world, tmp_path, name):
    one, two = (fit(world, name, tmp_path / place) for place in ("one", "two"))
    assert sha256_of(one) == sha256_of(two)
    assert (one / "curve.csv").read_text().startswith("step,loss\n1,")
    assert not list((tmp_path / "one").rglob("*.pt"))  # the checkpoint goes when the model is there
    model = load_model(name, one)
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    assert all(p.dtype == torch.float32 and torch.isfinite(p).all() for p in model.parameters())


@pytest.mark.parametrize("name", ["ddim", "ddpm", "flow", "vae", "vq", "latent", "dpm", "inpaint", "superres", "unconditional"])
def test_every_family_regenerates(world, name):
    family = config_dict((world.params.families | world.params.more_families)[name])
    models = {key: load_model(key, f"{world.models}/{key}") for key in {family["model"], "vae"}}
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    one, two = (regenerate(family, models, x, torch.Generator().manual_seed(1)) for _ in range(2))
    assert one.shape == x.shape and torch.isfinite(one).all() and torch.equal(one, two)


def test_an_unknown_model(tmp_path):
    with pytest.raises(UserError, match="there is no generator model 'gan'; choose one of pixel, flow, vae, vq, latent"):
        fit_model("gan", SOURCES, {}, tmp_path, seed=0, cache=tmp_path)


def test_a_missing_or_half_pulled_model_is_named(world, tmp_path):
    with pytest.raises(UserError, match="nowhere holds no pixel model .*get it with `dvc pull`"):
        load_model("pixel", tmp_path / "nowhere")
    shutil.copytree(f"{world.models}/pixel", tmp_path / "pixel")
    (tmp_path / "pixel/diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(UserError, match="pixel holds no pixel model"):
        load_model("pixel", tmp_path / "pixel")


def test_a_model_cut_short_is_named(world, tmp_path):
    shutil.copytree(f"{world.models}/pixel", tmp_path / "pixel")
    weights = tmp_path / "pixel/diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match="pixel holds no pixel model"):
        load_model("pixel", tmp_path / "pixel")
