"""The frozen diffusion prior: one call that tells what noise it sees in an image at one step."""

from pathlib import Path

import torch
from diffusers import DDPMScheduler, UNet2DModel

from anl import seeds
from anl.data.patches import CropSampler
from anl.errors import UserError
from anl.files import write_csv
from anl.fitting import Checkpoint, fit
from anl.generators.diffusion import epsilon_loss, noise_scheduler


def build(channels, layers_per_block):
    """An untrained prior: a convolutional UNet whose time embedding scales and shifts (no generator here is built so)."""
    return UNet2DModel(in_channels=3, out_channels=3, layers_per_block=layers_per_block,
                       block_out_channels=tuple(channels), norm_num_groups=8, add_attention=False, act_fn="gelu",
                       resnet_time_scale_shift="scale_shift", down_block_types=("DownBlock2D",) * len(channels),
                       up_block_types=("UpBlock2D",) * len(channels))


def fit_prior(sources, config, out, *, seed, cache):
    """Train a DDPM (Ho et al. 2020) over all its steps on uint8 images at the detector's scale; save it under `out`.

    config: a profile's `prior` mapping (channels, layers_per_block, crop, batch_size, steps, learning_rate, ema).
    Saved in the layout of diffusers' DDPMPipeline, so that any other such folder can stand in its place.
    """
    seeds.fix(seed, "prior")
    sampler = CropSampler(sources, config["crop"], config["batch_size"], seed, "prior")
    unet = build(config["channels"], config["layers_per_block"]).to(memory_format=torch.channels_last).train()
    checkpoint = Checkpoint(cache, "prior", {"config": config, "seed": seed, "sources": len(sources)})
    curve = fit({"prior": unet}, lambda k: epsilon_loss(unet, sampler.batch(k), seeds.torch_generator(seed, "prior", k)),
                steps=config["steps"], learning_rate=config["learning_rate"], checkpoint=checkpoint, name="prior",
                ema=config["ema"])
    unet.eval().save_pretrained(Path(out) / "unet")
    noise_scheduler().save_pretrained(Path(out) / "scheduler")
    write_csv(Path(out) / "curve.csv", [{"step": step, "loss": value} for step, value in curve])
    checkpoint.remove()


class NoisePrior:
    """A frozen pixel-space diffusion model behind one interface.

    Steps are the paper's, 1-based; diffusers' timestep is `step - 1`. The weights do not require gradients, the model
    is in eval mode, and every call runs under no_grad.
    """

    def __init__(self, unet, scheduler, device="cpu"):
        self.unet = unet.eval().requires_grad_(False).to(device, memory_format=torch.channels_last)
        self.steps = scheduler.config.num_train_timesteps
        self.alphas_cumprod = scheduler.alphas_cumprod.double()
        self.device = torch.device(device)

    @classmethod
    def load(cls, folder, device="cpu"):
        """Load from a diffusers pipeline folder (`unet/`, `scheduler/`). Raises UserError if it is not one."""
        folder = Path(folder)
        try:
            unet = UNet2DModel.from_pretrained(folder / "unet", use_safetensors=True, local_files_only=True)
            scheduler = DDPMScheduler.from_pretrained(folder / "scheduler", local_files_only=True)
        except (OSError, ValueError) as problem:
            raise UserError(f"{folder} holds no diffusion prior ({str(problem).splitlines()[0]}); get it with "
                            "`dvc pull prior` or make it with `anl prior`") from None
        return cls(unet, scheduler, device)

    def check_step(self, step):
        """Return `step` as an int, or raise UserError if it is not a whole number from 1 to T."""
        if isinstance(step, bool) or step != int(step) or not 1 <= step <= self.steps:
            raise UserError(f"step {step} is not one of the prior's steps 1 to {self.steps}; mend `step` or `steps`")
        return int(step)

    def sigma(self, step):
        """Standard deviation of the noise that the forward process has added at `step`, in units of x (half range)."""
        return float((1 - self.alphas_cumprod[self.check_step(step) - 1]).sqrt())

    @torch.no_grad()
    def noise(self, x, step, autocast=True):
        """The noise the prior sees in x at `step`: one call on the clean image, nothing added.

        x: (B, 3, H, W) in [-1, 1]; returns float32 (B, 3, H, W) on x's device. autocast: bfloat16 inside the network.
        """
        timestep = self.check_step(step) - 1
        inputs = x.to(self.device, memory_format=torch.channels_last)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=autocast):
            prediction = self.unet(inputs, timestep).sample
        return prediction[:, :3].float().contiguous().to(x.device)  # a learned variance, if any, is left out

    @torch.no_grad()
    def denoise(self, noised, step):
        """The clean image the prior expects behind `noised` = sqrt(a) x + sqrt(1 - a) n at `step` (Ho et al., eq. 15)."""
        alpha = self.alphas_cumprod[self.check_step(step) - 1]
        return (noised - (1 - alpha).sqrt().float() * self.noise(noised, step)) / alpha.sqrt().float()

    def forward_noise(self, x, step, generator):
        """x noised to `step` and the noise used, drawn from `generator`."""
        alpha = self.alphas_cumprod[self.check_step(step) - 1]
        noise = torch.randn(x.shape, generator=generator)
        return alpha.sqrt().float() * x + (1 - alpha).sqrt().float() * noise, noise
