"""The frozen diffusion prior: `NoisePrior.noise(x, step)` is the noise that a pre-trained model predicts in an image."""

import math
from pathlib import Path

import torch

from anl.io import UserError, pick
from anl.models.generators.diffusion import TRAIN_STEPS, build_unet, draw_noise, noise_prediction_loss, noise_scheduler
from anl.models.precision import DTYPES, autocast
from anl.models.prior_loading import locate, read_prior

__all__ = ["NoisePrior", "build_prior", "save_prior", "training_loss"]


class NoisePrior:
    """A frozen diffusion model: one interface for epsilon, v and sample prediction, on pixels or latents.

    `z` is in the prior's own space: the image itself for a pixel prior, `encode(x)` for a latent one. Steps count from 1
    to T, as in the paper; diffusers' timestep is `step - 1`.

    Parameters
    ----------
    unet, scheduler, vae
        diffusers models; `vae` for a latent prior.
    prompt : Tensor, optional
        Embedding of the empty prompt, (1, L, D), for a UNet conditioned on text.
    device : torch.device or str, optional
        Default: the UNet's device.
    precision : {"bf16", "fp16", "fp32"}
        Autocast precision of the UNet. Weights, latents and results are always float32.
    """

    def __init__(self, unet, scheduler, device=None, precision="bf16", vae=None, prompt=None):
        self.device = torch.device(device) if device is not None else next(unet.parameters()).device
        self.precision = pick("precision", precision, DTYPES)
        self.scheduler = scheduler
        self.unet = unet.eval().requires_grad_(False).to(self.device, memory_format=torch.channels_last)
        self.vae = vae if vae is None else vae.eval().requires_grad_(False).to(self.device)
        self.prompt = prompt if prompt is None else prompt.detach().to(self.device)
        self.steps = scheduler.config.num_train_timesteps  # T
        self.alphas_cumprod = scheduler.alphas_cumprod.double()  # (T,), on the CPU
        self._scales = [(math.sqrt(a), math.sqrt(1 - a)) for a in self.alphas_cumprod.tolist()]
        self.prediction_type = getattr(scheduler.config, "prediction_type", "epsilon")
        self.channels = unet.config.in_channels  # of z; its cells have `factor` image pixels on a side
        self.factor = 1 if vae is None else 2 ** (len(vae.config.block_out_channels) - 1)

    @classmethod
    def load(cls, source, device=None, precision="bf16", revision=None):
        """Load a prior from a diffusers folder, a preset or the hub; see `anl.models.prior_loading.locate`."""
        unet, scheduler, vae, prompt = read_prior(*locate(source, revision))
        return cls(unet, scheduler, device, precision, vae, prompt)

    def check_step(self, step):
        """`step` as an int. Raises UserError if it is not a whole number from 1 to T."""
        if isinstance(step, bool) or step != int(step) or not 1 <= step <= self.steps:
            raise UserError(f"step {step} is not one of the prior's steps 1 to {self.steps}; correct the step")
        return int(step)

    def check_size(self, side):
        """`side` (pixels). Raises UserError if a crop of that side does not fit the network's downsampling."""
        unit = self.factor * 2 ** (len(self.unet.config.block_out_channels) - 1)
        if side < unit or side % unit:
            raise UserError(f"a crop of {side} pixels does not fit the prior, whose network needs a multiple of "
                            f"{unit}; change the crop's size: crops are never resized")
        return side

    def notes(self, side):
        """Sentences a user should read before using this prior on crops of `side` pixels; often none."""
        found = []
        trained = self.unet.config.sample_size
        trained = max(trained) if isinstance(trained, (list, tuple)) else trained
        if trained is not None and trained * self.factor != side:
            found.append(f"The prior was made for images of {trained * self.factor} pixels and sees crops of {side}: "
                         "it gets the detector's crop as it is, never a resized copy.")
        if self.prediction_type == "sample" and self.precision != "fp32":
            found.append(f"The prior predicts the clean image, and rounding it to {self.precision} becomes large noise "
                         "at the first steps; use precision fp32.")
        return found

    @torch.no_grad()
    def encode(self, x):
        """Images (B, 3, H, W) in [-1, 1] -> z (B, channels, H / factor, W / factor); x itself for a pixel prior.

        For a latent prior this is the mode of the autoencoder's posterior, (mode - shift_factor) * scaling_factor, in
        float32, because half precision overflows in some autoencoders.
        """
        if self.vae is None:
            return x
        config = self.vae.config
        mode = self.vae.encode(x.to(self.device).float()).latent_dist.mode()
        return ((mode - (config.shift_factor or 0)) * config.scaling_factor).to(x.device)

    def noise(self, x, step):
        """The noise that the prior predicts in clean images at `step`, by one network call; no noise is added to them.

        Parameters
        ----------
        x : Tensor
            (B, 3, H, W), RGB, [-1, 1].
        step : int
            From 1 to T.

        Returns
        -------
        Tensor
            float32 (B, channels, H / factor, W / factor) on x's device.

        Raises
        ------
        UserError
            If the step or the size does not fit, or the result is not finite.
        """
        for side in x.shape[2:]:
            self.check_size(side)
        return self.epsilon(self.encode(x), step)

    def epsilon(self, z, step):
        """The noise that the prior predicts in z at `step`. (B, channels, h, w) -> the same, float32, on z's device."""
        return self._estimate(z, step)[0]

    def denoise(self, noised, step):
        """The clean z that the prior estimates from `noised` = sqrt(a) z + sqrt(1 - a) n (Ho et al. 2020, eq. 15)."""
        return self._estimate(noised, step)[1]

    def forward_noise(self, z, step, generator):
        """z noised to `step`, and the noise, drawn from the CPU `generator`; both on z's device."""
        signal, sigma = self._scales[self.check_step(step) - 1]
        noise = draw_noise(z.shape, generator, z.device)
        return signal * z + sigma * noise, noise

    def predict(self, z, timestep):
        """The network's prediction (of the kind `prediction_type`) for z (B, channels, h, w); has gradients.

        timestep: diffusers' timestep, int or Tensor (B,), from 0 to T - 1. Returns float32, like z, on z's device.
        """
        inputs = z.to(self.device, memory_format=torch.channels_last)
        prompt = () if self.prompt is None else (self.prompt.expand(len(z), -1, -1),)
        with autocast(self.device, self.precision):
            prediction = self.unet(inputs, timestep, *prompt).sample
        return prediction[:, :self.channels].float().contiguous().to(z.device)  # drops learned variances

    @torch.no_grad()
    def _estimate(self, z, step):
        """Noise and clean z from one prediction p (Salimans & Ho 2022, appendix D), both float32.

        With a = alphas_cumprod, the noise is p for epsilon, sqrt(a) p + sqrt(1 - a) z for v, (z - sqrt(a) p) / sqrt(1 -
        a) for the clean image. The last two are computed in float64: at the first steps sqrt(1 - a) is only 0.01.
        """
        signal, sigma = self._scales[self.check_step(step) - 1]
        prediction = self.predict(z, int(step) - 1)
        check_finite(prediction, step, self.precision)
        if self.prediction_type == "epsilon":
            return prediction, (z - sigma * prediction) / signal
        p, z = prediction.double(), z.double()
        if self.prediction_type == "v_prediction":
            return (signal * p + sigma * z).float(), (signal * z - sigma * p).float()
        return ((z - signal * p) / sigma).float(), prediction


def check_finite(noise, step, precision):
    """Raise UserError if the prior's output holds NaN or infinite numbers."""
    if not torch.isfinite(noise).all():
        raise UserError(f"the prior's noise at step {step} holds NaN or infinite numbers in {precision}; use precision "
                        "fp32, or look for such numbers in the images")


def build_prior(channels, layers_per_block):
    """An untrained pixel prior: a UNet that differs from the generators' (GELU, scale-and-shift time embedding)."""
    return build_unet(channels, layers_per_block, act_fn="gelu", resnet_time_scale_shift="scale_shift")


def save_prior(unet, folder):
    """Write a UNet trained here with the schedule it was trained on, in the layout of diffusers' DDPMPipeline."""
    unet.eval().save_pretrained(Path(folder) / "unet")
    noise_scheduler().save_pretrained(Path(folder) / "scheduler")


def training_loss(objective, step=None):
    """The training loss of a prior, or of a denoiser that serves as a control.

    Parameters
    ----------
    objective : {"diffusion", "denoiser", "blind_denoiser"}
        `diffusion` trains a DDPM on its whole schedule (Ho et al. 2020, eq. 14), `denoiser` on the single `step`, and
        `blind_denoiser` on the steps 1 to `step`, where the network always gets `step` as its input. A trained denoiser
        is used as `NoisePrior.noise(x, step)`.
    step : int, optional
        From 1 to T; for the denoisers.

    Returns
    -------
    callable
        (unet, x, generator) -> scalar Tensor.
    """
    last = TRAIN_STEPS - 1 if objective == "diffusion" else step - 1
    first = last if objective == "denoiser" else 0

    def loss(unet, x, generator):
        blind = objective == "blind_denoiser"
        model = (lambda noised, timestep: unet(noised, torch.full_like(timestep, last))) if blind else unet
        return noise_prediction_loss(model, x, generator, first, last)

    return loss
