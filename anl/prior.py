"""The frozen diffusion prior: one call that tells what noise it sees in an image at one step.

Pixel or latent, whatever its network was trained to predict, behind one interface: nothing downstream asks which it is.
"""

import torch

from anl.errors import UserError
from anl.prior_folder import find, read_folder

DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
# epsilon from what the network predicts at x_t = sqrt(a) x_0 + sqrt(1 - a) epsilon: `sample` is x_0, and
# v = sqrt(a) epsilon - sqrt(1 - a) x_0 (Salimans & Ho, 2022, eq. 7 and appendix D)
TO_EPSILON = {
    "epsilon": lambda prediction, x, a: prediction,
    "v_prediction": lambda prediction, x, a: a.sqrt().float() * prediction + (1 - a).sqrt().float() * x,
    "sample": lambda prediction, x, a: (x - a.sqrt().float() * prediction) / (1 - a).sqrt().float(),
}


class NoisePrior:
    """A frozen diffusion model. Its space is that of its noise: the pixels, or the latents of its VAE.

    Steps are the paper's, 1-based; diffusers' timestep is `step - 1`. The weights do not require gradients, the models
    are in eval mode, and every call runs under no_grad. channels, factor: channels of the noise, and image pixels on a
    side of one of its cells (1 for a pixel prior, 8 for most latent ones). steps: T.
    """

    def __init__(self, unet, scheduler, device="cpu", precision="bf16", vae=None, prompt=None):
        """unet, scheduler, vae: of diffusers. prompt: (1, L, D), the embedding of the empty prompt. precision: fp32,
        bf16 or fp16, what the network computes in; the VAE always computes in fp32."""
        if precision not in DTYPES:
            raise UserError(f"there is no precision '{precision}'; choose one of {', '.join(DTYPES)}")
        prediction_type = scheduler.config.get("prediction_type", "epsilon")
        if prediction_type not in TO_EPSILON:
            raise UserError(f"a prior that predicts '{prediction_type}' is not supported; its scheduler's prediction_type "
                            f"must be one of {', '.join(TO_EPSILON)}")
        self.device, self.dtype = torch.device(device), DTYPES[precision]
        self.unet = unet.eval().requires_grad_(False).to(device, memory_format=torch.channels_last)
        self.vae = None if vae is None else vae.eval().requires_grad_(False).to(device)
        self.prompt = None if prompt is None else prompt.to(device)
        self.to_epsilon = TO_EPSILON[prediction_type]
        self.steps = scheduler.config.num_train_timesteps
        self.alphas_cumprod = scheduler.alphas_cumprod.double()
        self.channels = unet.config.in_channels
        self.factor = 1 if vae is None else 2 ** (len(vae.config.block_out_channels) - 1)

    @classmethod
    def load(cls, source, device="cpu", precision="bf16"):
        """Load from a diffusers folder, a hub id with its commit (`owner/name@<40 hex digits>`) or a preset's name.

        The folder holds `unet/` and `scheduler/`, a latent prior's also `vae/` and the empty prompt (see
        anl.prior_folder). Raises UserError on one that lacks something or cannot serve.
        """
        return cls(**read_folder(find(source)), device=device, precision=precision)

    def check_step(self, step):
        """Return `step` as an int, or raise UserError if it is not a whole number from 1 to T."""
        if isinstance(step, bool) or step != int(step) or not 1 <= step <= self.steps:
            raise UserError(f"step {step} is not one of the prior's steps 1 to {self.steps}; mend `step` or `steps`")
        return int(step)

    def check_size(self, side):
        """Raise UserError if the prior cannot take images of `side` pixels: they are never resized for it."""
        multiple = self.factor * 2 ** (len(self.unet.config.block_out_channels) - 1)
        if side % multiple:
            raise UserError(f"the prior takes images whose sides are multiples of {multiple} pixels, not {side}; change "
                            "benchmark.size or take another prior")

    def alpha(self, step):
        """The schedule's cumulative alpha at `step`, a float64 scalar: x_t = sqrt(alpha) x_0 + sqrt(1 - alpha) epsilon."""
        return self.alphas_cumprod[self.check_step(step) - 1]

    def sigma(self, step):
        """Standard deviation of the noise that the forward process has added at `step`, in units of the prior's space
        (of half the range, for a pixel prior)."""
        return float((1 - self.alpha(step)).sqrt())

    @torch.no_grad()
    def encode(self, x):
        """Images (B, 3, H, W) in [-1, 1] in the prior's space, (B, C, H/k, W/k): as they are, or the mode of the VAE's
        posterior, scaled as the prior was trained."""
        if self.vae is None:
            return x
        shift = self.vae.config.get("shift_factor") or 0.0
        latent = self.vae.encode(x.to(self.device)).latent_dist.mode()
        return ((latent - shift) * self.vae.config.scaling_factor).to(x.device)

    def noise(self, x, step):
        """The noise the prior sees in x at `step`: one call on the clean image, nothing added.

        x: (B, 3, H, W) in [-1, 1]; returns float32 (B, C, H/k, W/k) on x's device.
        """
        return self.noise_in(self.encode(x), step)

    @torch.no_grad()
    def noise_in(self, z, step):
        """The noise the prior sees at `step` in z, (B, C, h, w) of its own space, as it is; float32, z's shape."""
        alpha, inputs = self.alpha(step), z.to(self.device, memory_format=torch.channels_last)
        condition = {} if self.prompt is None else {"encoder_hidden_states": self.prompt.expand(len(z), -1, -1)}
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None):
            prediction = self.unet(inputs, step - 1, **condition).sample
        prediction = prediction[:, :self.channels].float()  # a learned variance, if any, is left out
        return self.to_epsilon(prediction, inputs, alpha).contiguous().to(z.device)

    @torch.no_grad()
    def denoise(self, noised, step):
        """The clean z the prior expects behind `noised` = sqrt(a) z + sqrt(1 - a) n at `step` (Ho et al., eq. 15)."""
        alpha = self.alpha(step)
        return (noised - (1 - alpha).sqrt().float() * self.noise_in(noised, step)) / alpha.sqrt().float()

    def add_noise(self, z, noise, step):
        """z of the prior's space with `noise` of its shape added as the forward process does at `step`."""
        alpha = self.alpha(step)
        return alpha.sqrt().float() * z + (1 - alpha).sqrt().float() * noise

    def forward_noise(self, z, step, generator):
        """z noised to `step` and the noise used, drawn from `generator`."""
        noise = torch.randn(z.shape, generator=generator)
        return self.add_noise(z, noise, step), noise
