"""Which generator models there are: how each is built, its training loss, how it is loaded, and how a family runs it.

A *model* is trained once; a *family* is a model with a way to run it, so that two samplers of one model are two
families.
"""

import copy
from pathlib import Path

import torch
from diffusers import UNet2DModel
from torch import nn

from anl.io import UserError
from anl.models.generators import autoencoders, diffusion, small, superres, taef2
from anl.models.prior_loading import load_weights

MODELS = {"pixel": UNet2DModel, "flow": UNet2DModel, "latent": UNet2DModel, "unconditional": UNet2DModel,
          "ddpm": UNet2DModel,
          "vae": autoencoders.ScaledAutoencoderKL, "vq": autoencoders.ScaledVQModel, "superres": superres.SuperResolver,
          "gan": small.Decoder, "small_vae": small.Decoder, "taef2": taef2.TAEF2}
CODEBOOK_BATCHES = 32  # batches whose latents the VQ model's codes are chosen from


def settings_of(section):
    """A configuration section, mapping or pydantic model, as a dict of the values that are set."""
    return {key: value for key, value in dict(section).items() if value is not None}


def kind_of(name, config=None):
    """The key in `MODELS` of a model: `kind` in `config`, else its name. Raises UserError if it is unknown."""
    kind = settings_of(config or {}).get("kind", name)
    if kind not in MODELS:
        raise UserError(f"there is no generator model '{kind}'; choose one of {', '.join(MODELS)}")
    return kind


def build(name, config, vae=None):
    """The untrained networks of a generator.

    Parameters
    ----------
    name : str
        A key of `MODELS`, unless `config` names its `kind`.
    config : mapping or pydantic model
        channels, and layers_per_block (UNets), latent_channels (autoencoders, gan, small_vae), codes (vq), blocks and
        scale (superres), crop (gan, small_vae).
    vae : nn.Module, optional
        The trained VAE that `latent` needs.

    Returns
    -------
    nn.ModuleDict
        `model` is the generator; `discriminator` (vq, gan) and `encoder` (small_vae) are trained with it and dropped.
    """
    kind, config = kind_of(name, config), settings_of(config)
    if kind == "taef2":
        raise UserError("taef2 is a published model and cannot be trained; state the folder of its weights as `source`")
    channels = config["channels"]
    if kind == "vae":
        return nn.ModuleDict({"model": autoencoders.build_vae(channels, config["latent_channels"])})
    if kind == "vq":
        return nn.ModuleDict({"model": autoencoders.build_vq(channels, config["latent_channels"], config["codes"]),
                              "discriminator": autoencoders.PatchDiscriminator()})
    if kind == "superres":
        return nn.ModuleDict({"model": superres.SuperResolver(channels[0], config["blocks"], config["scale"])})
    if kind in ("gan", "small_vae"):
        width, size = config["latent_channels"], config["crop"]
        decoder = small.Decoder(channels, width, size)
        partner = {"discriminator": small.build_encoder(channels, 1, size, spectral=True)} if kind == "gan" else {
            "encoder": small.build_encoder(channels, 2 * width, size)}
        return nn.ModuleDict({"model": decoder, **partner})
    if kind == "latent" and vae is None:
        raise UserError("the model `latent` needs the trained `vae`; make that first with `anl make generator vae`")
    in_channels = vae.config.latent_channels if kind == "latent" else 3
    return nn.ModuleDict({"model": diffusion.build_unet(channels, config["layers_per_block"], in_channels)})


def training_loss(name, config, vae=None, precision="bf16"):
    """The loss function of a generator's training.

    Parameters
    ----------
    name, config, vae
        As for `build`; `config` also holds max_strength (UNets), texture_weight (superres), or steps, quantise_from and
        adversarial_from (vq: shares of the training after which the codebook and the discriminator take part).
    precision : str
        What the networks compute in.

    Returns
    -------
    callable
        `loss(models, x, generator, step)` -> scalar Tensor, with the models of `build`, images x (B, 3, H, W) in [-1,
        1], a CPU torch.Generator, and the 0-based step.
    """
    kind, config = kind_of(name, config), settings_of(config)
    strength = config.get("max_strength", 1.0)

    def loss(models, x, generator, step):
        model = models["model"]
        if kind == "vae":
            return autoencoders.vae_loss(model, x, generator, precision=precision)
        if kind == "vq":
            return autoencoders.vq_loss(model, models["discriminator"], x, precision=precision,
                                        quantise=step >= first_step(config, "quantise_from"),
                                        adversarial=step >= first_step(config, "adversarial_from"))
        if kind == "superres":
            return superres.superres_loss(model, x, config["texture_weight"], precision)
        if kind == "gan":
            return small.gan_loss(model, models["discriminator"], x, generator, precision)
        if kind == "small_vae":
            return small.elbo_loss(model, models["encoder"], x, generator, precision=precision)
        if kind == "flow":
            return diffusion.flow_loss(model, x, generator, strength, precision)
        x = autoencoders.encode(vae, x, precision) if kind == "latent" else x
        return diffusion.epsilon_loss(model, x, generator, strength, precision)

    return loss


def first_step(config, key):
    """The step at which a share of the training, `quantise_from` or `adversarial_from`, is reached."""
    config = settings_of(config)
    return round(config[key] * config["steps"])


def before_step(name, config, models, step, batch_at, seed):
    """To call before each training step: fills the VQ model's codebook when its quantisation starts.

    batch_at: function from a step to images (B, 3, H, W) in [-1, 1] on the models' device. Does nothing for other
    models.
    """
    if kind_of(name, config) == "vq" and step == first_step(config, "quantise_from"):
        autoencoders.fill_codebook(models["model"], [batch_at(step + i) for i in range(CODEBOOK_BATCHES)], seed)


def finish(name, config, models, batch, generator):
    """The trained generator in eval mode, complete: the VAE knows the scale of its latents, a decoder its statistics.

    batch: images (B, 3, H, W) in [-1, 1] on the models' device. generator: CPU torch.Generator.
    """
    kind, model = kind_of(name, config), models["model"].eval()
    if kind == "vae":
        model.register_to_config(scaling_factor=autoencoders.latent_scale(model, batch))
    return small.refresh_statistics(model, generator) if kind in ("gan", "small_vae") else model


def save_model(model, folder):
    """Write a generator to `folder`: diffusers' layout in half precision, or a Decoder's own file in full."""
    if isinstance(model, small.Decoder):
        small.save_decoder(model, folder)
    else:
        copy.deepcopy(model).to(torch.float16).save_pretrained(folder)


def load_model(name, folder, device=None):
    """Load a saved generator in float32, eval mode, frozen.

    Parameters
    ----------
    name : str
        A key of `MODELS`. `vae` also finds the VAE of small images, whose file has another layout.
    folder : str or Path
    device : torch.device or str, optional
        By default the CPU.

    Raises
    ------
    UserError
        If the folder is missing or incomplete, holds another class, or lacks a weight.
    """
    model_class, folder = MODELS[kind_of(name)], Path(folder)
    if model_class is small.Decoder or (name == "vae" and (folder / small.WEIGHTS).is_file()):
        model = small.load_decoder(folder)
    elif model_class is taef2.TAEF2:
        model = taef2.load_taef2(folder)
    else:
        try:
            model = load_weights(model_class, folder, str(folder))
        except UserError as problem:
            raise UserError(f"{folder} holds no {name} model: {problem} (`dvc pull`, or make it with `anl make generator "
                            f"{name}`)") from None
    return model.requires_grad_(False).to(device, memory_format=torch.channels_last)


def regenerate(family, models, x, generator, precision="bf16"):
    """Regenerate images with a family; one from noise alone takes only the shape of x.

    Parameters
    ----------
    family : mapping or pydantic model
        `model` (a key of `models`), `decoder` (the VAE of a latent model, by default `vae`), and for diffusion and flow
        `inference_steps`, `strength` (without it: from noise), `sampler` (without it: `flow` is integrated, noise is
        denoised with `ddim`), `region` (shares of the image that are inpainted, smallest and largest).
    models : dict of str to nn.Module
        Loaded models, on one device; `vae` too for a latent family.
    x : Tensor
        (B, 3, H, W), RGB, [-1, 1], on the models' device.
    generator : torch.Generator or list of torch.Generator
        On the CPU. With one for each image, an image does not depend on the rest of its batch.
    precision : str
        What UNets and the VAE's encoder compute in; reconstructions are always float32.

    Returns
    -------
    Tensor
        (B, 3, H, W), not clipped.
    """
    family = settings_of(family)
    model, sampler = models[family["model"]], family.get("sampler")
    if isinstance(model, small.Decoder):
        return small.decode_noise(model, len(x), generator)
    if isinstance(model, superres.SuperResolver):
        return superres.restore(model, x)
    if isinstance(model, taef2.TAEF2):
        with torch.no_grad():
            return model(x)
    if isinstance(model, (autoencoders.ScaledAutoencoderKL, autoencoders.ScaledVQModel)):
        return autoencoders.reconstruct(model, x)
    run = {"inference_steps": family["inference_steps"], "precision": precision}
    if "strength" not in family:
        return diffusion.sample(model, x.shape, generator, sampler=sampler or "ddim", **run)
    run["strength"] = family["strength"]
    if sampler is None:
        return diffusion.flow_from(model, x, generator, **run)
    if model.config.in_channels != 3:
        vae = models[family.get("decoder", "vae")]
        latent = autoencoders.encode(vae, x, precision)
        return autoencoders.decode(vae, diffusion.denoise_from(model, latent, generator, sampler=sampler, **run))
    mask = None
    if family.get("region"):
        mask = diffusion.random_boxes(len(x), x.shape[-1], family["region"], generator).to(x.device)
    return diffusion.denoise_from(model, x, generator, sampler=sampler, mask=mask, **run)
