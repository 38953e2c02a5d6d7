"""Pixel diffusion, latent diffusion and flow matching: networks, losses, and samplers from an image or from noise.

To sample from an image (SDEdit: Meng et al., ICLR 2022), it is noised to a fraction `strength` of the schedule and
denoised from there. Its content is kept, and the model's fingerprint is added.

Every `generator` here is a CPU torch.Generator, or a list with one for each image of the batch; a list makes an image
independent of the batch it is in. Draws are made on the CPU and moved, so they are the same for every device.
"""

import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    UNet2DModel,
)
from diffusers.utils.torch_utils import randn_tensor

from anl.models.precision import autocast

TRAIN_STEPS = 1000  # length of every diffusion schedule here (Ho et al. 2020)
SAMPLERS = {"ddim": DDIMScheduler, "ddpm": DDPMScheduler, "dpm": DPMSolverMultistepScheduler}


def build_unet(channels, layers_per_block, in_channels=3, **options):
    """A convolutional UNet without attention, because it is trained on small crops and run on larger ones."""
    return UNet2DModel(in_channels=in_channels, out_channels=in_channels, layers_per_block=layers_per_block,
                       block_out_channels=tuple(channels), norm_num_groups=8, add_attention=False,
                       down_block_types=("DownBlock2D",) * len(channels), up_block_types=("UpBlock2D",) * len(channels),
                       **options)


def noise_scheduler(sampler="ddpm", clip=False):
    """The linear schedule of Ho et al. (2020), beta from 1e-4 to 2e-2, epsilon prediction, for one of `SAMPLERS`.

    `dpm` is DPM-Solver++ of second order (Lu et al., NeurIPS 2022). clip: keep the estimated clean image of each step
    in [-1, 1] (`ddim` and `ddpm` only).
    """
    extra = {} if sampler == "dpm" else {"clip_sample": clip}
    return SAMPLERS[sampler](num_train_timesteps=TRAIN_STEPS, beta_start=1e-4, beta_end=2e-2, beta_schedule="linear",
                             timestep_spacing="leading", **extra)


def draw_noise(shape, generator, device):
    """Standard normal noise, drawn on the CPU from one generator or one for each image, moved to `device`."""
    return randn_tensor(tuple(shape), generator=generator, device=torch.device("cpu")).to(device)


def noise_prediction_loss(unet, x, generator, first=0, last=TRAIN_STEPS - 1, precision="bf16"):
    """Mean squared error of the noise predicted in x (B, C, H, W), images or latents (Ho et al. 2020, eq. 14).

    Timesteps are drawn uniformly from `first` to `last`, inclusive.
    """
    timestep = torch.randint(first, last + 1, (len(x),), generator=generator).to(x.device)
    noise = draw_noise(x.shape, generator, x.device)
    prediction = _predict(unet, noise_scheduler().add_noise(x, noise, timestep), timestep, precision)
    return (prediction - noise).square().mean()


def flow_loss(unet, x, generator, max_strength=1.0, precision="bf16"):
    """Flow matching on straight paths (Lipman et al. 2023): predict `noise - x` at sigma below `max_strength`."""
    sigma = (torch.rand(len(x), generator=generator) * max_strength).to(x.device)
    noise = draw_noise(x.shape, generator, x.device)
    s = sigma[:, None, None, None]
    prediction = _predict(unet, (1 - s) * x + s * noise, sigma * TRAIN_STEPS, precision)
    return (prediction - (noise - x)).square().mean()


@torch.no_grad()
def denoise_from(unet, x, generator, *, sampler, strength, inference_steps, mask=None, precision="bf16"):
    """Noise an image to `strength` of the schedule and denoise it, everywhere or where `mask` is true.

    With a mask, the known part is replaced after every step by the image at that step's noise (Lugmayr et al., CVPR
    2022, eq. 8), so that the regenerated part fits it.

    Parameters
    ----------
    x : Tensor
        (B, C, H, W), images in [-1, 1] or latents; so is the result, not clipped.
    sampler : str
        A key of `SAMPLERS`.
    strength : float
        Share of the schedule that is run, in (0, 1].
    inference_steps : int
        Network calls.
    mask : bool Tensor (B, 1, H, W), optional
        True where the image is regenerated.
    """
    scheduler = noise_scheduler(sampler)
    scheduler.set_timesteps(min(TRAIN_STEPS, round(inference_steps / strength)))
    if sampler == "dpm":
        scheduler.set_begin_index(len(scheduler.timesteps) - inference_steps)
    timesteps = scheduler.timesteps[-inference_steps:]

    def noised(timestep):
        return scheduler.add_noise(x, draw_noise(x.shape, generator, x.device), timestep.expand(len(x)))

    made = noised(timesteps[0])
    for timestep, following in zip(timesteps, [*timesteps[1:], None], strict=True):
        prediction = _predict(unet, made, timestep, precision)
        made = scheduler.step(prediction, timestep, made, generator=generator).prev_sample
        if mask is not None:
            made = torch.where(mask, made, x if following is None else noised(following))
    return made


@torch.no_grad()
def sample(unet, shape, generator, *, sampler, inference_steps, precision="bf16"):
    """Images (B, C, H, W) from noise alone, on the UNet's device; the model must be trained on the whole schedule.

    `ddim` and `ddpm` clip the clean image at each step: without that a small model's errors add up to saturated
    colours.
    """
    scheduler = noise_scheduler(sampler, clip=True)
    scheduler.set_timesteps(inference_steps)
    x = draw_noise(shape, generator, next(unet.parameters()).device)
    for timestep in scheduler.timesteps:
        x = scheduler.step(_predict(unet, x, timestep, precision), timestep, x, generator=generator).prev_sample
    return x


@torch.no_grad()
def flow_from(unet, x, generator, *, strength, inference_steps, precision="bf16"):
    """Move x (B, C, H, W) to sigma = `strength` on the straight path and integrate the flow back in Euler steps."""
    scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=TRAIN_STEPS)
    scheduler.set_timesteps(sigmas=torch.linspace(strength, strength / inference_steps, inference_steps).tolist())
    x = (1 - strength) * x + strength * draw_noise(x.shape, generator, x.device)
    for timestep in scheduler.timesteps:
        velocity = _predict(unet, x, timestep.expand(len(x)).to(x.device), precision)
        x = scheduler.step(velocity, timestep, x).prev_sample
    return x


def random_boxes(count, side, shares, generator):
    """Boolean masks (count, 1, side, side) on the CPU, each true in a box of `shares[0]` to `shares[1]` of the area."""
    generators = generator if isinstance(generator, (list, tuple)) else [generator] * count
    masks = torch.zeros(count, 1, side, side, dtype=torch.bool)
    for mask, draws in zip(masks, generators, strict=True):
        share, stretch, down, right = torch.rand(4, generator=draws).tolist()
        share = shares[0] + (shares[1] - shares[0]) * share
        height = round(side * share ** (0.3 + 0.4 * stretch))  # of the side: share ** (0.3 to 0.7)
        width = round(share * side * side / height)
        top, left = round(down * (side - height)), round(right * (side - width))
        mask[0, top:top + height, left:left + width] = True
    return masks


def _predict(unet, x, timestep, precision):
    with autocast(x.device, precision):
        return unet(x.contiguous(memory_format=torch.channels_last), timestep).sample.float()
