"""Learned super-resolution: a crop is made smaller and a network brings it back, guessing the octaves that were lost.

A residual network of the kind of EDSR (Lim et al., CVPRW 2017) adds detail to a bicubic enlargement; an adversarial loss
(Ledig et al., CVPR 2017) keeps its guesses from being softer than photographs.
"""

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn
from torch.nn import functional as F

from anl.generators.autoencoders import hinge_losses, reconstruction_loss


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


def superres_loss(model, discriminator, x, *, adversarial=True, adversarial_weight=0.1, autocast=True):
    """One loss for both players, as in autoencoders.vq_loss; x (B, 3, H, W) in [-1, 1] is what is to be brought back.

    adversarial: False leaves the discriminator out.
    """
    small = shrink(x, model.config.scale)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        x_hat = model(small.contiguous(memory_format=torch.channels_last)).float()
        loss = reconstruction_loss(x_hat, x)
        if not adversarial:
            return loss
        hinge, fooled = hinge_losses(discriminator, x, x_hat)
    return loss + hinge - adversarial_weight * fooled


@torch.no_grad()
def bring_back(model, x):
    """Make x (B, 3, H, W) smaller and bring it back, in full precision."""
    return model(shrink(x, model.config.scale))
