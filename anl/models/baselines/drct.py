"""DRCT-like: reconstructions by a diffusion model are further negatives, and features of one class attract each other.

Reference: Chen et al., "DRCT: Diffusion reconstruction contrastive training towards universal detection of diffusion
generated images", ICML 2024. Fidelity: see `BASELINE.fidelity`.
"""

import itertools

import torch
from torch.nn import functional as F

from anl.models.baselines.dire import ddim_step
from anl.models.baselines.interface import Baseline, plain_detector


@torch.no_grad()
def reconstruct(prior, x, generator, options):
    """Images noised to `reconstruction_strength` of the schedule and denoised in `reconstruction_steps` DDIM steps.

    Parameters
    ----------
    prior : NoisePrior
    x : Tensor (B, 3, H, W)
        Real and generated training images in [-1, 1]; their reconstructions get label 1.
    generator : torch.Generator
        On the CPU, as all of the project's draws.
    options : mapping

    Returns
    -------
    Tensor (B, 3, H, W)
        In [-1, 1], on x's device.
    """
    last = max(1, round(options["reconstruction_strength"] * len(prior.alphas_cumprod)))
    places = torch.linspace(last, 0, min(options["reconstruction_steps"], last) + 1).round().long().tolist()
    z, alpha = prior.encode(x), float(prior.alphas_cumprod[last - 1])
    z = alpha**0.5 * z + (1 - alpha) ** 0.5 * torch.randn(z.shape, generator=generator).to(z)
    for a, b in itertools.pairwise(places):
        z = ddim_step(prior, z, a, b)
    vae = getattr(prior, "vae", None)
    if vae is not None:
        z = z / vae.config.scaling_factor + (vae.config.shift_factor or 0)
        z = vae.decode(z.to(prior.device)).sample.to(x.device)
    return z.clamp(-1, 1)


def contrastive(output, label, target, mask, options):
    """Margin-based contrastive loss over all pairs of a batch, on features (B, D) scaled to unit length.

    Those of one class attract each other, those of two classes stay `margin` apart.

    References
    ----------
    Hadsell et al., "Dimensionality reduction by learning an invariant mapping", CVPR 2006.
    """
    features = F.normalize(output.features.float(), dim=1)
    distance = (2 - 2 * features @ features.T).clamp(min=1e-8).sqrt()
    same = (label[:, None] == label[None, :]).to(distance)
    others = same * (1 - torch.eye(len(label), device=label.device))
    pull = (others * distance.square()).sum() / others.sum().clamp(min=1)
    push = ((1 - same) * (options["margin"] - distance).clamp(min=0).square()).sum() / (1 - same).sum().clamp(min=1)
    return options["contrastive_weight"] * (pull + push) / 2


BASELINE = Baseline(
    name="DRCT-like", reference="Chen et al., DRCT: Diffusion reconstruction contrastive training towards universal "
                                "detection of diffusion generated images, ICML 2024",
    fidelity="Reconstructions of real and generated images by the configured prior in place of Stable Diffusion's "
             "inpainting models; our backbone and augmentation.",
    build=plain_detector, needs="prior", parameters=("reconstruction_strength", "reconstruction_steps"),
    loss_parameters=("contrastive_weight", "margin"), extra_images=reconstruct, extra_loss=contrastive)
