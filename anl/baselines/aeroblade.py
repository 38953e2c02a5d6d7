"""AEROBLADE: no training; what an autoencoder reconstructs best is called generated."""

from pathlib import Path

import torch
from torch import nn

from anl.baselines.interface import Baseline
from anl.baselines.stored import Stored
from anl.detector import Output
from anl.files import sha256_of

AUTOENCODERS = ("vae", "vq")
WEIGHTS = "diffusion_pytorch_model.safetensors"


def represent(settings, models):
    """x -> |x - AE(x)| of each of AUTOENCODERS, mean over colours: (B, 2, H, W)."""
    from anl.generators import load_model
    from anl.generators.autoencoders import reconstruct

    known = [load_model(name, Path(models) / name) for name in AUTOENCODERS]
    hashes = [sha256_of(Path(models) / name / WEIGHTS) for name in AUTOENCODERS]

    def errors(x):
        return torch.stack([(x - reconstruct(model, x)).abs().mean(1) for model in known], 1)

    return Stored(errors, "aeroblade", *hashes)


class SmallestError(nn.Module):
    """errors (B, K, H, W) -> logit = -log of the smallest of the K mean errors; the map: the errors of that one."""

    def forward(self, errors):
        means = errors.mean((2, 3))
        best = means.argmin(1)
        chosen = errors[torch.arange(len(errors)), best]
        share = chosen / chosen.sum((1, 2), keepdim=True).clamp(min=1e-8)
        return Output(-means.min(1).values.clamp(min=1e-6).log(), None, share)


BASELINE = Baseline(
    title="AEROBLADE", source="Ricker et al., AEROBLADE: training-free detection of latent diffusion images using "
                              "autoencoder reconstruction error, CVPR 2024",
    differs="Mean absolute error in place of LPIPS, whose weights need a hub; the autoencoders of our own families, which "
            "worked at twice the benchmark's scale.",
    build=lambda detector, size, settings: SmallestError(), represent=represent, needs=AUTOENCODERS, trained=False)
