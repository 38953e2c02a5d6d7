"""Unconditional generators of small images: the decoder of a GAN or of a VAE, with the losses that train it.

Their images only test detectors that learned from other generators.
"""

import itertools
import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from anl.io import UserError, atomic_file, reason
from anl.models.generators.autoencoders import adversarial_loss
from anl.models.generators.diffusion import draw_noise
from anl.models.precision import autocast

WEIGHTS = "model.safetensors"


class Decoder(nn.Module):
    """z (B, Z) -> image (B, 3, size, size) in [-1, 1]: transposed convolutions from 4 x 4 (DCGAN: Radford et al. 2016).

    `channels` go from the finest grid to the coarsest, one entry for each doubling above 4 x 4; otherwise UserError.
    """

    def __init__(self, channels, latent_channels, size):
        super().__init__()
        if size != 4 * 2 ** len(channels):
            raise UserError(f"images of {size} pixels need {max(0, size.bit_length() - 3)} entries in `channels`, one "
                            f"for each doubling above 4 x 4; there are {len(channels)}")
        self.settings = {"channels": list(channels), "latent_channels": latent_channels, "size": size}
        widths = [channels[-1], *reversed(channels)]
        self.start = nn.Linear(latent_channels, widths[0] * 16)
        self.blocks = nn.ModuleList(nn.Sequential(
            nn.ConvTranspose2d(before, after, 4, 2, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU())
            for before, after in itertools.pairwise(widths))
        self.end = nn.Conv2d(widths[-1], 3, 3, 1, 1)

    def forward(self, z):
        h = self.start(z).unflatten(1, (-1, 4, 4))  # (B, Z) -> (B, C, 4, 4)
        for block in self.blocks:
            h = block(h)
        return torch.tanh(self.end(h))


def build_encoder(channels, outputs, size, spectral=False):
    """Image (B, 3, size, size) -> (B, outputs): convolutions that halve down to 4 x 4.

    spectral: spectral instead of batch normalisation, for a discriminator (Miyato et al., ICLR 2018).
    """
    norm = nn.utils.parametrizations.spectral_norm if spectral else lambda layer: layer
    layers, before = [], 3
    for after in channels:
        layers += [norm(nn.Conv2d(before, after, 4, 2, 1)), nn.Identity() if spectral else nn.BatchNorm2d(after),
                   nn.LeakyReLU(0.2)]
        before = after
    return nn.Sequential(*layers, nn.Flatten(), norm(nn.Linear(before * (size >> len(channels)) ** 2, outputs)))


def elbo_loss(decoder, encoder, x, generator, kl_weight=1.0, precision="bf16"):
    """Negative evidence lower bound for each pixel value (Kingma & Welling 2014); x (B, 3, H, W) in [-1, 1].

    The likelihood is Gaussian with a standard deviation of 0.25.
    """
    with autocast(x.device, precision):
        mean, log_variance = encoder(x.contiguous(memory_format=torch.channels_last)).float().chunk(2, 1)
        log_variance = log_variance.clamp(-8, 8)
        z = mean + (0.5 * log_variance).exp() * draw_noise(mean.shape, generator, x.device)
        error = 0.5 * ((decoder(z).float() - x) / 0.25).square().sum((1, 2, 3))
    kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1)
    return ((error + kl_weight * kl) / x[0].numel()).mean()


def gan_loss(decoder, discriminator, x, generator, precision="bf16"):
    """`adversarial_loss` of both players on images x (B, 3, H, W) and as many generated ones."""
    with autocast(x.device, precision):
        fake = decoder(draw_noise((len(x), decoder.start.in_features), generator, x.device))
        return adversarial_loss(discriminator, x.contiguous(memory_format=torch.channels_last), fake)


@torch.no_grad()
def refresh_statistics(decoder, generator, batches=50, batch_size=64):
    """Recompute the running batch statistics of a decoder whose weights were averaged; returns it in eval mode."""
    decoder.train()
    for _ in range(batches):
        decoder(draw_noise((batch_size, decoder.start.in_features), generator, decoder.start.weight.device))
    return decoder.eval()


@torch.no_grad()
def decode_noise(decoder, count, generator):
    """`count` images (count, 3, size, size) in [-1, 1] from noise."""
    return decoder(draw_noise((count, decoder.start.in_features), generator, decoder.start.weight.device))


def save_decoder(decoder, folder):
    """Write the weights to `folder`/model.safetensors, with the settings as its metadata."""
    with atomic_file(Path(folder) / WEIGHTS) as temporary:
        save_file({key: value.contiguous() for key, value in decoder.state_dict().items()}, temporary,
                  metadata={"decoder": json.dumps(decoder.settings, sort_keys=True)})


def load_decoder(folder):
    """A saved Decoder in eval mode. Raises UserError on a missing, truncated or foreign file."""
    path = Path(folder) / WEIGHTS
    try:
        with safe_open(path, framework="pt") as file:
            decoder = Decoder(**json.loads(file.metadata()["decoder"]))
            decoder.load_state_dict({key: file.get_tensor(key) for key in file.keys()})  # noqa: SIM118
    except Exception as problem:  # the file's, its metadata's or the network's
        raise UserError(f"{path} holds no generator ({reason(problem)}); get it with `dvc pull` or make it with "
                        f"`anl make generator {Path(folder).name}`") from None
    return decoder.eval()
