"""Two autoencoder families: a VAE (Kingma & Welling 2014) and a VQ model with an adversarial loss (Esser et al. 2021)."""

import torch
from diffusers import AutoencoderKL, VQModel
from torch import nn
from torch.nn import functional as F

# Lightness and two opponent colours, the colours three times as large: a short training in RGB learns lightness alone.
OPPONENT = torch.tensor([[1 / 3, 1 / 3, 1 / 3], [1.5, -1.5, 0.0], [0.75, 0.75, -1.5]])


def build_vae(channels, latent_channels):
    """AutoencoderKL that halves the resolution once per channel entry after the first.

    One normalisation group, here and below: more would wipe out the mean of each colour channel early on.
    """
    n = len(channels)
    return AutoencoderKL(block_out_channels=tuple(channels), latent_channels=latent_channels, layers_per_block=1,
                         norm_num_groups=1, mid_block_add_attention=False,
                         down_block_types=("DownEncoderBlock2D",) * n, up_block_types=("UpDecoderBlock2D",) * n)


def build_vq(channels, latent_channels, codes):
    """VQModel with one codebook of `codes` entries."""
    n = len(channels)
    return VQModel(block_out_channels=tuple(channels), latent_channels=latent_channels, layers_per_block=1,
                   norm_num_groups=1, mid_block_add_attention=False, num_vq_embeddings=codes,
                   down_block_types=("DownEncoderBlock2D",) * n, up_block_types=("UpDecoderBlock2D",) * n)


class PatchDiscriminator(nn.Sequential):
    """A small PatchGAN (Isola et al. 2017): (B, 3, H, W) -> logits (B, 1, H/4, W/4)."""

    def __init__(self, width=32):
        super().__init__(nn.Conv2d(3, width, 4, 2, 1), nn.LeakyReLU(0.2),
                         nn.Conv2d(width, 2 * width, 4, 2, 1), nn.GroupNorm(8, 2 * width), nn.LeakyReLU(0.2),
                         nn.Conv2d(2 * width, 2 * width, 3, 1, 1), nn.GroupNorm(8, 2 * width), nn.LeakyReLU(0.2),
                         nn.Conv2d(2 * width, 1, 3, 1, 1))


def to_opponent(x):
    """RGB (B, 3, H, W) -> the space both autoencoders work in."""
    return torch.einsum("oc,bchw->bohw", OPPONENT.to(x), x)


def from_opponent(x):
    """The inverse of `to_opponent`."""
    return torch.einsum("oc,bchw->bohw", OPPONENT.double().inverse().to(x), x)


def reconstruction_loss(x_hat, x):
    """L1 on the image, on what a 3 x 3 box filter removes (twice as heavy) and on means of 4 x 4 pixels (four times).

    The second keeps edges that L1 alone would blur, the third colour that a short training would lose.
    """
    error = x_hat - x
    return error.abs().mean() + 2 * _high_pass(error).abs().mean() + 4 * F.avg_pool2d(error, 4).abs().mean()


def _high_pass(x):
    return x - F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), 3, 1)


def vae_loss(vae, x, generator, kl_weight=1e-6, autocast=True):
    """Reconstruction plus a light KL term; x (B, 3, H, W) in [-1, 1]."""
    x = to_opponent(x)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        posterior = vae.encode(x.contiguous(memory_format=torch.channels_last)).latent_dist
        mean, std = posterior.mean.float(), posterior.std.float()
        latent = mean + std * torch.randn(mean.shape, generator=generator)
        x_hat = vae.decode(latent).sample
    kl = 0.5 * (mean.square() + std.square() - 1 - 2 * std.clamp(min=1e-6).log()).sum(dim=(1, 2, 3)).mean()
    return reconstruction_loss(x_hat.float(), x) + kl_weight * kl


def vq_loss(vq, discriminator, x, step, *, quantise_from, adversarial_from, adversarial_weight=0.1, autocast=True):
    """One loss for both players, with the discriminator frozen in the second: the reconstruction is pushed towards what the hinge
    discriminator takes for real. Before `quantise_from` the codebook is bypassed; at that step it is filled with
    latents of the batch, so that no code is dead from the start.
    """
    x = to_opponent(x)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        latent = vq.encode(x.contiguous(memory_format=torch.channels_last)).latents.float()
        if step == quantise_from:
            with torch.no_grad():
                flat = latent.movedim(1, -1).reshape(-1, latent.shape[1])
                codes = vq.quantize.embedding.weight
                codes.copy_(flat[torch.linspace(0, len(flat) - 1, len(codes)).long()])
        if step < quantise_from:
            quantised, commitment = latent, latent.new_zeros(())
        else:
            with torch.autocast("cpu", enabled=False):
                quantised, commitment, _ = vq.quantize(latent)
        x_hat = vq.decoder(vq.post_quant_conv(quantised)).float()
        loss = reconstruction_loss(x_hat, x) + commitment
        if step < adversarial_from:
            return loss
        real, fake = discriminator(x).float(), discriminator(x_hat.detach()).float()
        frozen = {name: p.detach() for name, p in discriminator.named_parameters()}
        fooled = torch.func.functional_call(discriminator, frozen, (x_hat,)).float()
    hinge = F.relu(1 - real).mean() + F.relu(1 + fake).mean()
    return loss + hinge - adversarial_weight * fooled.mean()


@torch.no_grad()
def reconstruct(model, x):
    """Encode and decode x (B, 3, H, W) in full precision; the VAE takes its posterior's mean."""
    x = to_opponent(x)
    if isinstance(model, AutoencoderKL):
        return from_opponent(model.decode(model.encode(x).latent_dist.mean).sample)
    return from_opponent(model.decode(model.encode(x).latents).sample)


@torch.no_grad()
def encode(vae, x):
    """Latents of unit variance: the VAE's posterior mean times its scaling factor."""
    with torch.autocast("cpu", torch.bfloat16):
        mean = vae.encode(to_opponent(x).contiguous(memory_format=torch.channels_last)).latent_dist.mean
    return mean.float() * vae.config.scaling_factor


@torch.no_grad()
def decode(vae, latent):
    """The inverse of `encode`, in full precision."""
    return from_opponent(vae.decode(latent / vae.config.scaling_factor).sample)
