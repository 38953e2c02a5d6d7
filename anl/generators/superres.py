"""Learned super-resolution: a crop is made smaller and a network brings it back, guessing the octaves that were lost.

A residual network of the kind of EDSR (Lim et al., CVPRW 2017) adds detail to a bicubic enlargement. L1 alone would leave
it softer than photographs; a loss on local texture statistics (after Sajjadi et al., ICCV 2017) asks for their strength.
Scale 4 here is scale 2 at the benchmark's own size: what scale 2 loses, the halving takes away from real and fake alike.
"""

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn
from torch.nn import functional as F


class SuperResolver(ModelMixin, ConfigMixin):
    """(B, 3, h, w) in [-1, 1] -> (B, 3, scale h, scale w). Starts as the bicubic enlargement: its last layer is nought."""

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
    """Anti-aliased bicubic downsampling by `scale`; x (B, 3, H, W), H and W its multiples."""
    return F.interpolate(x, scale_factor=1 / scale, mode="bicubic", antialias=True, align_corners=False)


def enlarge(x, scale):
    """Bicubic enlargement by `scale`."""
    return F.interpolate(x, scale_factor=scale, mode="bicubic", align_corners=False)


def superres_loss(model, x, *, texture_weight, autocast=True):
    """L1, L1 of means of 4 x 4 pixels (four times as heavy) and `texture_loss`; x (B, 3, H, W) in [-1, 1] is what is to
    be brought back."""
    small = shrink(x, model.config.scale)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        x_hat = model(small.contiguous(memory_format=torch.channels_last)).float()
    error = x_hat - x
    return error.abs().mean() + 4 * F.avg_pool2d(error, 4).abs().mean() + texture_weight * texture_loss(x_hat, x)


def texture_loss(x_hat, x, octaves=2, cell=8):
    """How far the strength of the texture of x_hat is from that of x, (B, 3, H, W): per octave, the mean difference of
    root mean squares over cells of `cell` x `cell` pixels. It asks for as much detail, not for the same."""
    total = x.new_zeros(())
    for _ in range(octaves):
        strengths, halved = [], []
        for image in (x_hat, x):
            small = F.avg_pool2d(image, 2)
            band = image - F.interpolate(small, scale_factor=2, mode="bilinear")
            strengths.append((F.avg_pool2d(band.square().mean(1, keepdim=True), cell) + 1e-5).sqrt())
            halved.append(small)
        total = total + (strengths[0] - strengths[1]).abs().mean()
        x_hat, x = halved
    return total


@torch.no_grad()
def bring_back(model, x):
    """Make x (B, 3, H, W) smaller and bring it back, in full precision."""
    return model(shrink(x, model.config.scale))
