"""TAEF2, the tiny autoencoder of FLUX.2 (madebyollin/taesd): a published generator, never trained here."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from anl.io import UserError, reason

LATENT_CHANNELS = 32


class Block(nn.Module):
    """ReLU(conv(x) + x), three convolutions; at the lowest resolution a normalised 1 x 1 branch is added first."""

    def __init__(self, normalised, width=64):
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.ReLU(),
                                  nn.Conv2d(width, width, 3, padding=1), nn.ReLU(),
                                  nn.Conv2d(width, width, 3, padding=1))
        self.pool = nn.Sequential(nn.Conv2d(width, 4 * width, 1, bias=False), nn.GroupNorm(4, 4 * width), nn.ReLU(),
                                  nn.Conv2d(4 * width, width, 1, bias=False)) if normalised else None

    def forward(self, x):
        x = x if self.pool is None else x + self.pool(x)
        return torch.relu(self.conv(x) + x)


class Clamp(nn.Module):
    """Soft limit of the latents at 3 in absolute value."""

    def forward(self, z):
        return torch.tanh(z / 3) * 3


class TAEF2(nn.Module):
    """Image (B, 3, H, W) in [-1, 1], H and W multiples of 8 -> its reconstruction from 32 latent channels."""

    def __init__(self):
        super().__init__()
        encoder = [nn.Conv2d(3, 64, 3, padding=1), Block(False)]
        decoder = [Clamp(), nn.Conv2d(LATENT_CHANNELS, 64, 3, padding=1), nn.ReLU()]
        for level in range(3):
            encoder += [nn.Conv2d(64, 64, 3, 2, 1, bias=False), *(Block(level == 2) for _ in range(3))]
            decoder += [*(Block(level == 0) for _ in range(3)), nn.Upsample(scale_factor=2),
                        nn.Conv2d(64, 64, 3, padding=1, bias=False)]
        self.encoder = nn.Sequential(*encoder, nn.Conv2d(64, LATENT_CHANNELS, 3, padding=1))
        self.decoder = nn.Sequential(*decoder, Block(False), nn.Conv2d(64, 3, 3, padding=1))

    def forward(self, x):
        return self.decoder(self.encoder((x + 1) / 2)) * 2 - 1  # the network's images are in [0, 1]


def load_taef2(folder):
    """The autoencoder, in eval mode and float32, of a folder with `*encoder.safetensors` and `*decoder.safetensors`.

    Raises UserError if a file is missing or damaged, or its weights are not TAEF2's.
    """
    model = TAEF2()
    for part in ("encoder", "decoder"):
        paths = sorted(Path(folder).glob(f"*{part}.safetensors"))
        if len(paths) != 1:
            raise UserError(f"{folder} holds {len(paths)} files *{part}.safetensors and must hold one; get taef2's "
                            "files from madebyollin/taesd")
        try:
            getattr(model, part).load_state_dict({key: value.float() for key, value in load_file(paths[0]).items()})
        except Exception as problem:  # safetensors' and torch's errors
            raise UserError(f"{paths[0]} does not hold TAEF2's {part} ({reason(problem)}); get it again") from None
    return model.eval()
