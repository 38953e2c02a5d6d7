"""A linear classifier on the log of the image's cosine spectrum.

Reference: Frank et al., "Leveraging frequency analysis for deep fake image recognition", ICML 2020.
Fidelity: see `BASELINE.fidelity`.
"""

import math

import torch
from torch import nn

from anl.io import UserError
from anl.models.baselines.interface import Baseline
from anl.models.detector import Output, initialised_from


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
        with torch.autocast(x.device.type, enabled=False):  # half precision would drown the high frequencies
            values = self.standardise(dct(x.float()).abs().add(1e-4).log().flatten(1))
        return Output(self.classifier(values).squeeze(1), None, x.new_ones(len(x), 1, 1), values)


BASELINE = Baseline(
    name="Spectrum", reference="Frank et al., Leveraging frequency analysis for deep fake image recognition, ICML 2020",
    fidelity="The linear classifier of the paper, trained by our loop in place of a ridge regression, on crops.",
    build=Spectrum)
