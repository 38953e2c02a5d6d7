"""AEROBLADE, without training: an image that one of several autoencoders reconstructs well is classified as generated."""

import torch
from torch import nn

from anl.models.baselines.interface import Baseline
from anl.models.detector import Output
from anl.models.generators.autoencoders import reconstruct


def errors(models, options):
    """x -> |x - AE(x)| of each of K autoencoders, mean over colours: (B, K, H, W)."""
    def error(model, x):
        made = reconstruct(model, x.to(next(model.parameters()).device)).to(x.device)
        return (x - made).abs().mean(1)
    return lambda x: torch.stack([error(model, x) for model in models], 1)


class SmallestError(nn.Module):
    """Errors (B, K, H, W) -> logit = -log of the smallest of the K mean errors; the map is that error, normalised."""

    def forward(self, errors):
        means = errors.mean((2, 3))
        smallest, best = means.min(1)
        chosen = errors[torch.arange(len(errors), device=errors.device), best].clamp(min=1e-8)
        share = chosen / chosen.sum((1, 2), keepdim=True)
        return Output(-smallest.clamp(min=1e-6).log(), None, share, means)


AEROBLADE = Baseline(
    name="AEROBLADE", reference="Ricker et al., AEROBLADE: Training-free detection of latent diffusion images using "
                                "autoencoder reconstruction error, CVPR 2024",
    fidelity="Mean absolute error in place of LPIPS, whose weights need a download; the autoencoders of our own "
             "families, on the crop at the benchmark's scale, where the published ones read whole images.",
    build=lambda detector, size, channels, seed: SmallestError(), needs="vae", trained=False, represent=errors,
    channels=len)
