"""Front ends: the full-resolution stem of a detector, what it reads, and what it hands to the backbone.

All have the same interface. `image` is that of the method, and `backbone` that of the method with pretrained
backbones. `residual` and `noise` are two interpretations of the paper's "anl+".
"""

import torch
from torch import nn
from torch.nn import functional as F

from anl.io import pick

__all__ = ["FRONT_ENDS", "build_front_end", "conv", "residuals", "standardise"]

TRUNCATION = 3.0       # quantised residuals beyond this are clipped, as in the rich models
IMAGE_DEVIATION = 0.5  # standard deviation of photographs in [-1, 1]

_LINE = [[0, 0, 0, 0, 0], [0, 0, 0, 0, 0], [0, 1, -2, 1, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0]]
_SQUARE3 = [[0, 0, 0, 0, 0], [0, -1, 2, -1, 0], [0, 2, -4, 2, 0], [0, -1, 2, -1, 0], [0, 0, 0, 0, 0]]
_SQUARE5 = [[-1, 2, -2, 2, -1], [2, -6, 8, -6, 2], [-2, 8, -12, 8, -2], [2, -6, 8, -6, 2], [-1, 2, -2, 2, -1]]
_SCALES = (4.0, 12.0, 2.0)


class ImageFrontEnd(nn.Module):
    """The stem reads the image; the backbone reads the stem of `width` channels.

    The stem has no stride: at t = 1 the noise target has no energy left after a stride of 4.
    """

    channels = 3
    reads_noise = False  # whether the backbone reads the predicted noise
    stemless = False     # whether the noise is predicted from an early stage of the backbone

    def __init__(self, width, noise_channels=3):
        super().__init__()
        self.backbone_channels = width  # input channels of the backbone
        self.stem = nn.Sequential(conv(self.channels, width), conv(width, width))

    def forward(self, x):
        """Image (B, 3, H, W) in [-1, 1] -> stem features (B, width, H, W)."""
        return self.stem(x / IMAGE_DEVIATION)

    def backbone_input(self, h, noise, x):
        """Stem features, predicted noise and image -> what the backbone reads, (B, backbone_channels, H, W)."""
        return h


class BackboneFrontEnd(nn.Module):
    """No stem: the backbone reads the image, and the noise is predicted from the features of one of its early stages.

    A pretrained backbone starts with the input that it was trained on, and learning the noise changes its own first layers.
    Colours are in [-1, 1], as timm's `tf_` models expect; others expect another scale and shift, which their first batch
    norm absorbs in training.
    """

    reads_noise, stemless, backbone_channels = False, True, 3

    def __init__(self, width=0, noise_channels=3):
        super().__init__()

    def forward(self, x):
        """None: there is no stem."""

    def backbone_input(self, h, noise, x):
        return x


class ResidualFrontEnd(ImageFrontEnd):
    """The stem reads fixed high-pass residuals of the image, standardised over the training batches."""

    channels = 9  # three colours x three filters

    def __init__(self, width, noise_channels=3):
        super().__init__(width, noise_channels)
        self.standardise = standardise(self.channels)

    def forward(self, x):
        return self.stem(self.standardise(residuals(x)))


class NoiseFrontEnd(ResidualFrontEnd):
    """The stem reads residuals; the backbone reads the predicted noise and nothing else.

    The noise must have the image's resolution.
    """

    reads_noise = True

    def __init__(self, width, noise_channels=3):
        super().__init__(width, noise_channels)
        self.reader = nn.Sequential(standardise(noise_channels), conv(noise_channels, width), conv(width, width))

    def backbone_input(self, h, noise, x):
        return self.reader(noise)


FRONT_ENDS = {"image": ImageFrontEnd, "backbone": BackboneFrontEnd, "residual": ResidualFrontEnd, "noise": NoiseFrontEnd}


def build_front_end(name, width, noise_channels=3):
    """Build the front end called `name` (a key of `FRONT_ENDS`). Raises UserError on an unknown name."""
    return FRONT_ENDS[pick("method.front_end", name, FRONT_ENDS)](width, noise_channels)


def residuals(x):
    """High-pass residuals of images (B, 3, H, W) in [-1, 1] by three fixed filters of steganalysis.

    Returns
    -------
    Tensor (B, 9, H, W)
        Each colour through each filter, in grey levels, clipped to [-3, 3]. The border is mirrored.

    References
    ----------
    Fridrich and Kodovsky, "Rich models for steganalysis of digital images", TIFS 2012. The choice of three filters is
    that of Zhou et al., "Learning rich features for image manipulation detection", CVPR 2018.
    """
    kernels = x.new_tensor([_SQUARE3, _SQUARE5, _LINE]) / x.new_tensor(_SCALES)[:, None, None]
    kernels = kernels[:, None].repeat(3, 1, 1, 1)  # (9, 1, 5, 5): three filters for each colour
    with torch.autocast(x.device.type, enabled=False):  # in half precision the filters would not sum to zero
        return F.conv2d(_mirror(_mirror(x * 127.5, 2), 3), kernels, groups=3).clamp(-TRUNCATION, TRUNCATION)


def _mirror(x, axis, pad=2):
    """Reflection padding along one axis from slices, whose backward pass is deterministic on CUDA."""
    size = x.shape[axis]
    first, last = x.narrow(axis, 1, pad).flip(axis), x.narrow(axis, size - 1 - pad, pad).flip(axis)
    return torch.cat([first, x, last], axis)


def standardise(channels):
    """Batch norm without learned parameters; the small eps is for residuals, whose scales differ by orders of magnitude."""
    return nn.BatchNorm2d(channels, eps=1e-10, affine=False)


def conv(inputs, outputs):
    """A 3 x 3 convolution without stride, batch norm, ReLU."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())
