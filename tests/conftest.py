"""A whole tiny project in a temporary folder: photographs, untrained models, a benchmark, a profile."""

import copy
import csv
import hashlib

import numpy as np
import pytest
import torch
from PIL import Image

from anl import benchmark, more_families, params, prior_training, seeds
from anl.data.photos import CARD_COLUMNS
from anl.generators import autoencoders, diffusion, superres
from tests.synthetic import built_book  # noqa: F401  a fixture, built once for all modules

ROOT = __import__("pathlib").Path(__file__).resolve().parents[1]
MODELS = {"pixel": {"channels": [8, 8], "layers_per_block": 1, "max_strength": 0.3},
          "flow": {"channels": [8, 8], "layers_per_block": 1, "max_strength": 0.4},
          "vae": {"channels": [8, 8], "latent_channels": 4},
          "vq": {"channels": [8, 8], "latent_channels": 4, "codes": 16, "quantise_from": 0.2, "adversarial_from": 0.4},
          "latent": {"channels": [8, 8], "layers_per_block": 1, "max_strength": 0.4}}
MORE_MODELS = {"superres": {"channels": [8], "blocks": 1, "scale": 4, "texture_weight": 12},
               "unconditional": {"channels": [8, 8], "layers_per_block": 1, "max_strength": 1.0}}
TRAINING = {"crop": 16, "batch_size": 2, "steps": 4, "learning_rate": 0.001, "ema": 0.9}


def photograph(seed, height=150, width=190):
    """A smooth random picture with some grain, uint8 (H, W, 3)."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)).resize((width, height), Image.BICUBIC)
    return np.clip(np.asarray(coarse, float) + rng.normal(0, 8, (height, width, 3)), 0, 255).astype(np.uint8)


def tiny_settings(root):
    """A resolved profile, as a plain dict, whose paths lie under `root` and whose models are tiny."""
    value = copy.deepcopy(params.resolve("small", ROOT / "profiles"))
    value["profile"] = "tiny"
    value["data"] |= {"card": str(root / "photos.csv"), "folder": str(root / "photos")}
    value["models"] = {name: {**model, **TRAINING} for name, model in MODELS.items()}
    value["prior"] = {"channels": [8, 8], "layers_per_block": 1, **TRAINING}
    value["other_priors"] = {"other_prior": {**value["prior"], "seed_offset": 2}}
    value["families"] = {
        "ddim": {"model": "pixel", "sampler": "ddim", "strength": 0.05, "inference_steps": 2},
        "ddpm": {"model": "pixel", "sampler": "ddpm", "strength": 0.05, "inference_steps": 2},
        "vae": {"model": "vae"}, "vq": {"model": "vq"},
        "flow": {"model": "flow", "strength": 0.1, "inference_steps": 2},
        "latent": {"model": "latent", "sampler": "ddim", "strength": 0.1, "inference_steps": 2}}
    value["more_models"] = {name: {**model, **TRAINING} for name, model in MORE_MODELS.items()}
    value["more_families"] = {
        "dpm": {"model": "pixel", "sampler": "dpm", "strength": 0.05, "inference_steps": 2},
        "inpaint": {"model": "pixel", "sampler": "ddpm", "strength": 0.1, "inference_steps": 2, "region": [0.25, 0.5]},
        "superres": {"model": "superres"},
        "unconditional": {"model": "unconditional", "sampler": "ddim", "inference_steps": 2, "paired": False}}
    value["more_patches"] = {"val": 3, "test": 4}
    value["benchmark"] |= {"folder": str(root / "benchmark"), "size": 32, "least_std": 1.0,
                           "patches": {"train": 4, "val": 4, "test": 4}}
    value["data"]["split"] = {"train": 0.4, "val": 0.3, "test": 0.3}
    value["use"] = {"train": 16, "val": 12, "test": 12}
    value["detector"] |= {"stem_width": 8, "attention_dim": 8}
    value["training"] |= {"steps": 4, "batch_size": 8}
    value["runs"] = {"seeds": [0, 1], "steps": [100], "attentions": ["none"], "targets": ["highpass"], "priors": [], "loss_weights": [],
                     "quiet_attentions": [], "noise_on": [], "gradients": [], "branches": [], "pairs": [], "formats": [], "leaky_steps": [],
                     "plus_targets": [], "consistent_targets": [], "reads": [], "plain_reads": [], "baselines": [], "left_out": [],
                     "experiments": []}
    value["evaluation"] |= {"bootstrap": 40}
    return value


class World:
    """root: folder; params: Params; models, targets, runs, cache: folders for the calls that take them."""

    def __init__(self, root):
        self.root = root
        self.settings = tiny_settings(root)
        self.params = params.from_dict(self.settings, "tiny")
        self.models, self.targets, self.runs, self.cache = (str(root / name)
                                                            for name in ("models", "targets", "runs", "cache"))


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """Made once; tests that write use other folders than its own."""
    world = World(tmp_path_factory.mktemp("world"))
    (world.root / "photos").mkdir()
    rows = []
    for index in range(10):
        name = f"photo{index}.png"
        Image.fromarray(photograph(index)).save(world.root / "photos" / name)
        data = (world.root / "photos" / name).read_bytes()
        rows.append({"file": name, "sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data), "width": 190,
                     "height": 150, "format": "PNG", "licence": "CC0-1.0", "author": "nobody", "source": "",
                     "package": "none", "path_in_package": name, "group": ""})
    with open(world.root / "photos.csv", "w", newline="") as stream:
        writer = csv.DictWriter(stream, CARD_COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    seeds.fix(0, "world")
    vae = autoencoders.build_vae([8, 8], 4)
    made = {"pixel": diffusion.build_unet([8, 8], 1), "flow": diffusion.build_unet([8, 8], 1), "vae": vae,
            "vq": autoencoders.build_vq([8, 8], 4, 16), "latent": diffusion.build_unet([8, 8], 1, 4),
            "superres": superres.SuperResolver(8, 1, 4), "unconditional": diffusion.build_unet([8, 8], 1)}
    for name, model in made.items():
        model.to(torch.float16).save_pretrained(world.root / "models" / name)
    for name in ("prior", "other_prior"):
        prior_training.build([8, 8], 1).save_pretrained(world.root / "models" / name / "unet")
        diffusion.noise_scheduler().save_pretrained(world.root / "models" / name / "scheduler")
    benchmark.build(world.params, world.models, world.cache)
    more_families.build(world.params, world.models, world.cache)
    return world
