"""LaRE-like: the error of one denoising step guides the features, in space and in channels.

Reference: Luo et al., "LaRE^2: Latent reconstruction error based method for diffusion-generated image detection", CVPR
2024. Fidelity: see `BASELINE.fidelity`.
"""

import torch
from torch import nn

from anl import seeds
from anl.models.attention import GateAttention
from anl.models.baselines.interface import Baseline, enlarge, plain_detector
from anl.models.detector import Output, initialised_from


def represent(prior, options):
    """x -> x and the squared error of the noise predicted in noised x: (B, 3 + channels, H, W).

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
    """The plain detector on the image; `GateAttention` reading the log error refines its features. Starts neutral."""

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


BASELINE = Baseline(
    name="LaRE-like", reference="Luo et al., LaRE^2: Latent reconstruction error based method for diffusion-generated "
                                "image detection, CVPR 2024",
    fidelity="The error of the configured prior (of pixels in most profiles) in place of Stable Diffusion's latent "
             "one, and our backbone in place of CLIP.",
    build=Guided, needs="prior", represent=represent, channels=lambda prior: 3 + prior.channels,
    parameters=("error_step", "error_draws"))
