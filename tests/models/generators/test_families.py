"""Every model and every family: built, trained for a step, saved, loaded, and run."""

import shutil

import pytest
import torch
from diffusers import UNet2DModel
from torch._subclasses.fake_tensor import FakeTensorMode

from anl.config import FamilyConfig, GeneratorConfig
from anl.io import UserError, sha256_of
from anl.models.generators import (
    autoencoders,
    before_step,
    build,
    finish,
    load_model,
    regenerate,
    save_model,
    training_loss,
)

UNET = {"channels": [8, 8], "layers_per_block": 1}
CONFIGS = {name: GeneratorConfig(**settings) for name, settings in {
    "pixel": {**UNET, "max_strength": 0.3}, "flow": {**UNET, "max_strength": 0.4}, "unconditional": UNET,
    "vae": {"channels": [8, 8], "latent_channels": 4}, "latent": {**UNET, "max_strength": 0.4},
    "vq": {"channels": [8, 8], "latent_channels": 4, "codes": 16, "steps": 10, "quantise_from": 0.2,
           "adversarial_from": 0.4},
    "superres": {"channels": [8], "blocks": 1, "scale": 4, "texture_weight": 12}}.items()}
FAMILIES = {name: FamilyConfig(**settings) for name, settings in {
    "ddim": {"model": "pixel", "sampler": "ddim", "strength": 0.05, "inference_steps": 2},
    "ddpm": {"model": "pixel", "sampler": "ddpm", "strength": 0.05, "inference_steps": 3},
    "dpm": {"model": "pixel", "sampler": "dpm", "strength": 0.05, "inference_steps": 2},
    "flow": {"model": "flow", "strength": 0.1, "inference_steps": 2}, "vae": {"model": "vae"}, "vq": {"model": "vq"},
    "latent": {"model": "latent", "sampler": "ddim", "strength": 0.1, "inference_steps": 2},
    "inpaint": {"model": "pixel", "sampler": "ddpm", "strength": 0.1, "inference_steps": 2, "region": [0.25, 0.5]},
    "superres": {"model": "superres"},
    "unconditional": {"model": "unconditional", "sampler": "ddpm", "inference_steps": 2}}.items()}
X = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1


def draws(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with every model, untrained, as saved."""
    root, vae = tmp_path_factory.mktemp("models"), None
    torch.manual_seed(0)
    for name, config in CONFIGS.items():
        made = finish(name, config, build(name, config, vae), X)
        vae = made if name == "vae" else vae
        save_model(made, root / name)
    return root


@pytest.fixture(scope="module")
def models(saved):
    before = sha256_of(saved)
    yield {name: load_model(name, saved / name) for name in CONFIGS}
    assert sha256_of(saved) == before


@pytest.mark.parametrize("name", CONFIGS)
def test_every_model_has_a_loss_that_trains_all_its_networks(models, name):
    torch.manual_seed(0)
    networks, loss = build(name, CONFIGS[name], models["vae"]), training_loss(name, CONFIGS[name], models["vae"])
    one, two = (loss(networks, X, draws(1), step=9) for _ in range(2))
    assert one.ndim == 0 and torch.isfinite(one) and one == two
    two.backward()
    for network in networks.values():
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())
    assert all(p.grad is None for p in models["vae"].parameters())


def test_the_vq_models_parts_join_in_turn(models):
    config = CONFIGS["vq"]
    networks, loss = build("vq", config), training_loss("vq", config)
    codes = networks["model"].quantize.embedding.weight
    before = codes.detach().clone()
    before_step("vq", config, networks, 1, lambda step: X, seed=0)
    assert torch.equal(codes, before)
    before_step("vq", config, networks, 2, lambda step: X.roll(step, 3), seed=0)
    assert not torch.equal(codes, before)
    for step, quantised, adversarial in ((1, False, False), (2, True, False), (4, True, True)):
        networks.zero_grad(set_to_none=True)
        loss(networks, X, None, step).backward()
        assert (codes.grad is not None) == quantised
        assert (networks["discriminator"][0].weight.grad is not None) == adversarial


def test_loaded_models_are_frozen_float32_and_the_vae_knows_the_scale_of_its_latents(models):
    for model in models.values():
        assert not model.training and not any(p.requires_grad for p in model.parameters())
        assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert autoencoders.encode(models["vae"], X, "fp32").std().item() == pytest.approx(1, rel=0.01)
    assert isinstance(models["vae"].encoder.conv_norm_out, torch.nn.Identity)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_follows_its_draws_and_an_image_does_not_depend_on_its_batch(models, name):
    family = FAMILIES[name]
    one, two, other = (regenerate(family, models, X, draws(seed)) for seed in (1, 1, 2))
    assert one.shape == X.shape and torch.isfinite(one).all() and torch.equal(one, two)
    assert torch.equal(one, other) == (name in ("vae", "vq", "superres"))
    assert torch.equal(one, regenerate(family, models, -X, draws(1))) == (name == "unconditional")

    def pixels(order):
        return regenerate(family, models, X[order], [draws(i) for i in order], "fp32")

    whole = pixels([0, 1, 2])
    for order in ([1], [2, 0]):
        torch.testing.assert_close(pixels(order), whole[order], atol=1e-4, rtol=0)  # half a grey level is 4e-3


def test_a_missing_truncated_or_foreign_model_is_named(saved, tmp_path):
    with pytest.raises(UserError,
                       match="nowhere holds no pixel model.*`dvc pull`, or make it with `anl make generator pixel`"):
        load_model("pixel", tmp_path / "nowhere")
    with pytest.raises(UserError, match="vq holds no pixel model: .*class ScaledVQModel, not UNet2DModel"):
        load_model("pixel", saved / "vq")
    folder = shutil.copytree(saved / "pixel", tmp_path / "pixel")
    weights = folder / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match="pixel holds no pixel model") as problem:
        load_model("pixel", folder)
    assert "\n" not in str(problem.value)
    with pytest.raises(UserError, match="there is no generator model 'flo'; did you mean 'flow'"):
        build("flo", CONFIGS["pixel"])
    with pytest.raises(UserError, match="`latent` needs the trained `vae`"):
        build("latent", CONFIGS["latent"])
    with pytest.raises(UserError, match="taef2 is a published model and cannot be trained; state .* as `source`"):
        build("taef2", CONFIGS["pixel"])


@pytest.mark.parametrize("name", CONFIGS)
def test_runs_on_cuda(name):
    config = CONFIGS[name]
    with FakeTensorMode(allow_non_fake_inputs=True), torch.device("cuda"):
        x, vae = torch.empty(2, 3, 32, 32), build("vae", CONFIGS["vae"])["model"]
        networks = build(name, config, vae)
        loss = training_loss(name, config, vae)(networks, x, None, 9)
        unet = isinstance(networks["model"], UNet2DModel)  # whose schedulers read values
        made = loss if unet else regenerate(FAMILIES[name], {name: networks["model"]}, x, None)
    assert loss.device.type == made.device.type == "cuda"
