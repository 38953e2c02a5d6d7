"""Two autoencoders: a VAE (Kingma & Welling 2014) and a VQ model with an adversarial loss (Esser et al. 2021)."""

import functools

import torch
from diffusers import AutoencoderKL, VQModel
from diffusers.models.resnet import ResnetBlock2D
from sklearn.cluster import MiniBatchKMeans
from torch import nn
from torch.nn import functional as F

from anl.models.generators.diffusion import draw_noise
from anl.models.precision import autocast


def _without_last_norms(base):
    """`base` without normalisation and activation before the last convolution of its encoder and its decoder.

    There diffusers normalises over the whole crop, which removes the strength of its colours and contrast, and a short
    training does not recover them. Saving and loading are inherited from diffusers.
    """
    class Autoencoder(base):
        @functools.wraps(base.__init__)  # diffusers reads the configuration's names from the signature
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            for half in (self.encoder, self.decoder):
                half.conv_norm_out = half.conv_act = nn.Identity()
            _start_as_identity(self)

    Autoencoder.__name__ = Autoencoder.__qualname__ = f"Scaled{base.__name__}"
    return Autoencoder


def _start_as_identity(model):
    """Initialise every block to pass its first channels on, so that the autoencoder starts as plain subsampling.

    From diffusers' own initialisation the signal fades in each convolution, and a short training learns a blurred
    image.
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


ScaledAutoencoderKL = _without_last_norms(AutoencoderKL)
ScaledVQModel = _without_last_norms(VQModel)


def build_vae(channels, latent_channels):
    """ScaledAutoencoderKL that halves the resolution once for each entry of `channels` after the first."""
    return ScaledAutoencoderKL(latent_channels=latent_channels, **_settings(channels))


def build_vq(channels, latent_channels, codes):
    """ScaledVQModel with one codebook of `codes` entries."""
    return ScaledVQModel(latent_channels=latent_channels, num_vq_embeddings=codes, **_settings(channels))


def _settings(channels):
    n = len(channels)
    return {"block_out_channels": tuple(channels), "layers_per_block": 1, "norm_num_groups": 8,
            "mid_block_add_attention": False, "down_block_types": ("DownEncoderBlock2D",) * n,
            "up_block_types": ("UpDecoderBlock2D",) * n}


class PatchDiscriminator(nn.Sequential):
    """A small PatchGAN (Isola et al. 2017): (B, 3, H, W) -> logits (B, 1, H/4, W/4)."""

    def __init__(self, width=32):
        super().__init__(nn.Conv2d(3, width, 4, 2, 1), nn.LeakyReLU(0.2),
                         nn.Conv2d(width, 2 * width, 4, 2, 1), nn.GroupNorm(8, 2 * width), nn.LeakyReLU(0.2),
                         nn.Conv2d(2 * width, 2 * width, 3, 1, 1), nn.GroupNorm(8, 2 * width), nn.LeakyReLU(0.2),
                         nn.Conv2d(2 * width, 1, 3, 1, 1))


def reconstruction_loss(x_hat, x):
    """L1 on the image, on what a 3 x 3 box filter removes (weight 2) and on means of 4 x 4 pixels (weight 4).

    The second keeps edges that L1 alone would blur, the third colour that a short training would lose.
    """
    error = x_hat - x
    return error.abs().mean() + 2 * high_pass(error).abs().mean() + 4 * F.avg_pool2d(error, 4).abs().mean()


def high_pass(x):
    """x minus its 3 x 3 box filter. Mirrored by slices: reflection padding has no deterministic gradient on CUDA."""
    rows = torch.cat([x[:, :, 1:2], x, x[:, :, -2:-1]], 2)
    return x - F.avg_pool2d(torch.cat([rows[..., 1:2], rows, rows[..., -2:-1]], 3), 3, 1)


def vae_loss(vae, x, generator, kl_weight=1e-6, precision="bf16"):
    """Reconstruction loss plus a light Kullback-Leibler term; x (B, 3, H, W) in [-1, 1]."""
    with autocast(x.device, precision):
        posterior = vae.encode(x.contiguous(memory_format=torch.channels_last)).latent_dist
        mean, std = posterior.mean.float(), posterior.std.float()
        latent = mean + std * draw_noise(mean.shape, generator, x.device)
        x_hat = vae.decode(latent).sample
    kl = 0.5 * (mean.square() + std.square() - 1 - 2 * std.clamp(min=1e-6).log()).sum(dim=(1, 2, 3)).mean()
    return reconstruction_loss(x_hat.float(), x) + kl_weight * kl


def hinge_loss(discriminator, real, fake):
    """Hinge loss of a discriminator (Lim & Ye 2017) on real and generated images, (B, 3, H, W) each."""
    return F.relu(1 - discriminator(real).float()).mean() + F.relu(1 + discriminator(fake).float()).mean()


def adversarial_loss(discriminator, real, fake, weight=1.0):
    """Sum of the discriminator's and the generator's loss of a GAN, so that one optimiser can train both.

    The discriminator's term is its hinge loss on detached images. The generator's term is minus the mean logit of `fake`,
    times `weight`, with the discriminator's weights detached. Each network gets gradients from its own term only.
    """
    loss = hinge_loss(discriminator, real, fake.detach())
    frozen = {name: parameter.detach() for name, parameter in discriminator.named_parameters()}
    return loss - weight * torch.func.functional_call(discriminator, frozen, (fake,)).float().mean()


def vq_loss(vq, discriminator, x, *, quantise=True, adversarial=True, adversarial_weight=0.1, precision="bf16"):
    """Loss of a VQ model and its discriminator together: reconstruction, commitment and `adversarial_loss`.

    x : (B, 3, H, W) in [-1, 1]. Without `quantise` the codebook is bypassed, without `adversarial` the discriminator.
    """
    with autocast(x.device, precision):
        latent = vq.encode(x.contiguous(memory_format=torch.channels_last)).latents.float()
        quantised, commitment = latent, latent.new_zeros(())
        if quantise:
            with autocast(x.device, "fp32"):
                quantised, commitment, _ = vq.quantize(latent)
        x_hat = vq.decoder(vq.post_quant_conv(quantised)).float()
        loss = reconstruction_loss(x_hat, x) + commitment
        return loss + adversarial_loss(discriminator, x, x_hat, adversarial_weight) if adversarial else loss


@torch.no_grad()
def fill_codebook(vq, batches, seed):
    """Set the codes to k-means centres (MacQueen 1967) of the latents of `batches`: rare colours get codes too."""
    latents = torch.cat([vq.encode(x).latents.float().movedim(1, -1).flatten(0, -2).cpu() for x in batches])
    codes = vq.quantize.embedding.weight
    found = MiniBatchKMeans(len(codes), batch_size=4 * len(codes), n_init=1, random_state=seed).fit(latents.numpy())
    codes.copy_(torch.from_numpy(found.cluster_centers_))


@torch.no_grad()
def reconstruct(model, x):
    """Encode and decode x (B, 3, H, W) in float32, a VAE by its posterior mean; a module without `encode` is called."""
    if not hasattr(model, "encode"):
        return model(x)
    encoded = model.encode(x)
    return model.decode(encoded.latent_dist.mean if isinstance(model, AutoencoderKL) else encoded.latents).sample


@torch.no_grad()
def encode(vae, x, precision):
    """Latents of unit variance: the mean of the VAE's posterior times its scaling factor."""
    with autocast(x.device, precision):
        mean = vae.encode(x.contiguous(memory_format=torch.channels_last)).latent_dist.mean
    return mean.float() * vae.config.scaling_factor


@torch.no_grad()
def decode(vae, latent):
    """The inverse of `encode`, in float32."""
    return vae.decode(latent / vae.config.scaling_factor).sample
