"""DistilDIRE-like: image and one prior call at inference, features taught by a detector that reads DIRE.

Reference: Lim et al., "DistilDIRE: a small, fast, cheap and lightweight diffusion synthesized deepfake detection",
2024. Fidelity: see `BASELINE.fidelity`.
"""

import torch

from anl.models.baselines import dnf
from anl.models.baselines.interface import Baseline, Classifier


def represent(prior, options):
    """x -> x and the prior's noise at `noise_step`, (B, 3 + channels, H, W)."""
    noise = dnf.represent(prior, options)
    return lambda x: torch.cat([x, noise(x)], 1)


def distillation(output, label, target, mask, options):
    """Mean squared distance to the teacher's features `target` (B, D), over the images in `mask` (B,)."""
    error = (output.features.float() - target.float()).square().mean(1)
    mask = torch.ones_like(error) if mask is None else mask.to(error)
    return options["distillation_weight"] * (mask * error).sum() / mask.sum().clamp(min=1)


BASELINE = Baseline(
    name="DistilDIRE-like", reference="Lim et al., DistilDIRE: a small, fast, cheap and lightweight diffusion "
                                      "synthesized deepfake detection, 2024",
    fidelity="Our prior, backbone and augmentation; the teacher is the detector of `dire`, not a pre-trained "
             "ResNet-50, and teaches on unprocessed images.",
    build=Classifier, needs="prior", represent=represent, channels=lambda prior: 3 + prior.channels,
    parameters=("noise_step",), loss_parameters=("inversion_steps", "distillation_weight"),  # the teacher's steps too
    training=lambda options: {"flip": False},  # the target is not that of a mirror image
    teacher="dire", extra_loss=distillation)
