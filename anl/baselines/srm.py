"""A front end of three fixed high-pass filters from steganalysis, before the plain backbone."""

import torch
from torch.nn import functional as F

from anl.baselines.interface import Baseline, Classifier

TRUNCATION = 3.0  # quantised residuals beyond this are clipped, as in the rich models
_LINE = [[0, 0, 0, 0, 0], [0, 0, 0, 0, 0], [0, 1, -2, 1, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0]]
_SQUARE3 = [[0, 0, 0, 0, 0], [0, -1, 2, -1, 0], [0, 2, -4, 2, 0], [0, -1, 2, -1, 0], [0, 0, 0, 0, 0]]
_SQUARE5 = [[-1, 2, -2, 2, -1], [2, -6, 8, -6, 2], [-2, 8, -12, 8, -2], [2, -6, 8, -6, 2], [-1, 2, -2, 2, -1]]
KERNELS = torch.tensor([_SQUARE3, _SQUARE5, _LINE]) / torch.tensor([4.0, 12.0, 2.0])[:, None, None]


def residuals(x):
    """(B, 3, H, W) in [-1, 1] -> (B, 9, H, W): each colour through each filter, in grey levels, cut at TRUNCATION."""
    kernels = KERNELS.to(x)[:, None].repeat(3, 1, 1, 1)  # three for each colour
    return F.conv2d(F.pad(x * 127.5, (2, 2, 2, 2), mode="reflect"), kernels, groups=3).clamp(-TRUNCATION, TRUNCATION)


BASELINE = Baseline(
    title="SRM", source="Fridrich & Kodovsky, Rich models for steganalysis, TIFS 2012; three filters after Zhou et al., "
                        "Learning rich features for image manipulation detection, CVPR 2018",
    differs="Our stem and backbone; the published detector is for splicing.",
    build=lambda detector, size, settings: Classifier(detector, size, 9, residuals))
