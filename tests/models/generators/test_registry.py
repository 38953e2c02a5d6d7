import shutil

import pytest
import torch

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
SMALL = {"channels": [4, 4, 4], "latent_channels": 4, "crop": 32}
CONFIGS = {"pixel": {**UNET, "max_strength": 0.3}, "flow": {**UNET, "max_strength": 0.4}, "unconditional": UNET,
           "ddpm": UNET,
           "vae": {"channels": [8, 8], "latent_channels": 4}, "latent": {**UNET, "max_strength": 0.4, "kind": None},
           "vq": {"channels": [8, 8], "latent_channels": 4, "codes": 16, "steps": 10, "quantise_from": 0.2,
                  "adversarial_from": 0.4},
           "superres": {"channels": [8], "blocks": 1, "scale": 4, "texture_weight": 12}, "gan": SMALL,
           "small_vae": SMALL}
FAMILIES = {"ddim": {"model": "pixel", "sampler": "ddim", "strength": 0.05, "inference_steps": 2},
            "ddpm": {"model": "pixel", "sampler": "ddpm", "strength": 0.05, "inference_steps": 3, "region": None},
            "dpm": {"model": "pixel", "sampler": "dpm", "strength": 0.05, "inference_steps": 2},
            "flow": {"model": "flow", "strength": 0.1, "inference_steps": 2}, "vae": {"model": "vae"},
            "vq": {"model": "vq"},
            "latent": {"model": "latent", "sampler": "ddim", "strength": 0.1, "inference_steps": 2},
            "inpaint": {"model": "pixel", "sampler": "ddpm", "strength": 0.1, "inference_steps": 2,
                        "region": [0.25, 0.5]},
            "superres": {"model": "superres"}, "gan": {"model": "gan"}, "small_vae": {"model": "small_vae"},
            "unconditional": {"model": "unconditional", "sampler": "ddpm", "inference_steps": 2},
            "cifake_ddpm": {"model": "ddpm", "inference_steps": 2}}
FROM_NOISE = ("gan", "small_vae", "unconditional", "cifake_ddpm")
X = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1


def draws(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with every model, untrained, as saved."""
    root, vae = tmp_path_factory.mktemp("models"), None
    torch.manual_seed(0)
    for name, config in CONFIGS.items():
        made = finish(name, config, build(name, config, vae), X, draws())
        vae = made if name == "vae" else vae
        save_model(made, root / name)
    return root


@pytest.fixture(scope="module")
def models(saved):
    return {name: load_model(name, saved / name) for name in CONFIGS}


@pytest.mark.parametrize("name", CONFIGS)
def test_every_model_has_a_loss_that_trains_all_its_networks(models, name):
    torch.manual_seed(0)
    networks, loss = build(name, CONFIGS[name], models["vae"]), training_loss(name, CONFIGS[name], models["vae"])
    one, two = (loss(networks, X, draws(1), step=9) for _ in range(2))
    assert one.ndim == 0 and torch.isfinite(one)
    if name != "gan":  # each call is a power iteration of the spectral norm
        assert one == two
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


@pytest.mark.parametrize("name", CONFIGS)
def test_a_loaded_model_is_frozen_float32_and_its_file_unchanged(saved, models, name):
    before = sha256_of(saved / name)
    model = models[name]
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    if name not in ("latent",):
        regenerate({"model": name, "inference_steps": 1}, models, X, draws())
    assert sha256_of(saved / name) == before


def test_the_vae_knows_the_scale_of_its_latents(models):
    assert autoencoders.encode(models["vae"], X, "fp32").std().item() == pytest.approx(1, rel=0.01)
    assert isinstance(models["vae"].encoder.conv_norm_out, torch.nn.Identity)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_follows_its_draws(models, name):
    one, two, other = (regenerate(FAMILIES[name], models, X, draws(seed)) for seed in (1, 1, 2))
    assert one.shape == X.shape and torch.isfinite(one).all() and torch.equal(one, two)
    random = name not in ("vae", "vq", "superres")
    assert torch.equal(one, other) != random
    from_noise = torch.equal(one, regenerate(FAMILIES[name], models, -X, draws(1)))
    assert from_noise == (name in FROM_NOISE)


@pytest.mark.parametrize("name", FAMILIES)
def test_with_a_generator_each_an_image_does_not_depend_on_its_batch(models, name):
    def pixels(order, size):
        parts = [order[i:i + size] for i in range(0, len(order), size)]
        made = torch.cat([regenerate(FAMILIES[name], models, X[part], [draws(i) for i in part],
                                     "fp32") for part in parts])
        return made[torch.tensor(order).argsort()]

    whole = pixels([0, 1, 2], 3)
    for order, size in (([0, 1, 2], 1), ([2, 0, 1], 2)):
        torch.testing.assert_close(pixels(order, size), whole, atol=1e-4, rtol=0)  # far below half a grey level, 4e-3


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
    with pytest.raises(UserError, match="there is no generator model 'biggan'; choose one of pixel, flow"):
        build("biggan", {"channels": [8]})
    with pytest.raises(UserError, match="`latent` needs the trained `vae`"):
        build("latent", UNET)
