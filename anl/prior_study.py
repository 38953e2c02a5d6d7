"""Has the prior learnt something? Its denoising against the best Gaussian filter, and its noise on clean patches."""

import numpy as np
import pandas as pd
import torch
from scipy.ndimage import gaussian_filter

from anl import bootstrap, seeds
from anl.data.patches import to_tensor
from anl.errors import UserError

WIDTHS = (0.0, 0.3, 0.4, 0.5, 0.6, 0.7, 0.85, 1.0, 1.2, 1.5, 1.9, 2.4, 3.0, 4.0, 6.0, 9.0)  # pixels
GREY_LEVELS = 127.5  # half the range of 8 bits: x runs from -1 to 1
BATCH = 32


def denoising_table(prior, val_pixels, test_pixels, test_clusters, steps, *, seed, replicates):
    """Error of the prior's and of the best Gaussian filter's denoised test patches, a row a step.

    val_pixels, test_pixels: uint8 (N, H, W, 3); test_clusters: (N,) photographs, drawn anew by the bootstrap. The
    filter's width is the best of WIDTHS on the validation patches at that step. Errors are root mean squares in grey
    levels with 95 % intervals; `ratio` is prior / filter on the same patches and noise.
    Raises UserError for a latent prior: its errors are no grey levels.
    """
    _need_pixels(prior)
    weights = bootstrap.cluster_weights(test_clusters, replicates, seed)
    rows = []
    for step in steps:
        alpha = float(prior.alphas_cumprod[prior.check_step(step) - 1])
        noised, clean = _noised(prior, val_pixels, step, seed, "val")
        width = min(WIDTHS, key=lambda width: np.mean((smooth(noised / alpha**0.5, width) - clean) ** 2))
        noised, clean = _noised(prior, test_pixels, step, seed, "test")
        restored = torch.cat([prior.denoise(torch.from_numpy(noised[i:i + BATCH]), step)
                              for i in range(0, len(noised), BATCH)]).numpy()
        errors = {name: _over_replicates(image - clean, weights) for name, image in
                  (("prior", restored), ("gaussian", smooth(noised / alpha**0.5, width)))}
        ratio = errors["prior"] / errors["gaussian"]
        row = {"step": step, "timestep": step - 1, "noise": (1 / alpha - 1) ** 0.5 * GREY_LEVELS}
        for name, values in (("prior_rmse", errors["prior"]), ("gaussian_rmse", errors["gaussian"]), ("ratio", ratio)):
            low, high = bootstrap.interval(values)
            row |= {name: float(values[0]), f"{name}_low": low, f"{name}_high": high}
        rows.append({**row, "gaussian_width": width, "n": len(test_pixels)})
    return pd.DataFrame(rows)


def clean_noise(prior, pixels, step):
    """The prior's noise on clean uint8 (N, H, W, 3) patches, float32 (N, C, h, w): (N, 3, H, W) for a pixel prior."""
    return torch.cat([prior.noise(to_tensor(pixels[i:i + BATCH]), step) for i in range(0, len(pixels), BATCH)])


def amplitude_table(prior, pixels, steps):
    """Standard deviation of the prior's noise on clean patches, a row a step and class.

    pixels: dict class -> uint8 (N, H, W, 3). `grey_levels` is how far the prior would move a pixel to denoise it:
    the standard deviation times the noise that the forward process has added at the step. Raises UserError for a latent
    prior, which moves no pixel.
    """
    _need_pixels(prior)
    rows = []
    for step in steps:
        alpha = float(prior.alphas_cumprod[prior.check_step(step) - 1])
        for name, images in pixels.items():
            spread = float(clean_noise(prior, images, step).double().std())
            rows.append({"step": step, "patches": name, "standard_deviation": spread,
                         "grey_levels": spread * (1 / alpha - 1) ** 0.5 * GREY_LEVELS, "n": len(images)})
    return pd.DataFrame(rows)


def correlation(prediction, target):
    """Pearson correlation of each image's predicted noise with its target. (N, 3, H, W) twice -> (N,) float64."""
    a, b = (torch.as_tensor(value).double().flatten(1) for value in (prediction, target))
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    return ((a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1)).clamp(min=1e-12)).numpy()


def smooth(images, width):
    """Gaussian filter over the last two axes, reflected at the border; width 0 changes nothing."""
    return images if width == 0 else gaussian_filter(images, (0,) * (images.ndim - 2) + (width, width), mode="mirror")


def _need_pixels(prior):
    if prior.factor != 1:
        raise UserError("this table is in grey levels and the prior works on latents; take a pixel-space prior for it")


def _noised(prior, pixels, step, seed, name):
    clean = to_tensor(pixels)
    noised, _ = prior.forward_noise(clean, step, seeds.torch_generator(seed, "denoising", name, step))
    return noised.numpy(), clean.numpy()


def _over_replicates(error, weights):
    """RMS in grey levels over all images for every row of weights: (N, 3, H, W), (R, N) -> (R,)."""
    per_image = (error.astype(np.float64) ** 2).mean((1, 2, 3))
    return np.sqrt(weights @ per_image / weights.sum(1)) * GREY_LEVELS
