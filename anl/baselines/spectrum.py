"""A linear classifier on the log of the image's cosine spectrum."""

import math

import torch
from torch import nn

from anl.baselines.interface import Baseline
from anl.detector import Output
from anl.errors import UserError


def dct(x):
    """Orthonormal type-II cosine transform of the last two axes of x (..., N, N)."""
    n = x.shape[-1]
    place = torch.arange(n, dtype=x.dtype, device=x.device)
    matrix = torch.cos(math.pi / n * (place + 0.5) * place[:, None]) * math.sqrt(2 / n)
    matrix[0] /= math.sqrt(2)
    return matrix @ x @ matrix.T


class Spectrum(nn.Module):
    """log |DCT(x)|, standardised per coefficient over the training batches, then one linear layer."""

    def __init__(self, size):
        super().__init__()
        self.size = size
        self.standardise = nn.BatchNorm1d(3 * size * size, affine=False)
        self.classifier = nn.Linear(3 * size * size, 1)

    def forward(self, x):
        if x.shape[2:] != (self.size, self.size):
            raise UserError(f"the spectrum classifier takes crops of {self.size} pixels, not {x.shape[3]} x {x.shape[2]}")
        values = dct(x.float()).abs().add(1e-4).log().flatten(1)
        logit = self.classifier(self.standardise(values)).squeeze(1)
        return Output(logit, None, x.new_full((len(x), 1, 1), 1.0))


BASELINE = Baseline(
    title="Spectrum", source="Frank et al., Leveraging frequency analysis for deep fake image recognition, ICML 2020",
    differs="The linear classifier of the paper, trained by our loop in place of a ridge regression.",
    build=lambda detector, size, settings: Spectrum(size))
