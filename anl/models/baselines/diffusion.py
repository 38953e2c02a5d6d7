"""Baselines with a frozen prior: dnf, dire, distildire and lare use it at inference, too; drct, diffusionfake do not."""

import itertools

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from anl import seeds
from anl.models.attention import GateAttention, uniform_map
from anl.models.baselines.interface import Baseline, Classifier, plain_detector
from anl.models.detector import Output, initialised_from


def enlarge(z, x):
    """z (B, C, h, w) of a latent prior repeated to the resolution of the images x; z itself for a pixel prior."""
    for axis in (2, 3):
        z = z.repeat_interleave(x.shape[axis] // z.shape[axis], axis)
    return z


def ddim_step(prior, z, a, b):
    """Move z from step a to step b (0 = clean) without added noise, forwards or backwards.

    z_b = sqrt(alpha_b) z_0 + sqrt(1 - alpha_b) e with z_0 = (z - sqrt(1 - alpha_a) e) / sqrt(alpha_a). Here e is the
    noise that the prior predicts at step a, or at step 1 if a = 0.

    References
    ----------
    Song et al., "Denoising diffusion implicit models", ICLR 2021, eq. 12 and 13.
    """
    alpha_a, alpha_b = (1.0 if step == 0 else float(prior.alphas_cumprod[step - 1]) for step in (a, b))
    e = prior.epsilon(z, max(a, 1))
    clean = (z - (1 - alpha_a) ** 0.5 * e) / alpha_a**0.5
    return alpha_b**0.5 * clean + (1 - alpha_b) ** 0.5 * e


def predicted_noise(prior, options):
    """x -> the noise that the prior predicts at `noise_step`, (B, channels, H, W)."""
    return lambda x: enlarge(prior.epsilon(prior.encode(x), options["noise_step"]), x)


DNF = Baseline(
    name="DNF", reference="Zhang and Xu, Diffusion noise feature: accurate and fast generated image detection, 2023",
    fidelity="The noise of one step from the configured prior on the crop itself, in place of a fusion over the DDIM "
             "inversion of a bedroom prior; our backbone.",
    build=Classifier, needs="prior", represent=predicted_noise, channels=lambda prior: prior.channels,
    parameters=("noise_step",))


def inverted(prior, z, steps):
    """z (B, C, h, w) after DDIM inversion to the end of the schedule in `steps` steps, and DDIM sampling in as many."""
    places = np.rint(np.linspace(0, len(prior.alphas_cumprod), steps + 1)).astype(int).tolist()
    for a, b in itertools.pairwise([*places, *places[-2::-1]]):
        z = ddim_step(prior, z, a, b)
    return z


def inversion_error(prior, options):
    """x -> |z - its reconstruction by `inverted`|, (B, channels, H, W), z being x in the prior's own space."""
    def error(x):
        z = prior.encode(x)
        return enlarge((z - inverted(prior, z, options["inversion_steps"])).abs(), x)
    return error


DIRE = Baseline(
    name="DIRE", reference="Wang et al., DIRE for diffusion-generated image detection, ICCV 2023",
    fidelity="The configured prior on the crop itself, fewer steps than the published 20, the residual as a tensor in "
             "place of a JPEG or PNG file; our backbone.",
    build=Classifier, needs="prior", represent=inversion_error, channels=lambda prior: prior.channels,
    parameters=("inversion_steps",))


def image_and_noise(prior, options):
    """x -> x and the prior's noise at `noise_step`, (B, 3 + channels, H, W)."""
    noise = predicted_noise(prior, options)
    return lambda x: torch.cat([x, noise(x)], 1)


def distillation(output, label, target, mask, options, teacher=None):
    """Mean squared distance to the teacher's features `target` (B, D), over the images in `mask` (B,)."""
    error = (output.features.float() - target.float()).square().mean(1)
    mask = torch.ones_like(error) if mask is None else mask.to(error)
    return options["distillation_weight"] * (mask * error).sum() / mask.sum().clamp(min=1)


DISTILDIRE = Baseline(
    name="DistilDIRE-like", reference="Lim et al., DistilDIRE: a small, fast, cheap and lightweight diffusion "
                                      "synthesized deepfake detection, 2024",
    fidelity="Our prior, backbone and augmentation; the teacher is the detector of `dire`, not a pre-trained "
             "ResNet-50, and teaches on unprocessed images.",
    build=Classifier, needs="prior", represent=image_and_noise, channels=lambda prior: 3 + prior.channels,
    parameters=("noise_step",), loss_parameters=("inversion_steps", "distillation_weight"),  # the teacher's steps too
    training=lambda options: {"flip": False},  # the target is that of the image, not of its mirror image
    teacher="dire", extra_loss=distillation)


def denoising_error(prior, options):
    """x -> x and the squared error of the noise predicted in noised x, averaged over draws: (B, 3 + channels, H, W).

    The draws of noise are the same for every image, so that a score depends on the image alone.
    """
    step, draws = options["error_step"], options["error_draws"]
    alpha = float(prior.alphas_cumprod[step - 1])

    def error(x):
        z = prior.encode(x)
        total = torch.zeros_like(z)
        for draw in range(draws):
            noise = torch.randn(z.shape[1:], generator=seeds.torch_generator(0, "lare", draw)).to(z).expand_as(z)
            total += (prior.epsilon(alpha**0.5 * z + (1 - alpha) ** 0.5 * noise, step) - noise).square()
        return torch.cat([x, enlarge(total / draws, x)], 1)

    return error


class Guided(nn.Module):
    """The plain detector on the image, with features refined by a `GateAttention` on the log error; starts neutral."""

    def __init__(self, detector, size, channels, seed=0):
        super().__init__()
        self.plain = plain_detector(detector, size, seed=seed)
        self.standardise = nn.BatchNorm2d(channels - 3, affine=False)
        with initialised_from(seed, "gate"):
            self.gate = GateAttention(self.plain.classifier.in_features, channels - 3)

    def forward(self, inputs):
        x, error = inputs[:, :3], inputs[:, 3:]
        features = self.plain.backbone(self.plain.front_end(x))[-1]
        features, weights = self.gate(features, self.standardise(error.clamp(min=1e-6).log()))
        pooled = features.mean((2, 3))
        return Output(self.plain.classifier(pooled).squeeze(1), None, weights, pooled)


LARE = Baseline(
    name="LaRE-like", reference="Luo et al., LaRE^2: Latent reconstruction error based method for diffusion-generated "
                                "image detection, CVPR 2024",
    fidelity="The error of the configured prior (of pixels in most profiles) in place of Stable Diffusion's latent "
             "one, and our backbone in place of CLIP.",
    build=Guided, needs="prior", represent=denoising_error, channels=lambda prior: 3 + prior.channels,
    parameters=("error_step", "error_draws"))


@torch.no_grad()
def reconstructed(prior, x, generator, options):
    """Images noised to `reconstruction_strength` of the schedule and denoised in `reconstruction_steps` DDIM steps.

    (B, 3, H, W) in [-1, 1] -> the same, on x's device. `generator` is a CPU torch.Generator.
    """
    last = max(1, round(options["reconstruction_strength"] * len(prior.alphas_cumprod)))
    places = torch.linspace(last, 0, min(options["reconstruction_steps"], last) + 1).round().long().tolist()
    z, alpha = prior.encode(x), float(prior.alphas_cumprod[last - 1])
    z = alpha**0.5 * z + (1 - alpha) ** 0.5 * torch.randn(z.shape, generator=generator).to(z)
    for a, b in itertools.pairwise(places):
        z = ddim_step(prior, z, a, b)
    if prior.vae is not None:
        z = z / prior.vae.config.scaling_factor + (prior.vae.config.shift_factor or 0)
        z = prior.vae.decode(z.to(prior.device)).sample.to(x.device)
    return z.clamp(-1, 1)


def contrastive(output, label, target, mask, options, prior=None):
    """Margin-based contrastive loss over all pairs of a batch, on features (B, D) scaled to unit length.

    Features of the same class attract each other; those of different classes are pushed apart up to a distance `margin`.

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


DRCT = Baseline(
    name="DRCT-like", reference="Chen et al., DRCT: Diffusion reconstruction contrastive training towards universal "
                                "detection of diffusion generated images, ICML 2024",
    fidelity="Reconstructions of real and generated images by the configured prior in place of Stable Diffusion's "
             "inpainting models; our backbone and augmentation.",
    build=plain_detector, needs="prior", parameters=("reconstruction_strength", "reconstruction_steps"),
    loss_parameters=("contrastive_weight", "margin"), extra_images=reconstructed, extra_loss=contrastive)


class Guide(nn.Module):
    """The plain detector, whose features (B, D, h, w) are mapped in training to hints (B, channels, h, w).

    The hints are the field `noise` of the Output, and are initialised to 0. `for_inference` returns the plain detector.
    """

    def __init__(self, detector, size, channels, seed=0):
        super().__init__()
        self.plain = plain_detector(detector, size, seed=seed)
        self.hint = nn.Conv2d(self.plain.classifier.in_features, channels, 1)
        nn.init.zeros_(self.hint.weight)
        nn.init.zeros_(self.hint.bias)

    def forward(self, x):
        if not self.training:
            return self.plain(x)
        features = self.plain.backbone(self.plain.front_end(x))[-1]
        pooled = features.mean((2, 3))
        return Output(self.plain.classifier(pooled).squeeze(1), self.hint(features), uniform_map(features), pooled)

    def for_inference(self):
        return self.plain


def guidance(output, label, target, mask, options, prior):
    """Loss of a frozen latent diffusion model that denoises the image and its photograph with the help of the hints.

    The photograph is the one that the image was made from, or the image itself if it is real. `target` (B, 2 C, H, W)
    holds the latents of the image and, in the second half of the channels, of the photograph. The hints (B, 2 C, h, w)
    are enlarged to that size and added to the noised latents. The loss is the mean squared error of the model's
    prediction. Steps and noise are drawn anew for each batch.
    """
    hints = F.interpolate(output.noise.float(), target.shape[2:])
    z, hint = (torch.cat(tensor.chunk(2, 1)) for tensor in (target.float(), hints))
    step = torch.randint(prior.steps, (len(z),))
    alpha = prior.alphas_cumprod[step].float().to(z.device)[:, None, None, None]
    noise = torch.randn(z.shape).to(z.device)
    noised = alpha.sqrt() * z + (1 - alpha).sqrt() * noise
    wanted = {"epsilon": noise, "sample": z, "v_prediction": alpha.sqrt() * noise - (1 - alpha).sqrt() * z}[prior.prediction_type]
    return options["guide_weight"] * (prior.predict(noised + hint, step.to(z.device)) - wanted).square().mean()


DIFFUSIONFAKE = Baseline(
    name="DiffusionFake-like", reference="Sun et al., DiffusionFake: enhancing generalization in deepfake detection via guided "
                                         "stable diffusion, NeurIPS 2024",
    fidelity="A small latent diffusion model in place of Stable Diffusion; linear maps of the features, added to the noised "
             "latents, in place of a ControlNet; source and target are the photograph and its regeneration; our backbone.",
    build=Guide, needs="latent", channels=lambda prior: 2 * prior.channels, target=lambda prior, x: prior.encode(x),
    loss_parameters=("guide_weight",), training=lambda options: {"flip": False}, extra_loss=guidance)
