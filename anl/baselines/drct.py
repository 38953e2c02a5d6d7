"""DRCT-like: photographs reconstructed by a diffusion model are further negatives, and features of a class attract."""

import dataclasses

import numpy as np
import torch
from torch.nn import functional as F

from anl import seeds
from anl.baselines.dnf import load_prior, prior_hash
from anl.baselines.interface import Baseline, in_batches, plain_detector
from anl.baselines.stored import Stored
from anl.data.patches import to_pixels


def prepare(data, spec, params, detector):
    """Adds a reconstruction of every real and every fake training image, label 1; a pair's negative is then one of
    three, drawn anew each time: the seen generator's, the real's reconstruction, the fake's reconstruction."""
    from anl.generators.diffusion import denoise_from

    settings = dataclasses.asdict(params.baselines)
    prior = load_prior("models")

    def reconstruct(x):
        return denoise_from(prior.unet, x, sampler="ddim", strength=settings["reconstruction_strength"],
                            inference_steps=settings["reconstruction_steps"],
                            generator=seeds.torch_generator(params.seed, "drct"))

    kept = Stored(reconstruct, "drct", prior_hash("models"), params.seed, settings["reconstruction_strength"],
                  settings["reconstruction_steps"])
    fakes = data["fake"][:, 0]
    made = to_pixels(in_batches(kept, data["pixels"][np.concatenate([data["real"], fakes])]))
    first = len(data["pixels"])
    names = data["samples"][np.concatenate([data["real"], fakes])]
    data["pixels"] = np.concatenate([data["pixels"], made])
    data["label"] = np.concatenate([data["label"], np.ones(len(made), np.float32)])
    data["samples"] = np.concatenate([data["samples"], np.array([f"drct/{name}" for name in names])])
    pairs = len(data["real"])
    data["fake"] = np.stack([fakes, first + np.arange(pairs), first + pairs + np.arange(pairs)], 1)


def contrastive(output, label, guide, settings):
    """Margin-based contrastive loss over all pairs of a batch: features (B, D) of a class attract, those of two classes
    keep at least `margin` apart (Hadsell et al., CVPR 2006), on features of unit length."""
    features = F.normalize(output.features.float(), dim=1)
    distance = (2 - 2 * features @ features.T).clamp(min=1e-8).sqrt()
    alike = label[:, None] == label[None, :]
    others = ~torch.eye(len(label), dtype=torch.bool, device=label.device)
    pull = distance.square()[alike & others]
    push = (settings["margin"] - distance).clamp(min=0).square()[~alike]
    return settings["contrastive_weight"] * (pull.mean() + push.mean()) / 2


BASELINE = Baseline(
    title="DRCT-like", source="Chen et al., DRCT: diffusion reconstruction contrastive training towards universal detection "
                              "of diffusion generated images, ICML 2024",
    differs="Reconstructions by our small prior in place of Stable Diffusion; our backbone and augmentation.",
    build=plain_detector, prepare=prepare, extra_loss=contrastive)
