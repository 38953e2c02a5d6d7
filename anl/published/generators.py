"""Unconditional generators of small images: a GAN, a VAE and a pixel DDPM, trained on a public set's training reals.

They take no part in any training of a detector: their images only test those that learned from other generators.
"""

import itertools
import json
import sys
import time
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

from anl import seeds
from anl.data.patches import CropSampler
from anl.errors import UserError
from anl.files import whole_file, write_csv
from anl.fitting import CHECKPOINT_SECONDS, Checkpoint, fit
from anl.generators import diffusion
from anl.generators import registry as diffusers_models

MODELS = ("gan", "vae", "ddpm")
WEIGHTS = "model.safetensors"
KL_WEIGHT = 1.0
BATCH = 100  # images sampled at once


class Decoder(nn.Module):
    """z (B, Z) -> image (B, 3, size, size) in [-1, 1]: transposed convolutions from a 4 x 4 grid (after DCGAN,
    Radford et al., ICLR 2016).

    channels: from the finest grid to the coarsest, one entry for each doubling above 4 x 4.
    """

    def __init__(self, channels, latent_channels, size):
        super().__init__()
        if size != 4 * 2 ** len(channels):
            raise UserError(f"images of {size} pixels need {max(0, size.bit_length() - 3)} entries in `channels`, for each "
                            f"doubling above 4 x 4; there are {len(channels)}")
        widths = [channels[-1], *reversed(channels)]
        self.start = nn.Linear(latent_channels, widths[0] * 16)
        self.blocks = nn.ModuleList(nn.Sequential(
            nn.ConvTranspose2d(before, after, 4, 2, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU())
            for before, after in itertools.pairwise(widths))
        self.end = nn.Conv2d(widths[-1], 3, 3, 1, 1)

    def forward(self, z):
        h = self.start(z).unflatten(1, (-1, 4, 4))
        for block in self.blocks:
            h = block(h)
        return torch.tanh(self.end(h))


def encoder(channels, outputs, size, spectral=False):
    """Image (B, 3, size, size) -> (B, outputs): convolutions that halve down to 4 x 4.

    spectral: spectral normalisation in place of batch norm, for a discriminator (Miyato et al., ICLR 2018).
    """
    norm = nn.utils.parametrizations.spectral_norm if spectral else lambda layer: layer
    layers, before = [], 3
    for after in channels:
        layers += [norm(nn.Conv2d(before, after, 4, 2, 1)), nn.Identity() if spectral else nn.BatchNorm2d(after),
                   nn.LeakyReLU(0.2)]
        before = after
    return nn.Sequential(*layers, nn.Flatten(), norm(nn.Linear(before * (size >> len(channels)) ** 2, outputs)))


def vae_loss(encode, decode, x, generator, kl_weight=KL_WEIGHT):
    """Negative evidence lower bound per image, over its number of values (Kingma & Welling 2014), Gaussian with a standard
    deviation of a quarter of the range's half. x: (B, 3, H, W) in [-1, 1]."""
    mean, log_variance = encode(x).float().chunk(2, 1)
    log_variance = log_variance.clamp(-8, 8)
    z = mean + (0.5 * log_variance).exp() * torch.randn(mean.shape, generator=generator)
    error = 0.5 * ((decode(z).float() - x) / 0.25).square().sum((1, 2, 3))
    kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1)
    return ((error + kl_weight * kl) / x[0].numel()).mean()


def judge_loss(judge, x, fake):
    """Hinge loss of a discriminator (Lim & Ye 2017) on images x and generated ones, each (B, 3, H, W)."""
    return F.relu(1 - judge(x).float()).mean() + F.relu(1 + judge(fake).float()).mean()


def fit_gan(decode, judge, batch_at, draw_at, *, steps, learning_rate, ema, checkpoint, name="gan",
            checkpoint_seconds=CHECKPOINT_SECONDS):
    """Train a generator against its judge in turns; returns the list of (step, judge's loss) every 1/100.

    Two optimisers with the short memory that GANs need (Radford et al. 2016), where `anl.fitting.fit` has one. batch_at,
    draw_at: step -> images x, latents z. ema: decay of the average that replaces the generator's weights. Raises
    UserError on a loss that is not finite.
    """
    optimisers = [torch.optim.Adam(model.parameters(), learning_rate, betas=(0.5, 0.999)) for model in (decode, judge)]
    averages = [p.detach().clone() for p in decode.parameters()]
    parts = {"decode": decode, "judge": judge, "of_decode": optimisers[0], "of_judge": optimisers[1]}
    curve, start = [], 0
    if state := checkpoint.load():
        for key, part in parts.items():
            part.load_state_dict(state[key])
        averages, curve, start = state["averages"], [tuple(point) for point in state["curve"]], state["step"]
    saved_at = time.monotonic()
    for step in tqdm(range(start, steps), initial=start, total=steps, desc=name, mininterval=10, disable=None, file=sys.stderr):
        with torch.autocast("cpu", torch.bfloat16):
            fake = decode(draw_at(step))
            loss = judge_loss(judge, batch_at(step), fake.detach())
        if not torch.isfinite(loss):
            raise UserError(f"{name}: the loss is {loss.item()} at step {step + 1}; lower the learning rate")
        optimisers[1].zero_grad(set_to_none=True)
        loss.backward()
        optimisers[1].step()
        judge.requires_grad_(False)
        with torch.autocast("cpu", torch.bfloat16):
            fooled = judge(fake).float().mean()
        optimisers[0].zero_grad(set_to_none=True)
        (-fooled).backward()
        optimisers[0].step()
        judge.requires_grad_(True)
        for average, parameter in zip(averages, decode.parameters()):
            average.lerp_(parameter.detach(), 1 - min(ema, (step + 1) / (step + 10)))
        if step % max(1, steps // 100) == 0 or step == steps - 1:
            curve.append((step + 1, float(loss.detach())))
        if time.monotonic() - saved_at > checkpoint_seconds:
            states = {key: part.state_dict() for key, part in parts.items()}
            checkpoint.save({**states, "averages": averages, "curve": curve, "step": step + 1})
            saved_at = time.monotonic()
    with torch.no_grad():
        for average, parameter in zip(averages, decode.parameters()):
            parameter.copy_(average)
    return curve


def fit_model(name, sources, config, out, *, seed, cache):
    """Train the generator `name` on uint8 images and save what samples from it under `out`.

    config: a profile's `models.<name>` mapping. Resumes from a checkpoint of the same parameters in `cache`.
    """
    if name == "ddpm":
        wanted = {"max_strength": 1.0, **config}
        diffusers_models.fit_model("pixel", sources, wanted, out, seed=seed, cache=cache)
        return
    seeds.fix(seed, "published", name)
    size, z = config["crop"], config["latent_channels"]
    sampler = CropSampler(sources, size, config["batch_size"], seed, f"published-{name}")
    decode = Decoder(config["channels"], z, size)
    other = encoder(config["channels"], 2 * z if name == "vae" else 1, size, spectral=name == "gan")
    models = {name: decode, "other": other}
    for model in models.values():
        model.to(memory_format=torch.channels_last).train()

    def images(step):
        return sampler.batch(step).contiguous(memory_format=torch.channels_last)

    def draws(step):
        return seeds.torch_generator(seed, "published", name, step)

    def bound(step):
        with torch.autocast("cpu", torch.bfloat16):
            return vae_loss(other, decode, images(step), draws(step))

    checkpoint = Checkpoint(cache, f"published-{name}", {"config": config, "seed": seed, "sources": len(sources)})
    budget = {key: config[key] for key in ("steps", "learning_rate", "ema")} | {"checkpoint": checkpoint, "name": name}
    if name == "vae":
        curve = fit(models, bound, **budget)
    else:
        curve = fit_gan(decode, other, images, lambda step: torch.randn(config["batch_size"], z, generator=draws(step)),
                        **budget)
    with torch.no_grad():  # the averaged weights need batch statistics of their own
        for step in range(50):
            decode(torch.randn(64, z, generator=seeds.torch_generator(seed, "published", name, "statistics", step)))
    settings = {"channels": config["channels"], "latent_channels": z, "size": size}
    with whole_file(Path(out) / WEIGHTS) as temporary:
        save_file({key: value.contiguous() for key, value in decode.state_dict().items()}, temporary,
                  metadata={"decoder": json.dumps(settings, sort_keys=True)})
    write_csv(Path(out) / "curve.csv", [{"step": step, "loss": value} for step, value in curve], ["step", "loss"])
    checkpoint.remove()


@torch.no_grad()
def sample(name, folder, count, size, *, seed, inference_steps=None):
    """`count` images of the generator in `folder`, float (count, 3, size, size) in [-1, 1], clipped; a function of the seed.

    inference_steps: DDIM steps of the `ddpm`, over its whole schedule. Raises UserError if the model is missing.
    """
    parts = []
    model = diffusers_models.load_model("pixel", folder) if name == "ddpm" else load_decoder(folder)
    for start in range(0, count, BATCH):
        shape, draws = (min(BATCH, count - start), 3, size, size), seeds.torch_generator(seed, "published", name, "sample", start)
        if name == "ddpm":
            parts.append(from_noise(model, torch.randn(shape, generator=draws), inference_steps))
        else:
            parts.append(model(torch.randn(shape[0], model.start.in_features, generator=draws)))
    return torch.cat(parts).clamp(-1, 1)


def from_noise(unet, x, inference_steps):
    """Noise x (B, 3, H, W) -> images, by DDIM (Song et al., ICLR 2021) over the whole schedule, each step's estimate of the
    image clipped to [-1, 1]: without that a small model drifts into saturated colours."""
    scheduler = diffusion.noise_scheduler("ddim", clip=True)
    scheduler.set_timesteps(inference_steps)
    for timestep in scheduler.timesteps:
        with torch.autocast("cpu", torch.bfloat16):
            prediction = unet(x.contiguous(memory_format=torch.channels_last), timestep).sample.float()
        x = scheduler.step(prediction, timestep, x).prev_sample
    return x


def load_decoder(folder):
    """A saved GAN's or VAE's Decoder in eval mode. Raises UserError on a missing, truncated or foreign file."""
    path = Path(folder) / WEIGHTS
    try:
        with safe_open(path, framework="pt") as file:
            decoder = Decoder(**json.loads(file.metadata()["decoder"]))
            decoder.load_state_dict({key: file.get_tensor(key) for key in file.keys()})  # noqa: SIM118
    except Exception as problem:
        reason = (str(problem).strip() or type(problem).__name__).splitlines()[0]
        raise UserError(f"{path} holds no generator ({reason}); make it with `anl --params PROFILE generate "
                        f"{Path(folder).name}`") from None
    return decoder.eval().requires_grad_(False)
