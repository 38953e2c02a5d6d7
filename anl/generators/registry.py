"""Which models there are, how each is trained and saved, and how a family runs one."""

from pathlib import Path

import torch
from diffusers import UNet2DModel

from anl import seeds
from anl.data.patches import CropSampler
from anl.errors import UserError
from anl.files import write_csv
from anl.fitting import Checkpoint, fit
from anl.generators import autoencoders, diffusion, superres

CODEBOOK_BATCHES = 32  # whose latents the VQ model's codes are chosen from

MODELS = {"pixel": UNet2DModel, "flow": UNet2DModel, "vae": autoencoders.ScaledAutoencoderKL,
          "vq": autoencoders.ScaledVQModel, "latent": UNet2DModel, "superres": superres.SuperResolver,
          "unconditional": UNet2DModel}


def fit_model(name, sources, config, out, *, seed, cache, vae=None):
    """Train the model `name` on uint8 sources and save it, in half precision, under `out`.

    config: a profile's `models.<name>` or `more_models.<name>` mapping (channels, steps, batch_size, crop, learning_rate and what is special).
    vae: the trained VAE, needed by `latent`. Resumes from a checkpoint in `cache` if one of the same parameters is there.
    """
    if name not in MODELS:
        raise UserError(f"there is no generator model '{name}'; choose one of {', '.join(MODELS)}")
    seeds.fix(seed, "model", name)
    sampler = CropSampler(sources, config["crop"], config["batch_size"], seed, name)
    models, loss = _task(name, config, sampler, seed, vae)
    for model in models.values():
        model.to(memory_format=torch.channels_last).train()
    checkpoint = Checkpoint(cache, name, {"config": config, "seed": seed, "sources": len(sources)})
    curve = fit(models, loss, steps=config["steps"], learning_rate=config["learning_rate"], checkpoint=checkpoint,
                name=name, ema=config["ema"])
    model = models[name].eval()
    if name == "vae":
        model.register_to_config(scaling_factor=_latent_scale(model, sampler))
    model.to(torch.float16).save_pretrained(out)
    write_csv(Path(out) / "curve.csv", [{"step": step, "loss": value} for step, value in curve])
    checkpoint.remove()


def _task(name, config, sampler, seed, vae):
    def draws(step):
        return seeds.torch_generator(seed, name, "draws", step)

    if name in ("pixel", "flow", "unconditional"):
        unet = diffusion.build_unet(config["channels"], config["layers_per_block"])
        loss = diffusion.flow_loss if name == "flow" else diffusion.epsilon_loss
        return {name: unet}, lambda k: loss(unet, sampler.batch(k), draws(k), config["max_strength"])
    if name == "latent":
        unet = diffusion.build_unet(config["channels"], config["layers_per_block"], vae.config.latent_channels)
        return {name: unet}, lambda k: diffusion.epsilon_loss(unet, autoencoders.encode(vae, sampler.batch(k)), draws(k),
                                                              config["max_strength"])
    if name == "vae":
        vae = autoencoders.build_vae(config["channels"], config["latent_channels"])
        return {name: vae}, lambda k: autoencoders.vae_loss(vae, sampler.batch(k), draws(k))
    if name == "superres":
        model = superres.SuperResolver(config["channels"][0], config["blocks"], config["scale"])
        return {name: model}, lambda k: superres.superres_loss(model, sampler.batch(k), texture_weight=config["texture_weight"])
    vq = autoencoders.build_vq(config["channels"], config["latent_channels"], config["codes"])
    discriminator = autoencoders.PatchDiscriminator()
    first = {key: round(config[key] * config["steps"]) for key in ("quantise_from", "adversarial_from")}

    def vq_loss(k):
        if k == first["quantise_from"]:
            autoencoders.fill_codebook(vq, [sampler.batch(k + i) for i in range(CODEBOOK_BATCHES)], seed)
        return autoencoders.vq_loss(vq, discriminator, sampler.batch(k), quantise=k >= first["quantise_from"],
                                    adversarial=k >= first["adversarial_from"])

    return {name: vq, "discriminator": discriminator}, vq_loss


def _latent_scale(vae, sampler):
    with torch.no_grad():
        return float(1 / vae.encode(sampler.batch(0)).latent_dist.mean.std())


def load_model(name, folder):
    """A saved model in full precision, eval mode, frozen. Raises UserError if the folder is missing or incomplete."""
    try:
        model = MODELS[name].from_pretrained(folder, torch_dtype=torch.float32, use_safetensors=True, local_files_only=True)
    except (OSError, ValueError) as problem:
        raise UserError(f"{folder} holds no {name} model ({str(problem).splitlines()[0]}); get it with `dvc pull` or "
                        f"make it with `anl generate {name}`") from None
    return model.eval().requires_grad_(False).to(memory_format=torch.channels_last)


def regenerate(family, models, x, generator):
    """Regenerate x (B, 3, H, W) in [-1, 1] with a family; returns the same shape, not yet clipped.

    family: a profile's `families.<name>` or `more_families.<name>` mapping (model, and for diffusion sampler, strength,
    inference_steps, region). models: dict of loaded models by name. An unconditional family takes x's shape alone.
    """
    name = family["model"]
    model = models[name]
    if name in ("vae", "vq"):
        return autoencoders.reconstruct(model, x)
    if name == "superres":
        return superres.bring_back(model, x)
    if name == "unconditional":
        return diffusion.sample(model, x.shape, sampler=family["sampler"], inference_steps=family["inference_steps"],
                                generator=generator)
    run = {"strength": family["strength"], "inference_steps": family["inference_steps"], "generator": generator}
    if name == "flow":
        return diffusion.flow_from(model, x, **run)
    if family.get("region"):
        mask = diffusion.random_boxes(len(x), x.shape[-1], family["region"], generator)
        return diffusion.inpaint(model, x, mask, sampler=family["sampler"], **run)
    if name == "pixel":
        return diffusion.denoise_from(model, x, sampler=family["sampler"], **run)
    latent = diffusion.denoise_from(model, autoencoders.encode(models["vae"], x), sampler=family["sampler"], **run)
    return autoencoders.decode(models["vae"], latent)
