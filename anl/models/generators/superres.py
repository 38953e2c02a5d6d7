"""Learned super-resolution: an image is downsampled, and a network restores it and synthesises the lost detail.

A residual network after EDSR (Lim et al., CVPRW 2017) adds detail to a bicubic enlargement. L1 alone would leave it
softer than photographs; a loss on local texture statistics (after Sajjadi et al., ICCV 2017) restores the strength of
the detail. Scale 4 here is scale 2 at the benchmark's size: the benchmark halves real and generated images alike.
"""

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn
from torch.nn import functional as F

from anl.models.precision import autocast


class SuperResolver(ModelMixin, ConfigMixin):
    """(B, 3, h, w) in [-1, 1] -> (B, 3, scale h, scale w); starts as the bicubic enlargement (last layer zero)."""

    @register_to_config
    def __init__(self, channels=32, blocks=8, scale=2):
        super().__init__()
        self.first = nn.Conv2d(3, channels, 3, padding=1)
        self.body = nn.ModuleList(nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(),
                                                nn.Conv2d(channels, channels, 3, padding=1)) for _ in range(blocks))
        self.last = nn.Sequential(nn.Conv2d(channels, 8 * scale**2, 3, padding=1), nn.PixelShuffle(scale), nn.ReLU(),
                                  nn.Conv2d(8, 3, 3, padding=1))
        nn.init.zeros_(self.last[-1].weight)
        nn.init.zeros_(self.last[-1].bias)

    def forward(self, small):
        features = start = self.first(small)
        for block in self.body:
            features = features + block(features)
        return enlarge(small, self.config.scale) + self.last(start + features)


def shrink(x, scale):
    """Anti-aliased bicubic downsampling of x (B, 3, H, W) by `scale`, a divisor of H and W."""
    return F.interpolate(x, scale_factor=1 / scale, mode="bicubic", antialias=True, align_corners=False)


def enlarge(x, scale):
    """Bicubic enlargement by `scale`; x needs no gradient, which would not be deterministic on CUDA."""
    return F.interpolate(x.detach(), scale_factor=scale, mode="bicubic", align_corners=False)


def superres_loss(model, x, texture_weight, precision="bf16"):
    """L1, L1 of means of 4 x 4 pixels (weight 4) and `texture_loss` of the restored x (B, 3, H, W), [-1, 1]."""
    small = shrink(x, model.config.scale)
    with autocast(x.device, precision):
        x_hat = model(small.contiguous(memory_format=torch.channels_last)).float()
    error = x_hat - x
    return error.abs().mean() + 4 * F.avg_pool2d(error, 4).abs().mean() + texture_weight * texture_loss(x_hat, x)


def texture_loss(x_hat, x, octaves=2, cell=8):
    """Difference in texture strength between two images (B, 3, H, W): the amount of detail counts, not its position.

    For each octave, the mean absolute difference of root mean squares over cells of `cell` x `cell` pixels.
    """
    total = x.new_zeros(())
    for _ in range(octaves):
        strengths, halved = [], []
        for image in (x_hat, x):
            small = F.avg_pool2d(image, 2)
            band = image - double(small)
            strengths.append((F.avg_pool2d(band.square().mean(1, keepdim=True), cell) + 1e-5).sqrt())
            halved.append(small)
        total = total + (strengths[0] - strengths[1]).abs().mean()
        x_hat, x = halved
    return total


def double(x):
    """Bilinear enlargement of x (B, C, h, w) by 2, as F.interpolate, with a deterministic gradient on CUDA."""
    for dim in (2, 3):
        n = x.shape[dim]
        before = torch.cat([x.narrow(dim, 0, 1), x.narrow(dim, 0, n - 1)], dim)
        after = torch.cat([x.narrow(dim, 1, n - 1), x.narrow(dim, n - 1, 1)], dim)
        x = torch.stack([0.25 * before + 0.75 * x, 0.75 * x + 0.25 * after], dim + 1).flatten(dim, dim + 1)
    return x


@torch.no_grad()
def restore(model, x):
    """Downsample x (B, 3, H, W) and restore it, in float32."""
    return model(shrink(x, model.config.scale))
