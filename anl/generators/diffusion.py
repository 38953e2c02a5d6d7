"""Pixel diffusion, latent diffusion and flow matching, run image-to-image (SDEdit: Meng et al., ICLR 2022).

An image is noised to a fraction `strength` of the schedule and denoised from there, so that content stays and only the
model's fingerprint is added. A model that is only ever run so is trained on that lower part of its schedule alone.
"""

import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    UNet2DModel,
)

TRAIN_STEPS = 1000  # length of every diffusion schedule here (Ho et al. 2020)
SAMPLERS = ("ddim", "ddpm", "dpm")


def build_unet(channels, layers_per_block, in_channels=3):
    """A convolutional UNet (no attention: it is trained on small crops and run on larger ones)."""
    return UNet2DModel(in_channels=in_channels, out_channels=in_channels, layers_per_block=layers_per_block,
                       block_out_channels=tuple(channels), norm_num_groups=8, add_attention=False,
                       down_block_types=("DownBlock2D",) * len(channels),
                       up_block_types=("UpBlock2D",) * len(channels))


def noise_scheduler(sampler="ddpm", clip=False):
    """The linear schedule of Ho et al. (2020), beta from 1e-4 to 2e-2, for one of SAMPLERS; epsilon prediction.

    dpm: DPM-Solver++ of second order (Lu et al., NeurIPS 2022), many steps of which share one history. clip: whether `ddim` and
    `ddpm` keep the clean image that they expect at each step in [-1, 1]; `dpm` never does.
    """
    make = {"ddim": DDIMScheduler, "ddpm": DDPMScheduler, "dpm": DPMSolverMultistepScheduler}[sampler]
    extra = {"ddim": {"clip_sample": clip, "set_alpha_to_one": True}, "ddpm": {"clip_sample": clip}, "dpm": {}}[sampler]
    return make(num_train_timesteps=TRAIN_STEPS, beta_start=1e-4, beta_end=2e-2, beta_schedule="linear",
                timestep_spacing="leading", **extra)


def epsilon_loss(unet, x, generator, max_strength=1.0, autocast=True):
    """Mean squared error of the predicted noise (Ho et al. 2020, eq. 14) at timesteps below `max_strength` of all.

    x: clean images or latents (B, C, H, W), about unit range. generator: torch.Generator for noise and timesteps.
    """
    scheduler = noise_scheduler()
    timestep = torch.randint(0, max(1, round(max_strength * TRAIN_STEPS)), (len(x),), generator=generator)
    noise = torch.randn(x.shape, generator=generator)
    noised = scheduler.add_noise(x, noise, timestep)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        prediction = unet(noised.contiguous(memory_format=torch.channels_last), timestep).sample
    return (prediction.float() - noise).square().mean()


def flow_loss(unet, x, generator, max_strength=1.0, autocast=True):
    """Flow matching on straight paths (Lipman et al. 2023): predict `noise - x` at sigma below `max_strength`."""
    sigma = torch.rand(len(x), generator=generator) * max_strength
    noise = torch.randn(x.shape, generator=generator)
    s = sigma[:, None, None, None]
    noised = (1 - s) * x + s * noise
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        prediction = unet(noised.contiguous(memory_format=torch.channels_last), sigma * TRAIN_STEPS).sample
    return (prediction.float() - (noise - x)).square().mean()


@torch.no_grad()
def denoise_from(unet, x, *, sampler, strength, inference_steps, generator, autocast=True):
    """Noise x (B, C, H, W) to `strength` of the schedule and denoise it in `inference_steps` with `sampler`."""
    scheduler, timesteps = _last_steps(sampler, strength, inference_steps)
    noise = torch.randn(x.shape, generator=generator)
    x = scheduler.add_noise(x, noise, timesteps[:1].expand(len(x)))
    for timestep in timesteps:
        x = _step(unet, scheduler, timestep, x, generator, autocast)
    return x


@torch.no_grad()
def inpaint(unet, x, mask, *, sampler, strength, inference_steps, generator, autocast=True):
    """Regenerate x (B, C, H, W) where `mask` (B, 1, H, W, boolean) is true, as `denoise_from` does; the rest stays.

    After every step the known part is replaced by the image at that step's noise (Lugmayr et al., CVPR 2022, eq. 8), so
    that the new part is drawn to fit it.
    """
    scheduler, timesteps = _last_steps(sampler, strength, inference_steps)
    def noised(timestep):
        return scheduler.add_noise(x, torch.randn(x.shape, generator=generator), timestep.expand(len(x)))

    made = noised(timesteps[0])
    for timestep, following in zip(timesteps, [*timesteps[1:], None], strict=True):
        made = _step(unet, scheduler, timestep, made, generator, autocast)
        made = torch.where(mask, made, x if following is None else noised(following))
    return made


def random_boxes(count, side, shares, generator):
    """Boolean masks (count, 1, side, side), each true in a box that covers `shares[0]` to `shares[1]` of the square."""
    masks = torch.zeros(count, 1, side, side, dtype=torch.bool)
    for mask in masks:
        share, stretch, down, right = torch.rand(4, generator=generator).tolist()
        share = shares[0] + (shares[1] - shares[0]) * share
        height = round(side * share ** (0.3 + 0.4 * stretch))  # as a share of the side, to the power of 0.3 to 0.7
        width = round(share * side * side / height)
        top, left = round(down * (side - height)), round(right * (side - width))
        mask[0, top:top + height, left:left + width] = True
    return masks


@torch.no_grad()
def sample(unet, shape, *, sampler, inference_steps, generator, autocast=True):
    """Images (B, C, H, W) from noise alone; the model must be trained over the whole schedule.

    `ddim` and `ddpm` clip the clean image at each step: without that a small model's errors add up to colours out of range.
    """
    scheduler = noise_scheduler(sampler, clip=True)
    scheduler.set_timesteps(inference_steps)
    x = torch.randn(shape, generator=generator)
    for timestep in scheduler.timesteps:
        x = _step(unet, scheduler, timestep, x, generator, autocast)
    return x


def _last_steps(sampler, strength, inference_steps):
    scheduler = noise_scheduler(sampler)
    scheduler.set_timesteps(min(TRAIN_STEPS, round(inference_steps / strength)))
    if sampler == "dpm":
        scheduler.set_begin_index(len(scheduler.timesteps) - inference_steps)
    return scheduler, scheduler.timesteps[-inference_steps:]


def _step(unet, scheduler, timestep, x, generator, autocast):
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        prediction = unet(x.contiguous(memory_format=torch.channels_last), timestep).sample.float()
    return scheduler.step(prediction, timestep, x, generator=generator).prev_sample


@torch.no_grad()
def flow_from(unet, x, *, strength, inference_steps, generator, autocast=True):
    """Move x to sigma = `strength` on the straight path and integrate the flow back in Euler steps."""
    scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=TRAIN_STEPS)
    sigmas = torch.linspace(strength, strength / inference_steps, inference_steps)
    scheduler.set_timesteps(sigmas=sigmas.tolist())
    noise = torch.randn(x.shape, generator=generator)
    x = (1 - strength) * x + strength * noise
    for timestep in scheduler.timesteps:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            prediction = unet(x.contiguous(memory_format=torch.channels_last), timestep.expand(len(x))).sample.float()
        x = scheduler.step(prediction, timestep, x).prev_sample
    return x
