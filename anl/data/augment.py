"""Harmless processing of training pairs, so that a detector learns to look past it (Wang et al., CVPR 2020)."""

import numpy as np
import torch
from PIL import Image, ImageFilter

from anl import seeds
from anl.data.views import jpeg

KINDS = ("jpeg", "jpeg", "resize", "blur")  # drawn alike, so JPEG makes up a half


def plan(pairs, config, seed, step):
    """What happens to each pair of batch `step`: dict pair -> None (most often) or (kind, strength).

    config: a profile's `training` (augment_probability, jpeg_quality, resize_scale, blur_radius). A pure function of the
    seed and the step.
    """
    rng = seeds.generator(seed, "augment", step)
    ranges = {"jpeg": config.jpeg_quality, "resize": config.resize_scale, "blur": config.blur_radius}
    plans = {}
    for pair in np.unique(pairs).tolist():
        draw, kind, place = rng.random(), KINDS[rng.integers(len(KINDS))], rng.random()
        low, high = ranges[kind]
        plans[pair] = (kind, low + place * (high - low)) if draw < config.augment_probability else None
    return plans


def flips(pairs, config, seed, step):
    """Which pairs of batch `step` are seen in the mirror: dict pair -> bool, half of them where config.flip is set and none
    elsewhere. A pure function of the seed and the step."""
    rng = seeds.generator(seed, "flip", step) if config.flip else None
    return {pair: rng is not None and bool(rng.random() < 0.5) for pair in np.unique(pairs).tolist()}


def mirror(images, flipped):
    """Tensors (N, ..., W) with those turned left to right whose entry of `flipped` (N bools) is true."""
    chosen = torch.tensor(flipped, device=images.device).view(-1, *[1] * (images.dim() - 1))
    return torch.where(chosen, images.flip(-1), images)


def process(pixels, kind, strength):
    """uint8 (H, W, 3) through JPEG of quality `strength`, a bicubic resize to that share and back, or a Gaussian blur of
    that radius in pixels."""
    if kind == "jpeg":
        return jpeg(pixels, round(strength))
    image = Image.fromarray(pixels)
    if kind == "blur":
        return np.asarray(image.filter(ImageFilter.GaussianBlur(strength)))
    small = image.resize((round(image.width * strength), round(image.height * strength)), Image.Resampling.BICUBIC)
    return np.asarray(small.resize(image.size, Image.Resampling.BICUBIC))


def apply(plans, images):
    """The images (uint8, (N, H, W, 3)) after their plans, one each; those whose plan is None stay as they are."""
    return np.stack([image if plan is None else process(image, *plan) for plan, image in zip(plans, images, strict=True)])
