"""Two autoencoder families: a VAE (Kingma & Welling 2014) and a VQ model with an adversarial loss (Esser et al. 2021)."""

import functools

import torch
from diffusers import AutoencoderKL, VQModel
from diffusers.models.resnet import ResnetBlock2D
from sklearn.cluster import MiniBatchKMeans
from torch import nn
from torch.nn import functional as F

NORM_GROUPS = 8


def _without_last_norms(base):
    """`base` without the normalisation and activation before the last convolution of its encoder and its decoder.

    diffusers normalises there over the whole crop, which takes away how strong the crop's colours and contrast are;
    a short training never gets them back, and orange turns olive. Saved and loaded as diffusers does it.
    """
    class Autoencoder(base):
        @functools.wraps(base.__init__)  # diffusers reads the configuration's names from the signature
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            for half in (self.encoder, self.decoder):
                half.conv_norm_out = half.conv_act = nn.Identity()
            _start_as_pass_through(self)

    Autoencoder.__name__ = Autoencoder.__qualname__ = f"Scaled{base.__name__}"
    return Autoencoder


ScaledAutoencoderKL = _without_last_norms(AutoencoderKL)
ScaledVQModel = _without_last_norms(VQModel)


def _start_as_pass_through(model):
    """Initialise an autoencoder so that every block passes its first channels on: it starts as plain subsampling.

    From diffusers' own start the signal fades in each convolution and a short training learns a blurred grey image.
    """
    for name, module in model.named_modules():
        if isinstance(module, ResnetBlock2D):
            nn.init.zeros_(module.conv2.weight)
            nn.init.zeros_(module.conv2.bias)
        elif isinstance(module, nn.Conv2d) and not name.endswith(("conv1", "conv2")):
            fresh = module.weight.detach() * 0.3
            nn.init.dirac_(module.weight)
            with torch.no_grad():
                module.weight.add_(fresh)
            nn.init.zeros_(module.bias)


def build_vae(channels, latent_channels):
    """ScaledAutoencoderKL that halves the resolution once per channel entry after the first."""
    n = len(channels)
    return ScaledAutoencoderKL(block_out_channels=tuple(channels), latent_channels=latent_channels, layers_per_block=1,
                               norm_num_groups=NORM_GROUPS, mid_block_add_attention=False,
                               down_block_types=("DownEncoderBlock2D",) * n, up_block_types=("UpDecoderBlock2D",) * n)


def build_vq(channels, latent_channels, codes):
    """ScaledVQModel with one codebook of `codes` entries."""
    n = len(channels)
    return ScaledVQModel(block_out_channels=tuple(channels), latent_channels=latent_channels, layers_per_block=1,
                         norm_num_groups=NORM_GROUPS, mid_block_add_attention=False, num_vq_embeddings=codes,
                         down_block_types=("DownEncoderBlock2D",) * n, up_block_types=("UpDecoderBlock2D",) * n)


class PatchDiscriminator(nn.Sequential):
    """A small PatchGAN (Isola et al. 2017): (B, 3, H, W) -> logits (B, 1, H/4, W/4)."""

    def __init__(self, width=32):
        super().__init__(nn.Conv2d(3, width, 4, 2, 1), nn.LeakyReLU(0.2),
                         nn.Conv2d(width, 2 * width, 4, 2, 1), nn.GroupNorm(8, 2 * width), nn.LeakyReLU(0.2),
                         nn.Conv2d(2 * width, 2 * width, 3, 1, 1), nn.GroupNorm(8, 2 * width), nn.LeakyReLU(0.2),
                         nn.Conv2d(2 * width, 1, 3, 1, 1))


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
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        posterior = vae.encode(x.contiguous(memory_format=torch.channels_last)).latent_dist
        mean, std = posterior.mean.float(), posterior.std.float()
        latent = mean + std * torch.randn(mean.shape, generator=generator)
        x_hat = vae.decode(latent).sample
    kl = 0.5 * (mean.square() + std.square() - 1 - 2 * std.clamp(min=1e-6).log()).sum(dim=(1, 2, 3)).mean()
    return reconstruction_loss(x_hat.float(), x) + kl_weight * kl


def fill_codebook(vq, batches, seed):
    """Set the codes to k-means centres (MacQueen 1967) of the latents of `batches`, so that rare colours have codes too."""
    with torch.no_grad():
        latents = torch.cat([vq.encode(x).latents.movedim(1, -1).reshape(-1, vq.config.latent_channels) for x in batches])
        codes = vq.quantize.embedding.weight
        found = MiniBatchKMeans(len(codes), batch_size=4 * len(codes), n_init=1, random_state=seed).fit(latents.numpy())
        codes.copy_(torch.from_numpy(found.cluster_centers_))


def vq_loss(vq, discriminator, x, *, quantise=True, adversarial=True, adversarial_weight=0.1, autocast=True):
    """One loss for both players, with the discriminator frozen in the second: the reconstruction is pushed towards what
    the hinge discriminator takes for real. x: (B, 3, H, W) in [-1, 1].

    quantise: False bypasses the codebook. adversarial: False leaves the discriminator out.
    """
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        latent = vq.encode(x.contiguous(memory_format=torch.channels_last)).latents.float()
        quantised, commitment = latent, latent.new_zeros(())
        if quantise:
            with torch.autocast("cpu", enabled=False):
                quantised, commitment, _ = vq.quantize(latent)
        x_hat = vq.decoder(vq.post_quant_conv(quantised)).float()
        loss = reconstruction_loss(x_hat, x) + commitment
        if not adversarial:
            return loss
        real, fake = discriminator(x).float(), discriminator(x_hat.detach()).float()
        frozen = {name: p.detach() for name, p in discriminator.named_parameters()}
        fooled = torch.func.functional_call(discriminator, frozen, (x_hat,)).float()
    hinge = F.relu(1 - real).mean() + F.relu(1 + fake).mean()
    return loss + hinge - adversarial_weight * fooled.mean()


@torch.no_grad()
def reconstruct(model, x):
    """Encode and decode x (B, 3, H, W) in full precision; the VAE takes its posterior's mean."""
    if isinstance(model, AutoencoderKL):
        return model.decode(model.encode(x).latent_dist.mean).sample
    return model.decode(model.encode(x).latents).sample


@torch.no_grad()
def encode(vae, x):
    """Latents of unit variance: the VAE's posterior mean times its scaling factor."""
    with torch.autocast("cpu", torch.bfloat16):
        mean = vae.encode(x.contiguous(memory_format=torch.channels_last)).latent_dist.mean
    return mean.float() * vae.config.scaling_factor


@torch.no_grad()
def decode(vae, latent):
    """The inverse of `encode`, in full precision."""
    return vae.decode(latent / vae.config.scaling_factor).sample
