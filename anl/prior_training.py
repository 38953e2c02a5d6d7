"""The project's own diffusion priors: built, trained on photographs and saved in diffusers' layout."""

from pathlib import Path

import torch
from diffusers import UNet2DModel

from anl import seeds
from anl.data.patches import CropSampler
from anl.errors import UserError
from anl.files import write_csv
from anl.fitting import Checkpoint, fit
from anl.generators.diffusion import epsilon_loss, noise_scheduler


def build(channels, layers_per_block):
    """An untrained prior: a convolutional UNet whose time embedding scales and shifts (no generator here is built so)."""
    return UNet2DModel(in_channels=3, out_channels=3, layers_per_block=layers_per_block,
                       block_out_channels=tuple(channels), norm_num_groups=8, add_attention=False, act_fn="gelu",
                       resnet_time_scale_shift="scale_shift", down_block_types=("DownBlock2D",) * len(channels),
                       up_block_types=("UpBlock2D",) * len(channels))


def fit_prior(sources, config, out, *, seed, cache):
    """Train a DDPM (Ho et al. 2020) over all its steps on uint8 images at the detector's scale; save it under `out`.

    config: a profile's `prior` mapping (channels, layers_per_block, crop, batch_size, steps, learning_rate, ema); with
    `steps` 0 the untrained network is saved. Another prior is another seed or another config.
    Saved in the layout of diffusers' DDPMPipeline, so that any other such folder can stand in its place.
    Raises UserError if `steps` is negative.
    """
    if config["steps"] < 0:
        raise UserError(f"prior.steps: {config['steps']} is negative; 0 saves the untrained prior")
    seeds.fix(seed, "prior")
    sampler = CropSampler(sources, config["crop"], config["batch_size"], seed, "prior")
    unet = build(config["channels"], config["layers_per_block"]).to(memory_format=torch.channels_last).train()
    checkpoint = Checkpoint(cache, "prior", {"config": config, "seed": seed, "sources": len(sources)})
    curve = fit({"prior": unet}, lambda k: epsilon_loss(unet, sampler.batch(k), seeds.torch_generator(seed, "prior", k)),
                steps=config["steps"], learning_rate=config["learning_rate"], checkpoint=checkpoint, name="prior",
                ema=config["ema"])
    unet.eval().save_pretrained(Path(out) / "unet")
    noise_scheduler().save_pretrained(Path(out) / "scheduler")
    write_csv(Path(out) / "curve.csv", [{"step": step, "loss": value} for step, value in curve], ["step", "loss"])
    checkpoint.remove()
