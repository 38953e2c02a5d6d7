"""The generators of the benchmarks: how each is built, its training loss, how it is loaded, and how a family runs it.

A *model* is trained once; a *family* is a model with a way to run it, so that two samplers of one model are two
families. `config` below is a model's section of the configuration (`anl.config.GeneratorConfig`).
"""

import copy
from pathlib import Path

import torch
from diffusers import UNet2DModel
from torch import nn

from anl.io import UserError, pick
from anl.models.generators import autoencoders, diffusion, superres, taef2
from anl.models.prior_loading import load_weights

__all__ = ["MODELS", "before_step", "build", "finish", "kind_of", "load_model", "regenerate", "save_model",
           "training_loss"]

MODELS = {"pixel": UNet2DModel, "flow": UNet2DModel, "latent": UNet2DModel, "unconditional": UNet2DModel,
          "vae": autoencoders.ScaledAutoencoderKL, "vq": autoencoders.ScaledVQModel, "superres": superres.SuperResolver,
          "taef2": taef2.TAEF2}
CODEBOOK_BATCHES = 32  # batches whose latents the VQ model's codes are chosen from


def kind_of(name, config):
    """The key in `MODELS` of a model: the `kind` of its section, else its name. Raises UserError if it is unknown."""
    return pick("generator model", config.kind or name, MODELS)


def build(name, config, vae=None):
    """The untrained networks of a generator; `latent` needs the trained `vae`.

    Returns
    -------
    nn.ModuleDict
        `model` is the generator; the `discriminator` of `vq` is trained with it and dropped.
    """
    kind, channels, width = kind_of(name, config), config.channels, config.latent_channels
    if kind == "taef2":
        raise UserError("taef2 is a published model and cannot be trained; state the folder of its weights as `source`")
    if kind == "latent" and vae is None:
        raise UserError("the model `latent` needs the trained `vae`; make that first with `anl make generator vae`")
    networks = {}
    if kind == "vae":
        networks["model"] = autoencoders.build_vae(channels, width)
    elif kind == "vq":
        networks["model"] = autoencoders.build_vq(channels, width, config.codes)
        networks["discriminator"] = autoencoders.PatchDiscriminator()
    elif kind == "superres":
        networks["model"] = superres.SuperResolver(channels[0], config.blocks, config.scale)
    else:
        in_channels = vae.config.latent_channels if kind == "latent" else 3
        networks["model"] = diffusion.build_unet(channels, config.layers_per_block, in_channels)
    return nn.ModuleDict(networks)


def training_loss(name, config, vae=None):
    """The loss `(models, x, generator, step)` -> scalar of a generator's training.

    models: as returned by `build`. x: images (B, 3, H, W) in [-1, 1]. generator: CPU torch.Generator. step: from 0.
    """
    kind = kind_of(name, config)

    def loss(models, x, generator, step):
        model = models["model"]
        if kind == "vae":
            return autoencoders.vae_loss(model, x, generator)
        if kind == "vq":
            return autoencoders.vq_loss(model, models["discriminator"], x,
                                        quantise=step >= round(config.quantise_from * config.steps),
                                        adversarial=step >= round(config.adversarial_from * config.steps))
        if kind == "superres":
            return superres.superres_loss(model, x, config.texture_weight)
        if kind == "flow":
            return diffusion.flow_loss(model, x, generator, config.max_strength)
        x = autoencoders.encode(vae, x, "bf16") if kind == "latent" else x
        last = max(1, round(config.max_strength * diffusion.TRAIN_STEPS)) - 1
        return diffusion.noise_prediction_loss(model, x, generator, last=last)

    return loss


def before_step(name, config, models, step, batch_at, seed):
    """Hook to call before each training step; it fills the VQ model's codebook when its quantisation starts.

    batch_at: function from a step to images (B, 3, H, W) in [-1, 1] on the models' device.
    """
    if kind_of(name, config) == "vq" and step == round(config.quantise_from * config.steps):
        autoencoders.fill_codebook(models["model"], [batch_at(step + i) for i in range(CODEBOOK_BATCHES)], seed)


@torch.no_grad()
def finish(name, config, models, batch):
    """The trained generator in eval mode; for a VAE, the scaling factor of its latents is computed and stored.

    batch: images (B, 3, H, W) in [-1, 1] on the models' device.
    """
    kind, model = kind_of(name, config), models["model"].eval()
    if kind == "vae":  # the factor that gives latents unit variance
        model.register_to_config(scaling_factor=float(1 / model.encode(batch).latent_dist.mean.std()))
    return model


def save_model(model, folder):
    """Write a generator to `folder`: diffusers' layout in half precision."""
    copy.deepcopy(model).to(torch.float16).save_pretrained(folder)


def load_model(kind, folder, device=None):
    """Load a saved generator in float32, eval mode, frozen.

    Parameters
    ----------
    kind : str
        A key of `MODELS`.
    folder : str or Path
    device : torch.device or str, optional
        By default the CPU.

    Raises
    ------
    UserError
        If the folder is missing or incomplete, holds another class, or lacks a weight.
    """
    model_class, folder = MODELS[pick("generator model", kind, MODELS)], Path(folder)
    if model_class is taef2.TAEF2:
        model = taef2.load_taef2(folder)
    else:
        try:
            model = load_weights(model_class, folder, str(folder))
        except UserError as problem:
            raise UserError(f"{folder} holds no {kind} model: {problem} (`dvc pull`, or make it with `anl make generator "
                            f"{kind}`)") from None
    return model.requires_grad_(False).to(device, memory_format=torch.channels_last)


def regenerate(family, models, x, generator, precision="bf16"):
    """Regenerate images with a family. A family that samples from noise uses only the shape of x.

    Parameters
    ----------
    family : anl.config.FamilyConfig
        Without `strength`, a diffusion model samples from noise, by default with the `sampler` `ddim`. With `strength` but
        without `sampler`, the model is a flow and is integrated.
    models : dict of str to nn.Module
        Loaded models, on one device; the decoder (by default `vae`) too for a latent family.
    x : Tensor
        (B, 3, H, W), RGB, [-1, 1], on the models' device.
    generator : torch.Generator or list of torch.Generator
        On the CPU. With one for each image, an image does not depend on the rest of its batch.
    precision : str
        Precision of UNets and of the VAE's encoder before them; reconstructions and decoding are always float32.

    Returns
    -------
    Tensor
        (B, 3, H, W), not clipped.
    """
    model = models[family.model]
    if isinstance(model, superres.SuperResolver):
        return superres.restore(model, x)
    if not isinstance(model, UNet2DModel):
        return autoencoders.reconstruct(model, x)
    run = {"inference_steps": family.inference_steps, "precision": precision}
    if family.strength is None:
        return diffusion.sample(model, x.shape, generator, sampler=family.sampler or "ddim", **run)
    run["strength"] = family.strength
    if family.sampler is None:
        return diffusion.flow_from(model, x, generator, **run)
    run["sampler"] = family.sampler
    if model.config.in_channels != 3:
        vae = models[family.decoder or "vae"]
        latent = autoencoders.encode(vae, x, precision)
        return autoencoders.decode(vae, diffusion.denoise_from(model, latent, generator, **run))
    if family.region:
        run["mask"] = diffusion.random_boxes(len(x), x.shape[-1], family.region, generator).to(x.device)
    return diffusion.denoise_from(model, x, generator, **run)
