"""Three fixed high-pass filters of steganalysis (Fridrich & Kodovsky, TIFS 2012; the choice is Zhou et al.'s, CVPR 2018)."""

import torch
from torch.nn import functional as F

CHANNELS = 9  # three colours, three filters
TRUNCATION = 3.0  # quantised residuals beyond this are clipped, as in the rich models
_LINE = [[0, 0, 0, 0, 0], [0, 0, 0, 0, 0], [0, 1, -2, 1, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0]]
_SQUARE3 = [[0, 0, 0, 0, 0], [0, -1, 2, -1, 0], [0, 2, -4, 2, 0], [0, -1, 2, -1, 0], [0, 0, 0, 0, 0]]
_SQUARE5 = [[-1, 2, -2, 2, -1], [2, -6, 8, -6, 2], [-2, 8, -12, 8, -2], [2, -6, 8, -6, 2], [-1, 2, -2, 2, -1]]
KERNELS = torch.tensor([_SQUARE3, _SQUARE5, _LINE]) / torch.tensor([4.0, 12.0, 2.0])[:, None, None]


def residuals(x):
    """(B, 3, H, W) in [-1, 1] -> (B, 9, H, W): each colour through each filter, in grey levels, cut at TRUNCATION."""
    kernels = KERNELS.to(x)[:, None].repeat(3, 1, 1, 1)  # three for each colour
    return F.conv2d(F.pad(x * 127.5, (2, 2, 2, 2), mode="reflect"), kernels, groups=3).clamp(-TRUNCATION, TRUNCATION)
