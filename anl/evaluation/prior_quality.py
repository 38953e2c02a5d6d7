"""Quality of a prior: its denoising error compared with the best Gaussian filter; its noise on clean images, and the detector's."""

import numpy as np
import pandas as pd
import torch
from scipy.ndimage import gaussian_filter

from anl import seeds
from anl.data.images import to_tensor
from anl.evaluation import bootstrap
from anl.io import UserError

WIDTHS = (0.0, 0.3, 0.4, 0.5, 0.6, 0.7, 0.85, 1.0, 1.2, 1.5, 1.9, 2.4, 3.0, 4.0, 6.0, 9.0)  # pixels
GREY_LEVELS = 127.5  # half the range of 8 bits: x runs from -1 to 1


def denoising_table(prior, validation, test, group, steps, *, seed, replicates, batch_size=32):
    """Error of test images denoised by the prior and by the best Gaussian filter, a row per step.

    Parameters
    ----------
    prior : anl.models.prior.NoisePrior
        A prior that works on pixels.
    validation, test : array, uint8 (N, H, W, 3)
        For each step the filter has the width of WIDTHS with the lowest error on the validation images.
    group : array of str, (N,)
        Photograph of each test image, for the bootstrap.
    steps : sequence of int
    seed, replicates : int
        Seed of the noise and of the bootstrap, and number of bootstrap replicates.

    Returns
    -------
    DataFrame
        step, timestep, noise (its standard deviation in grey levels after scaling the signal to 1), prior_rmse,
        gaussian_rmse (grey levels) and ratio (prior / Gaussian, same images and noise) with 95 % intervals over
        photographs (suffixes _low, _high), gaussian_width in pixels, n.

    Raises
    ------
    UserError
        If the prior works on latents, because its errors are not in grey levels.
    """
    if prior.factor != 1:
        raise UserError("this table is in grey levels and the prior works on latents; use a prior of pixels")
    draws = bootstrap.draw_groups(group, replicates, seed)
    rows = []
    for step in steps:
        alpha = float(prior.alphas_cumprod[prior.check_step(step) - 1])
        noised, clean = _noised(prior, validation, step, seed, "val")
        width = min(WIDTHS, key=lambda width: np.mean((smooth(noised / alpha**0.5, width) - clean) ** 2))
        noised, clean = _noised(prior, test, step, seed, "test")
        restored = torch.cat([prior.denoise(part, step) for part in torch.from_numpy(noised).split(batch_size)]).numpy()
        errors = {"prior_rmse": _rmse(restored - clean, group, draws),
                  "gaussian_rmse": _rmse(smooth(noised / alpha**0.5, width) - clean, group, draws)}
        errors["ratio"] = tuple(a / b for a, b in zip(*errors.values()))
        row = {"step": step, "timestep": step - 1, "noise": (1 / alpha - 1) ** 0.5 * GREY_LEVELS}
        for name, (value, drawn) in errors.items():
            found = bootstrap.interval([value], drawn[None], len(draws.names))
            row |= {name: float(value), f"{name}_low": float(found.low), f"{name}_high": float(found.high)}
        rows.append({**row, "gaussian_width": width, "n": len(test)})
    return pd.DataFrame(rows)


def clean_noise(prior, pixels, step, batch_size=32):
    """The prior's noise on clean uint8 (N, H, W, 3) images, float32 (N, C, h, w)."""
    return torch.cat([prior.noise(to_tensor(pixels[start:start + batch_size]), step)
                      for start in range(0, len(pixels), batch_size)])


@torch.no_grad()
def noise_pair(detector, prior, pixels, step, batch_size=64):
    """The noise predicted for uint8 (N, H, W, 3) images by a detector and by the prior, each float32 (N, C, h, w)."""
    predicted = torch.cat([detector(part).noise for part in to_tensor(pixels).split(batch_size)])
    return predicted, clean_noise(prior, pixels, step)


def correlation(prediction, target):
    """Pearson correlation of each image's predicted noise with its target: (N, C, h, w) twice -> float64 (N,)."""
    a, b = (torch.as_tensor(value).double().flatten(1) for value in (prediction, target))
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    return ((a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1)).clamp(min=1e-12)).cpu().numpy()


def smooth(images, width):
    """Gaussian filter over the last two axes, reflected at the border; width 0 changes nothing."""
    return images if width == 0 else gaussian_filter(images, (0,) * (images.ndim - 2) + (width, width), mode="mirror")


def _noised(prior, pixels, step, seed, name):
    clean = to_tensor(pixels)
    noised, _ = prior.forward_noise(clean, step, seeds.torch_generator(seed, "denoising", name, step))
    return noised.numpy(), clean.numpy()


def _rmse(error, group, draws):
    """Root mean squared error in grey levels, of all images and of each replicate (R,)."""
    per_image = (error.astype(np.float64) ** 2).mean((1, 2, 3))
    return np.sqrt(per_image.mean()) * GREY_LEVELS, np.sqrt(draws.mean(per_image, group)) * GREY_LEVELS
