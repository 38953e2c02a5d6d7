"""DIRE: how far an image lies from its own reconstruction by DDIM inversion and sampling with the frozen prior."""

import itertools

import torch

from anl.baselines.dnf import load_prior, prior_hash
from anl.baselines.interface import Baseline, Classifier
from anl.baselines.stored import Stored


def represent(settings, models):
    """x -> |x - reconstruction|, (B, 3, H, W); two prior calls a step, settings["inversion_steps"] steps."""
    prior = load_prior(models)
    steps = settings["inversion_steps"]
    return Stored(lambda x: (x - reconstruct(prior.epsilon, prior.alphas_cumprod, x, steps)).abs(), "dire",
                  prior_hash(models), steps, prior.precision)


def reconstruct(epsilon, alphas_cumprod, x, steps):
    """x inverted over the whole schedule in `steps` deterministic steps, and sampled back.

    epsilon: (x, step) -> noise, step 1-based. alphas_cumprod: (T,). One step goes from a to b by
    sqrt(alpha_b) x0 + sqrt(1 - alpha_b) e with x0 = (x - sqrt(1 - alpha_a) e) / sqrt(alpha_a) (Song et al., DDIM, ICLR
    2021, eq. 12 and 13), its noise e taken at the nearer of both steps to the image (at 0 there is none: at 1).
    """
    places = torch.linspace(0, len(alphas_cumprod), steps + 1).round().long().tolist()
    alphas = torch.cat([alphas_cumprod.new_ones(1), alphas_cumprod]).float()

    def move(x, a, b):
        # the inversion looks from where it stands, the sampler too: a for both, but never step 0
        e = epsilon(x, max(a, 1))
        clean = (x - (1 - alphas[a]).sqrt() * e) / alphas[a].sqrt()
        return alphas[b].sqrt() * clean + (1 - alphas[b]).sqrt() * e

    for a, b in itertools.pairwise([*places, *places[-2::-1]]):
        x = move(x, a, b)
    return x


BASELINE = Baseline(
    title="DIRE", source="Wang et al., DIRE for diffusion-generated image detection, ICCV 2023",
    differs="Our small prior on the crop itself, fewer steps than the published 20, the residual kept as a tensor in place "
            "of a JPEG or PNG.",
    build=lambda detector, size, settings: Classifier(detector, size), represent=represent, needs=("prior",))
