"""The frozen diffusion prior: one call that tells what noise it sees in an image at one step."""

import torch

from anl import prior_parts
from anl.errors import UserError
from anl.prior_source import locate

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class NoisePrior:
    """A frozen diffusion model behind one interface, whatever it predicts and whether it works on pixels or latents.

    Steps are the paper's, 1-based; diffusers' timestep is `step - 1`. The weights do not require gradients, the model
    is in eval mode, and every call runs under no_grad. Everything about a `z` is in the prior's own space: the image
    for a pixel prior, `encode(x)` for a latent one.

    steps: length T of the schedule. alphas_cumprod: float64 (T,). channels: of z and of the noise. factor: image pixels
    per cell of z (1 for pixels, 8 for Stable Diffusion). precision: see `load`.
    """

    def __init__(self, unet, scheduler, device="cpu", precision="bf16", vae=None, prompt=None):
        """unet, scheduler and, for latents, vae: diffusers models; prompt: the empty prompt's embedding (1, L, D)."""
        self.device = torch.device(device)
        self.precision = _precision(precision)
        self.unet = unet.eval().requires_grad_(False).to(device, memory_format=torch.channels_last)
        self.vae = vae if vae is None else vae.eval().requires_grad_(False).to(device)
        self.prompt = prompt if prompt is None else prompt.detach().to(device)
        self.steps = scheduler.config.num_train_timesteps
        self.alphas_cumprod = scheduler.alphas_cumprod.double()
        self.prediction_type = getattr(scheduler.config, "prediction_type", "epsilon")
        self.channels = unet.config.in_channels
        self.factor = 1 if vae is None else 2 ** (len(vae.config.block_out_channels) - 1)

    @classmethod
    def load(cls, source, device="cpu", precision="bf16", revision=None):
        """Load a prior and check it.

        source: a diffusers folder, a name of anl.prior_presets, or a hub id `owner/name`; revision: the full commit of a
        hub id (anl.prior_source). precision: what the network computes in, `bf16` and `fp16` by autocast, `fp32` without;
        weights, latents and results are float32 anyhow.
        Raises UserError if it cannot be found, is damaged or is no model this class knows (anl.prior_parts).
        """
        _precision(precision)  # before a download
        unet, scheduler, vae, prompt = prior_parts.read(*locate(source, revision))
        return cls(unet, scheduler, device, precision, vae, prompt)

    def check_step(self, step):
        """Return `step` as an int, or raise UserError if it is not a whole number from 1 to T."""
        if isinstance(step, bool) or step != int(step) or not 1 <= step <= self.steps:
            raise UserError(f"step {step} is not one of the prior's steps 1 to {self.steps}; mend `step` or `steps`")
        return int(step)

    def check_size(self, side):
        """Return `side` (pixels), or raise UserError if a crop of that side does not fit the network's halvings."""
        unit = self.factor * 2 ** (len(self.unet.config.block_out_channels) - 1)
        if side < unit or side % unit:
            raise UserError(f"a crop of {side} pixels does not fit the prior, whose network asks for a multiple of {unit}; "
                            "mend the crop's size: it is never resized")
        return side

    def notes(self, side):
        """What a user should know before using this prior on crops of `side` pixels: a list of sentences, often empty."""
        found = []
        trained = self.unet.config.sample_size
        trained = max(trained) if isinstance(trained, (list, tuple)) else trained
        if trained is not None and trained * self.factor != side:
            found.append(f"The prior is made for images of {trained * self.factor} pixels and sees crops of {side}: it gets "
                         "the detector's crop as it is, never a resized copy.")
        if self.prediction_type == "sample" and self.precision != "fp32":
            found.append(f"The prior predicts the clean image, and {self.precision} rounding of it becomes large noise at "
                         "the first steps; use precision fp32.")
        return found

    def sigma(self, step):
        """Standard deviation of the noise that the forward process has added at `step`, in units of z (half range)."""
        return float((1 - self.alphas_cumprod[self.check_step(step) - 1]).sqrt())

    @torch.no_grad()
    def encode(self, x):
        """Images in the prior's own space: (B, 3, H, W) in [-1, 1] -> (B, channels, H / factor, W / factor).

        x itself for a pixel prior. For a latent one the mode of the autoencoder's posterior, scaled as the UNet expects
        it ((mode - shift_factor) * scaling_factor), in float32: half precision overflows in some autoencoders.
        """
        if self.vae is None:
            return x
        config = self.vae.config
        mode = self.vae.encode(x.to(self.device).float()).latent_dist.mode()
        return ((mode - (config.shift_factor or 0)) * config.scaling_factor).to(x.device)

    def noise(self, x, step, precision=None):
        """The noise the prior sees in x at `step`: one call on the clean image, nothing added.

        x: (B, 3, H, W) in [-1, 1]; returns float32 (B, channels, H / factor, W / factor) on x's device. precision:
        instead of the prior's own, for this call. Raises UserError if the step or the size does not fit.
        """
        for side in x.shape[2:]:
            self.check_size(side)
        return self.epsilon(self.encode(x), step, precision)

    def epsilon(self, z, step, precision=None):
        """The noise the prior sees in z at `step`. (B, channels, h, w) -> the same, float32, on z's device."""
        return self._estimate(z, step, precision)[0]

    def denoise(self, noised, step, precision=None):
        """The clean z the prior expects behind `noised` = sqrt(a) z + sqrt(1 - a) n at `step` (Ho et al., eq. 15)."""
        return self._estimate(noised, step, precision)[1]

    def forward_noise(self, z, step, generator):
        """z noised to `step` and the noise used, drawn from `generator`."""
        alpha = self.alphas_cumprod[self.check_step(step) - 1]
        noise = torch.randn(z.shape, generator=generator)
        return alpha.sqrt().float() * z + (1 - alpha).sqrt().float() * noise, noise

    @torch.no_grad()
    def _estimate(self, z, step, precision):
        """The noise and the clean image of one prediction p (Salimans & Ho 2022, appendix D), each a float32 tensor.

        With a = alphas_cumprod: eps = p, sqrt(a) p + sqrt(1 - a) z for v, (z - sqrt(a) p) / sqrt(1 - a) for the image.
        """
        alpha = self.alphas_cumprod[self.check_step(step) - 1]
        signal, sigma = alpha.sqrt(), (1 - alpha).sqrt()
        prediction = self._predict(z, step, precision)
        if self.prediction_type == "epsilon":  # in float32, which the cached targets were made with
            return prediction, (z - sigma.float() * prediction) / signal.float()
        p, z, signal, sigma = prediction.double(), z.double(), float(signal), float(sigma)
        if self.prediction_type == "v_prediction":
            return (signal * p + sigma * z).float(), (signal * z - sigma * p).float()
        return ((z - signal * p) / sigma).float(), prediction

    def _predict(self, z, step, precision):
        """The network's own output at `step`, without a learned variance: float32 (B, channels, h, w) on z's device."""
        precision = self.precision if precision is None else _precision(precision)
        dtype = PRECISIONS[precision]
        inputs = z.to(self.device, memory_format=torch.channels_last)
        prompt = () if self.prompt is None else (self.prompt.expand(len(z), -1, -1),)
        with torch.autocast(self.device.type, dtype or torch.bfloat16, enabled=dtype is not None):
            prediction = self.unet(inputs, self.check_step(step) - 1, *prompt).sample
        prediction = prediction[:, :self.channels].float().contiguous().to(z.device)
        if not torch.isfinite(prediction).all():
            raise UserError(f"the prior's noise at step {step} holds NaN or infinite numbers in {precision}; use precision "
                            "fp32, or look for such numbers in the images")
        return prediction


def _precision(value):
    if value not in PRECISIONS:
        raise UserError(f"precision '{value}' is unknown; choose one of {', '.join(PRECISIONS)}")
    return value
