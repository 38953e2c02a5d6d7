"""Noise targets: what a detector learns to predict, computed once with frozen networks and cached.

The method's target is the prior's noise on the clean image over its standard deviation on the training images. No noise
is added to the image, so that a network that sees only the image can predict the target. Controls show what causes
a gain.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from anl import seeds
from anl.io import UserError, atomic_file, identity
from anl.models.baselines.cache import weights_hash

__all__ = ["KINDS", "LiveTargets", "Normaliser", "Target", "compute_targets", "derangement", "fit_normaliser",
           "haar_residual", "highpass", "load_targets", "make_target"]

KINDS = ("prior", "multistep", "ensemble", "noised", "error", "shuffled", "highpass", "random", "wavelet", "denoiser",
         "blind_denoiser", "ffdnet")
GAUSSIAN_MAD = 0.6745  # median absolute value of a standard normal variable
RANDOM_WIDTH = 16
# settings of a MethodConfig that decide a kind
SETTINGS = {"multistep": ("multistep",), "error": ("error_draws",), "wavelet": ("wavelet_levels", "wavelet_threshold"),
            "ffdnet": ("noise_level",)}


@dataclass(frozen=True)
class Target:
    """A noise target before scaling.

    Attributes
    ----------
    kind : str
        One of `KINDS`.
    function : callable (x, names) -> Tensor
        Images (B, 3, H, W) in [-1, 1] and their B names -> (B, C, h, w) on x's device. Images of one name share their
        random draws: give a real image and its regeneration the same.
    about : dict
        JSON-able: all that decides the result except the images.
    members : int
        Targets stacked along the channels; each is scaled by itself.
    average : bool
        Whether the members are averaged after that.
    """

    kind: str
    function: Callable
    about: dict = field(default_factory=dict)
    members: int = 1
    average: bool = False

    @torch.no_grad()
    def __call__(self, x, names):
        return self.function(x, names)


def make_target(kind, prior, step, settings=None, *, seed, second=None, network=None):
    """Build a noise target.

    Parameters
    ----------
    kind : str
        - `prior`: the prior's noise at `step`. For another prior, pass that one.
        - `multistep`: the same at several multiples of `step`, stacked.
        - `ensemble`: mean of the noise of `prior` and `second`, each in its own standard deviation.
        - `noised`: the prior's noise on the image with a draw of noise added.
        - `error`: squared error of that prediction, a mean over draws [1]_.
        - `shuffled`: the prior's noise of another image of the same split.
        - `highpass`: what a 3 x 3 binomial filter removes. `wavelet`: what thresholding Haar coefficients removes [2]_.
          `random`: output of a frozen random network.
        - `denoiser`, `blind_denoiser`: `network(x)`, the noise that it predicts.
        - `ffdnet`: what `network(y, sigma)` removes from y in [0, 1]; sigma (B, 1, 1, 1).
    prior : anl.models.prior.NoisePrior or None
        None for the kinds of the last three lines.
    step : int
        1-based diffusion step.
    settings : anl.config.MethodConfig or None
        Its multistep, error_draws, noise_level, wavelet_levels and wavelet_threshold are used by the kinds they name.
    seed : int
        Random draws, weights of `random`, order of `shuffled`.
    second : NoisePrior or None
        The other member of `ensemble`.
    network : callable or None
        A frozen network on the device of the images. Its weights are part of the cache key if it is an nn.Module or a
        NoisePrior (called at `step`); targets of another callable are computed again each time.

    Raises
    ------
    UserError
        If the kind is unknown, something it needs is missing, or the step is not one of the prior's.

    References
    ----------
    .. [1] Luo et al., "LaRE^2: Latent reconstruction error based method", CVPR 2024.
    .. [2] Donoho and Johnstone, "Ideal spatial adaptation by wavelet shrinkage", Biometrika 1994.
    """
    if kind not in KINDS:
        raise UserError(f"unknown noise target '{kind}' in method.target; choose one of {', '.join(KINDS)}")
    about = {"kind": kind, **{name: getattr(settings, name) for name in SETTINGS.get(kind, ())}}
    if kind in ("highpass", "random", "wavelet"):
        if kind == "random":
            return Target(kind, random_network(seed), about | {"seed": seed})
        if kind == "highpass":
            return Target(kind, lambda x, names: highpass(x), about)
        levels, threshold = settings.wavelet_levels, settings.wavelet_threshold
        return Target(kind, lambda x, names: haar_residual(x, levels, threshold), about)
    if kind in ("denoiser", "blind_denoiser", "ffdnet"):
        if network is None:
            raise UserError(f"the target '{kind}' needs its network; train or fetch it first")
        if hasattr(network, "check_step"):  # of the prior's kind
            network.check_step(step)
            about |= {"step": step, "network": _about(network)}
            return Target(kind, lambda x, names: network.noise(x, step), about)
        about["network"] = weights_hash(network) if isinstance(network, nn.Module) else repr(network)
        if kind != "ffdnet":
            return Target(kind, lambda x, names: network(x), about)
        return Target(kind, lambda x, names: _removed(network, x, settings.noise_level / 255), about)
    return _prior_target(kind, prior, step, settings, seed, second, about)


def _prior_target(kind, prior, step, settings, seed, second, about):
    if prior is None or (kind == "ensemble" and second is None):
        needed = "two priors" if kind == "ensemble" else "a prior"
        raise UserError(f"the target '{kind}' needs {needed}; make what is missing with `dvc repro`")
    prior.check_step(step)
    about |= {"step": step, "prior": _about(prior)}
    if kind in ("noised", "error", "shuffled"):
        about["seed"] = seed
    if kind == "multistep":
        steps = [factor * step for factor in settings.multistep]
        prior.check_step(max(steps))
        return Target(kind, lambda x, names: torch.cat([prior.noise(x, k) for k in steps], 1), about, len(steps))
    if kind == "ensemble":
        second.check_step(step)
        about["second"] = _about(second)
        both = (prior, second)
        return Target(kind, lambda x, names: torch.cat([member.noise(x, step) for member in both], 1), about, 2, True)

    alpha = float(prior.alphas_cumprod[step - 1])

    def noised(x, names, draw=0):
        z = prior.encode(x)
        noise = torch.stack([torch.randn(z.shape[1:], generator=seeds.torch_generator(seed, "targets", name, draw))
                             for name in names]).to(z.device)
        return prior.epsilon(alpha**0.5 * z + (1 - alpha) ** 0.5 * noise, step), noise

    def error(x, names):
        draws = (noised(x, names, draw) for draw in range(settings.error_draws))
        return sum((predicted - noise).square() for predicted, noise in draws) / settings.error_draws

    functions = {"noised": lambda x, names: noised(x, names)[0], "error": error}
    return Target(kind, functions.get(kind, lambda x, names: prior.noise(x, step)), about)


def _about(prior):
    """What decides a prior's noise: weights, schedule and precision."""
    parts = [getattr(prior, name, None) for name in ("unet", "vae", "prompt", "alphas_cumprod", "prediction_type")]
    return {"weights": weights_hash(*parts), "precision": getattr(prior, "precision", None)}


def _removed(network, x, sigma):
    y = (x + 1) / 2
    return 2 * (y - network(y, y.new_full((len(y), 1, 1, 1), sigma)))


def highpass(x):
    """What a 3 x 3 binomial filter removes from x (B, C, H, W): a fixed residual, mirrored at the borders."""
    line = torch.tensor([1.0, 2.0, 1.0], device=x.device, dtype=x.dtype)
    kernel = (torch.outer(line, line) / 16).expand(x.shape[1], 1, 3, 3)
    return x - F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), kernel, groups=x.shape[1])


def haar_residual(x, levels=3, threshold=3.0):
    """What soft thresholding of the Haar wavelet coefficients removes.

    Parameters
    ----------
    x : Tensor (B, C, H, W)
    levels : int
        Levels of the transform; H and W must be multiples of 2^levels.
    threshold : float
        In standard deviations of the noise, estimated per image and channel from the finest diagonal coefficients
        (their median absolute value over 0.6745).

    Returns
    -------
    Tensor (B, C, H, W)
        x minus the denoised x. By linearity, the inverse transform of the coefficients clamped to the threshold.

    Raises
    ------
    UserError
        If the sides are not multiples of 2^levels.
    """
    if x.shape[2] % 2**levels or x.shape[3] % 2**levels:
        raise UserError(f"images of {x.shape[3]} x {x.shape[2]} pixels cannot be halved {levels} times; lower "
                        "method.wavelet_levels")
    low, details = x, []
    for _ in range(levels):
        a, b, c, d = low[..., ::2, ::2], low[..., ::2, 1::2], low[..., 1::2, ::2], low[..., 1::2, 1::2]
        low = (a + b + c + d) / 2
        details.append(((a - b + c - d) / 2, (a + b - c - d) / 2, (a - b - c + d) / 2))  # all orthonormal
    finest = details[0][2].abs().flatten(2).sort(-1).values
    limit = threshold * finest[..., finest.shape[-1] // 2, None, None] / GAUSSIAN_MAD  # (B, C, 1, 1)
    residual = torch.zeros_like(low)
    for level in reversed(details):
        h, v, d = (torch.minimum(torch.maximum(part, -limit), limit) for part in level)
        cells = torch.stack([residual + h + v + d, residual - h + v - d,
                             residual + h - v - d, residual - h - v + d], 2) / 2
        residual = F.pixel_shuffle(cells.flatten(1, 2), 2)  # (B, C, 4, h, w) -> (B, C, 2h, 2w)
    return residual


def random_network(seed):
    """Three 3 x 3 convolutions with frozen random weights and GELU between them: (x, names) -> (B, 3, H, W)."""
    generator = seeds.torch_generator(seed, "targets", "random")
    sizes = [(RANDOM_WIDTH, 3), (RANDOM_WIDTH, RANDOM_WIDTH), (3, RANDOM_WIDTH)]
    weights = [torch.randn(out, into, 3, 3, generator=generator) / (9 * into) ** 0.5 for out, into in sizes]

    def network(x, names):
        for index, weight in enumerate(weights):
            x = F.conv2d(F.pad(F.gelu(x) if index else x, (1, 1, 1, 1), mode="reflect"), weight.to(x))
        return x

    return network


def derangement(splits, seed):
    """For each image another one of its split, none twice: int array (N,).

    Raises
    ------
    UserError
        If a split has only one image.
    """
    splits = np.asarray(splits)
    rng, index = seeds.generator(seed, "targets", "shuffled"), np.empty(len(splits), int)
    for split in np.unique(splits):
        order = rng.permutation(np.flatnonzero(splits == split))
        if len(order) < 2:
            raise UserError(f"the target 'shuffled' needs two images in split {split}; raise benchmark.use")
        index[order] = np.roll(order, 1)
    return index


@dataclass(frozen=True)
class Normaliser:
    """Scales targets to unit standard deviation on the training images.

    Attributes
    ----------
    mean : float32 Tensor (C,)
        Zero for `prior`, whose mean is small next to its deviation.
    member_scale : float32 Tensor (members,)
        Standard deviation of each member.
    average : bool
    scale : float
        Standard deviation of the whole.
    """

    mean: torch.Tensor
    member_scale: torch.Tensor
    average: bool
    scale: float

    def __call__(self, noise):
        """(B, C, h, w) -> float16 (B, C or C / members, h, w), on the same device."""
        return (self._combined(noise) / self.scale).half()

    def _combined(self, noise):
        noise = noise.float() - self.mean.to(noise.device)[:, None, None]
        scale = self.member_scale.to(noise.device)[:, None, None, None]
        members = noise.unflatten(1, (len(scale), -1)) / scale
        return members.mean(1) if self.average else members.flatten(1, 2)


def fit_normaliser(target, noise):
    """The `Normaliser` of a target's values on training images, noise (N, C, h, w).

    Raises
    ------
    UserError
        If the standard deviation is zero or not finite.
    """
    double = noise.double()
    mean = torch.zeros(noise.shape[1]) if target.kind == "prior" else double.mean((0, 2, 3)).float()
    one = torch.ones(target.members)
    if target.members > 1:  # members of unlike amplitude count alike
        members = (double - mean.double()[:, None, None]).unflatten(1, (target.members, -1))
        one = members.transpose(0, 1).flatten(1).std(1).float()
        _check_scale(target, float(one.min()))
    scale = float(Normaliser(mean, one, target.average, 1.0)._combined(noise).double().std())
    _check_scale(target, scale)
    return Normaliser(mean, one, target.average, scale)


def _check_scale(target, scale):
    if not 0 < scale < float("inf"):
        raise UserError(f"the targets '{target.kind}' have a standard deviation of {scale} on the training images; "
                        "check the prior and the images")


def compute_targets(target, batches, splits, *, seed, scale_images=0, progress=None):
    """Compute the scaled targets of a benchmark's images.

    Parameters
    ----------
    target : Target
    batches : iterable of (Tensor (B, 3, H, W) in [-1, 1], list of B names)
        All N images in order, on the device of the frozen networks.
    splits : sequence of str (N,)
        Images of split `train` decide the scale.
    seed : int
        Order of `shuffled`.
    scale_images : int
        Training images that the scale is computed from, spread evenly; 0 = all.
    progress : callable (int) or None
        Called after each batch with the number of images done.

    Returns
    -------
    (float16 Tensor (N, C, h, w) on the CPU, float)
        Targets, and the standard deviation they were divided by.

    Raises
    ------
    UserError
        If the number of images and splits differ, no image is in `train`, or the targets are constant or not finite.
    """
    splits, parts, done = np.asarray(splits), [], 0
    for x, names in batches:
        parts.append(target(x, names).float().cpu())
        done += len(x)
        if progress:
            progress(done)
    if done != len(splits):
        raise UserError(f"{done} images were given for {len(splits)} rows of the manifest; build the benchmark again")
    noise = torch.cat(parts)
    if target.kind == "shuffled":
        noise = noise[torch.from_numpy(derangement(splits, seed))]
    normaliser = fit_normaliser(target, noise[torch.from_numpy(scale_rows(splits, scale_images))])
    return torch.cat([normaliser(part) for part in noise.split(256)]), normaliser.scale


def scale_rows(splits, limit=0):
    """Rows of the training images that decide the scale: all, or `limit` of them, spread evenly."""
    rows = np.flatnonzero(np.asarray(splits) == "train")
    if len(rows) == 0:
        raise UserError("no image is in the split 'train', whose standard deviation scales the targets; check the "
                        "manifest")
    return rows if not limit or limit >= len(rows) else rows[np.linspace(0, len(rows) - 1, limit).round().astype(int)]


def load_targets(path, target, batches, rows, *, seed, scale_images=0, progress=None):
    """Read cached targets; compute and write them if the file is missing, damaged, foreign or out of date.

    Parameters
    ----------
    path : path-like
        A safetensors file: `target` in float16, and one metadata entry, JSON with key and scale.
    target : Target
    batches : callable () -> iterable
        Makes the batches of `compute_targets`; called only if they are needed.
    rows : pandas.DataFrame
        Benchmark manifest of the images: sha256, split, and pair or image_id as the names of their draws.
    seed, scale_images, progress
        See `compute_targets`.

    Returns
    -------
    (float16 Tensor (N, C, h, w), float)
    """
    key = cache_key(target, rows, seed, scale_images)
    stored = _read(path, key, len(rows))
    if stored is not None:
        return stored
    values, scale = compute_targets(target, batches(), rows["split"].to_numpy(), seed=seed, scale_images=scale_images,
                                    progress=progress)
    with atomic_file(path) as temporary:
        # one metadata entry: safetensors writes several in no fixed order
        about = json.dumps({"key": key, "scale": scale})
        save_file({"target": values.contiguous()}, temporary, metadata={"anl": about})
    return values, scale


def cache_key(target, rows, seed, scale_images=0):
    """Hash of everything that decides the cached numbers: images, their order and splits, networks, settings."""
    columns = [name for name in ("image_id", "pair", "sha256", "split") if name in rows]
    images = hashlib.sha256(json.dumps(rows[columns].astype(str).to_numpy().tolist()).encode()).hexdigest()
    about = target.about | ({"seed": seed} if target.kind == "shuffled" else {})
    return identity({"about": about, "images": images, "scale_images": scale_images, "members": target.members})


def _read(path, key, count):
    """Targets and scale of a file with this key, or None."""
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads(file.metadata()["anl"])
            if about["key"] != key:
                return None
            values = file.get_tensor("target")
            return (values, float(about["scale"])) if len(values) == count else None
    except Exception:  # missing, truncated or not a target file: computed again
        return None


class LiveTargets:
    """Targets computed when they are indexed, for benchmarks whose cache would be too large.

    `targets[rows]` equals `compute_targets(...)[0][rows]`, up to the rounding of other batch sizes.

    Parameters
    ----------
    target : Target
    images : callable (int array) -> Tensor (B, 3, H, W)
        Images of rows, in [-1, 1], on the device of the frozen networks.
    names : sequence of str (N,)
        Names of the draws.
    splits : sequence of str (N,)
    seed : int
    scale_images : int
        Training images that the scale is computed from at once, in memory; 0 = all.
    batch_size : int
        Images per call of the frozen networks.
    """

    def __init__(self, target, images, names, splits, *, seed, scale_images=0, batch_size=64):
        self.target, self.images, self.names, self.batch_size = target, images, np.asarray(names), batch_size
        self.order = derangement(splits, seed) if target.kind == "shuffled" else np.arange(len(splits))
        self.normaliser = fit_normaliser(target, self._noise(scale_rows(splits, scale_images)))
        self.scale = self.normaliser.scale
        self.shape = (len(splits), *self[[0]].shape[1:])

    def __getitem__(self, rows):
        """float16 (len(rows), C, h, w) on the CPU, as of a cached tensor."""
        return self.normaliser(self._noise(np.asarray(rows)))

    def _noise(self, rows):
        chosen = self.order[rows]
        return torch.cat([self.target(self.images(part), self.names[part].tolist()).float().cpu()
                          for part in np.split(chosen, range(self.batch_size, len(chosen), self.batch_size))])
