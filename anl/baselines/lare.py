"""LaRE-like: the error of one denoising step guides the features, in space and in channels."""

import torch
from torch import nn

from anl import seeds
from anl.attention import GateAttention
from anl.baselines.dnf import load_prior, prior_hash
from anl.baselines.interface import Baseline
from anl.baselines.stored import Stored
from anl.detector import Detector, Output


def represent(settings, models):
    """x -> x and, behind it, the squared error of the noise predicted in noised x: (B, 6, H, W).

    The draws of noise are the same for every image, so that a score depends on the image alone.
    """
    prior = load_prior(models)
    step, draws = settings["error_step"], settings["error_draws"]

    def error(x):
        alpha = prior.alphas_cumprod[prior.check_step(step) - 1].float()
        found = torch.zeros_like(x)
        for draw in range(draws):
            noise = torch.randn(x.shape[1:], generator=seeds.torch_generator(0, "lare", draw)).expand_as(x)
            found += (prior.epsilon(alpha.sqrt() * x + (1 - alpha).sqrt() * noise, step) - noise).square()
        return torch.cat([x, found / draws], 1)

    return Stored(error, "lare", prior_hash(models), step, draws, prior.precision)


class Guided(nn.Module):
    """The plain detector on the image, its features refined by GateAttention reading the error."""

    def __init__(self, detector, size):
        super().__init__()
        self.plain = Detector(**detector, size=size, noise=False, attention="none")
        self.standardise = nn.BatchNorm2d(3, affine=False)
        self.gate = GateAttention(self.plain.classifier.in_features)

    def forward(self, inputs):
        x, error = inputs.chunk(2, 1)
        features = self.plain.backbone(self.plain.stem(x / 0.5))[-1]
        features, weights = self.gate(features, self.standardise(error.clamp(min=1e-6).log()))
        pooled = features.mean((2, 3))
        return Output(self.plain.classifier(pooled).squeeze(1), None, weights, pooled)


BASELINE = Baseline(
    title="LaRE-like", source="Luo et al., LaRE2: latent reconstruction error based method for diffusion-generated image "
                              "detection, CVPR 2024",
    differs="The error of our small pixel prior in place of Stable Diffusion's latent one, and our backbone in place of CLIP.",
    build=lambda detector, size, settings: Guided(detector, size), represent=represent, needs=("prior",))
