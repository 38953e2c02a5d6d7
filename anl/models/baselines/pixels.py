"""Baselines that need no frozen model: plain, blur_jpeg, find, srm, npr and spectrum."""

import functools
import math

import torch
from torch import nn

from anl.io import UserError
from anl.models.baselines.interface import Baseline, Classifier, plain_detector
from anl.models.detector import Output, initialised_from

PLAIN = Baseline(
    name="Plain", reference="The stem, backbone and linear layer of this project's own detector",
    fidelity="The same network, initial weights and training as the method's, without noise learning.",
    build=plain_detector)

SRM = Baseline(
    name="SRM", reference="Fridrich and Kodovsky, Rich models for steganalysis of digital images, TIFS 2012; three "
                          "filters after Zhou et al., Learning rich features for image manipulation detection, CVPR "
                          "2018",
    fidelity="Our stem and backbone at full resolution; the published detector of these filters is for splicing.",
    build=functools.partial(plain_detector, front_end="residual"))


def strong_augmentation(options):
    """Training settings: blur of up to `strong_blur` pixels, or JPEG down to quality `strong_jpeg`."""
    return {"augment_probability": options["strong_probability"], "augmentations": ["blur", "jpeg"], "augment_most": 1,
            "blur_radius": [0.0, options["strong_blur"]], "jpeg_quality": [options["strong_jpeg"], 100]}


BLUR_JPEG = Baseline(
    name="Blur + JPEG",
    reference="Wang et al., CNN-generated images are surprisingly easy to spot... for now, CVPR 2020",
    fidelity="One of blur (radius up to 3) and JPEG (quality 30 to 100) is drawn, not both; the two images of a pair "
             "are treated alike; our backbone on full-resolution crops, not a pre-trained ResNet-50.",
    build=plain_detector, parameters=("strong_probability", "strong_blur", "strong_jpeg"), training=strong_augmentation)


def noised(frozen, x, generator, options):
    """Images with Gaussian noise of `noise_deviation` grey levels: (B, 3, H, W) in [-1, 1] -> the same."""
    noise = torch.randn(x.shape, generator=generator).to(x)
    return (x + noise * options["noise_deviation"] / 127.5).clamp(-1, 1)


FIND = Baseline(
    name="FIND-like", reference="FIND, arXiv 2603.14220, 2026",
    fidelity="Known to us from its abstract: images with Gaussian noise are labelled as generated, without any "
             "diffusion model. Here they join the generated images, one for each image; strength and share are ours; "
             "our backbone.",
    build=plain_detector, parameters=("noise_deviation",), extra_images=noised)


def upsampling_residual(x):
    """x - up(down(x)), both nearest neighbour with factor 2, times 2/3 as in the authors' code; (B, C, H, W)."""
    if x.shape[2] % 2 or x.shape[3] % 2:
        raise UserError(f"NPR cannot read images of {x.shape[3]} x {x.shape[2]} pixels; use crops with even sides")
    first = x[..., ::2, ::2].repeat_interleave(2, 2).repeat_interleave(2, 3)
    return (x - first) * 2 / 3


NPR = Baseline(
    name="NPR", reference="Tan et al., Rethinking the up-sampling operations in CNN-based generative network for "
                          "generalizable deepfake detection, CVPR 2024",
    fidelity="The published residual, standardised; our stem and backbone in place of its shortened ResNet-50.",
    build=lambda detector, size, channels, seed: Classifier(detector, size, channels, seed, upsampling_residual))


def dct(x):
    """Orthonormal type-II cosine transform of the last two axes of x (..., N, N)."""
    n = x.shape[-1]
    place = torch.arange(n, dtype=x.dtype, device=x.device)
    matrix = torch.cos(math.pi / n * (place + 0.5) * place[:, None]) * math.sqrt(2 / n)
    matrix[0] /= math.sqrt(2)
    return matrix @ x @ matrix.T


class Spectrum(nn.Module):
    """log |DCT(x)|, each coefficient standardised over the training batches, then one linear layer."""

    def __init__(self, detector, size, channels=3, seed=0):
        super().__init__()
        self.size = size
        self.standardise = nn.BatchNorm1d(channels * size * size, affine=False)
        with initialised_from(seed, "classifier"):
            self.classifier = nn.Linear(channels * size * size, 1)

    def forward(self, x):
        if x.shape[2:] != (self.size, self.size):
            raise UserError(f"the spectrum classifier cannot read images of {x.shape[3]} x {x.shape[2]} pixels; use "
                            f"crops of {self.size} pixels")
        with torch.autocast(x.device.type, enabled=False):  # half precision is too coarse for the high frequencies
            values = self.standardise(dct(x.float()).abs().add(1e-4).log().flatten(1))
        return Output(self.classifier(values).squeeze(1), None, x.new_ones(len(x), 1, 1), values)


SPECTRUM = Baseline(
    name="Spectrum", reference="Frank et al., Leveraging frequency analysis for deep fake image recognition, ICML 2020",
    fidelity="The linear classifier of the paper, trained by our loop in place of a ridge regression, on crops.",
    build=Spectrum)
