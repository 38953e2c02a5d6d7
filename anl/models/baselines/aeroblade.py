"""AEROBLADE: no training; an image that one of several autoencoders reconstructs well is called generated.

Reference: Ricker et al., "AEROBLADE: training-free detection of latent diffusion images using autoencoder
reconstruction error", CVPR 2024. Fidelity: see `BASELINE.fidelity`.
"""

import torch
from torch import nn

from anl.models.baselines.interface import Baseline
from anl.models.detector import Output
from anl.models.generators import autoencoders


def represent(models, options):
    """x -> |x - AE(x)| of each autoencoder, mean over colours: (B, K, H, W).

    models: K autoencoders, of diffusers or modules that return the reconstruction (TAEF2).
    """
    @torch.no_grad()
    def errors(x):
        return torch.stack([(x - _reconstruct(model, x)).abs().mean(1) for model in models], 1)
    return errors


def _reconstruct(model, x):
    moved = x.to(next(model.parameters()).device)
    return (autoencoders.reconstruct(model, moved) if hasattr(model, "encode") else model(moved)).to(x.device)


class SmallestError(nn.Module):
    """Errors (B, K, H, W) -> logit = -log of the smallest of the K mean errors; the map is that error's share."""

    def forward(self, errors):
        means = errors.mean((2, 3))
        smallest, best = means.min(1)
        chosen = errors[torch.arange(len(errors), device=errors.device), best].clamp(min=1e-8)
        share = chosen / chosen.sum((1, 2), keepdim=True)
        return Output(-smallest.clamp(min=1e-6).log(), None, share, means)


BASELINE = Baseline(
    name="AEROBLADE", reference="Ricker et al., AEROBLADE: Training-free detection of latent diffusion images using "
                                "autoencoder reconstruction error, CVPR 2024",
    fidelity="Mean absolute error in place of LPIPS, whose weights need a download; the autoencoders of our own "
             "families, on the crop at the benchmark's scale, where the published ones read whole images.",
    build=lambda detector, size, channels, seed: SmallestError(), needs="vae", trained=False, represent=represent,
    channels=len)
