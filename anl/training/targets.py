"""Noise targets: what a detector learns to predict, computed once with frozen networks and cached.

The method's target is the noise that the prior predicts for the clean image, divided by the standard deviation of this noise
on the training images. No noise is added to the image, so that a network that sees only the image can predict the target.
The other targets are controls, which show what causes a gain.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch.nn import functional as F
from tqdm.auto import tqdm

from anl import seeds
from anl.config import NETWORK_TARGETS
from anl.io import UserError, atomic_file, identity
from anl.models.baselines import frozen_hash
from anl.models.precision import effective_precision

__all__ = ["LiveTargets", "Target", "compute_targets", "haar_residual", "highpass", "load_targets", "make_target"]

GAUSSIAN_MAD = 0.6745  # median absolute value of a standard normal variable
RANDOM_WIDTH = 16
SETTINGS = {"multistep": ("multistep",), "error": ("error_draws",), "wavelet": ("wavelet_levels", "wavelet_threshold"),
            "ffdnet": ("noise_level",)}


@dataclass(frozen=True)
class Target:
    """A noise target before scaling: images (B, 3, H, W) in [-1, 1] and their B names -> (B, C, h, w) on x's device.

    Images of one name share their random draws: give a real image and its regeneration the same.
    """

    kind: str
    function: Callable
    about: dict             # JSON-able: everything that determines the result except the images
    members: int = 1        # targets stacked along the channels; each is scaled separately
    average: bool = False   # whether the members are averaged after this scaling

    @torch.no_grad()
    def __call__(self, x, names):
        with torch.autocast(x.device.type, enabled=False):  # live targets are computed within a training step
            return self.function(x, names)


def make_target(kind, prior, step, settings=None, *, seed, second=None):
    """Build a noise target.

    Parameters
    ----------
    kind : str
        - `prior`: the prior's noise at `step`.
        - `denoiser`, `blind_denoiser`: the noise that a network trained as a denoiser predicts at `step`.
        - `multistep`: the prior's noise at several multiples of `step`, stacked.
        - `ensemble`: mean of the noise of `prior` and `second`, each divided by its standard deviation.
        - `noised`: the prior's noise on the image with a draw of noise added.
        - `error`: squared error of the prediction of `noised`, averaged over draws (Luo et al.).
        - `shuffled`: the prior's noise of another image.
        - `highpass`: what a 3 x 3 binomial filter removes.
        - `wavelet`: what thresholding Haar coefficients removes (Donoho and Johnstone).
        - `random`: output of a frozen random network.
        - `ffdnet`: what the denoiser `prior(y, sigma)` removes from y in [0, 1]; sigma (B, 1, 1, 1).
    prior : anl.models.prior.NoisePrior, nn.Module or None
        None for `highpass`, `wavelet` and `random`.
    step : int
        1-based diffusion step.
    settings : anl.config.MethodConfig or None
        Parameters of multistep, error, wavelet and ffdnet.
    seed : int
        Seed of the random draws, of the weights of `random` and of the order of `shuffled`.
    second : NoisePrior or None
        The other member of `ensemble`.

    Raises
    ------
    UserError
        If the prior does not have a step.

    References
    ----------
    Luo et al., "LaRE^2: Latent reconstruction error based method", CVPR 2024.
    Donoho and Johnstone, "Ideal spatial adaptation by wavelet shrinkage", Biometrika 1994.
    """
    about = {"kind": kind, **{name: getattr(settings, name) for name in SETTINGS.get(kind, ())}}
    if kind == "highpass":
        return Target(kind, lambda x, names: highpass(x), about)
    if kind == "wavelet":
        levels, threshold = settings.wavelet_levels, settings.wavelet_threshold
        return Target(kind, lambda x, names: haar_residual(x, levels, threshold), about)
    if kind == "random":
        return Target(kind, random_network(seed), about | {"seed": seed})
    if kind == "ffdnet":
        sigma = settings.noise_level / 255
        return Target(kind, lambda x, names: _removed(prior, x, sigma), about | {"network": frozen_hash(prior)})

    prior.check_step(step)
    about |= {"step": step, "network" if kind in NETWORK_TARGETS else "prior": _about(prior)}
    if kind in ("prior", *NETWORK_TARGETS):
        return Target(kind, lambda x, names: prior.noise(x, step), about)
    if kind == "shuffled":
        return Target(kind, lambda x, names: prior.noise(x, step), about | {"seed": seed})
    if kind == "multistep":
        steps = [factor * step for factor in settings.multistep]
        return Target(kind, lambda x, names: torch.cat([prior.noise(x, k) for k in steps], 1), about, len(steps))
    if kind == "ensemble":
        return Target(kind, lambda x, names: torch.cat([prior.noise(x, step), second.noise(x, step)], 1),
                      about | {"second": _about(second)}, 2, True)

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
    return Target(kind, functions[kind], about | {"seed": seed})


def _about(prior):
    """What determines a prior's noise: weights, schedule and precision."""
    return {"weights": frozen_hash(prior), "precision": effective_precision(prior.precision, prior.device)}


def _removed(network, x, sigma):
    """What a denoiser of images in [0, 1] removes from x in [-1, 1]."""
    y = (x + 1) / 2
    return 2 * (y - network(y, y.new_full((len(y), 1, 1, 1), sigma)))


def highpass(x):
    """What a 3 x 3 binomial filter removes from x (B, C, H, W), with reflection padding."""
    line = torch.tensor([1.0, 2.0, 1.0], device=x.device, dtype=x.dtype)
    kernel = (torch.outer(line, line) / 16).expand(x.shape[1], 1, 3, 3)
    return x - F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), kernel, groups=x.shape[1])


def haar_residual(x, levels=3, threshold=3.0):
    """What soft thresholding of the Haar wavelet coefficients removes from x (B, C, H, W).

    By linearity, this is the inverse transform of the coefficients clamped to the threshold.

    Parameters
    ----------
    x : Tensor (B, C, H, W)
        H and W are multiples of 2^levels.
    levels : int
    threshold : float
        In standard deviations of the noise. They are estimated per image and channel from the finest diagonal
        coefficients, as their median absolute value divided by 0.6745.

    Returns
    -------
    Tensor (B, C, H, W)

    Raises
    ------
    UserError
        If H or W is no multiple of 2^levels.
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


def derangement(count, seed):
    """Random permutation of `count` images without fixed points: int array (count,)."""
    if count < 2:
        raise UserError("the target 'shuffled' needs two training images; raise benchmark.use.train")
    order, index = seeds.generator(seed, "targets", "shuffled").permutation(count), np.empty(count, int)
    index[order] = np.roll(order, 1)
    return index


@dataclass(frozen=True)
class Normaliser:
    """Scales targets to unit standard deviation on the training images."""

    mean: torch.Tensor          # float32 (C,); zero for `prior`, whose mean is small compared with its deviation
    member_scale: torch.Tensor  # float32 (members,): standard deviation of each, so that all members have equal weight
    average: bool
    scale: float = 1.0          # standard deviation of the centred and scaled members

    def __call__(self, noise):
        """(B, C, h, w) -> float16 (B, C or C / members, h, w)."""
        return (self.combined(noise) / self.scale).half()

    def combined(self, noise):
        """The members, centred and scaled one by one."""
        noise = noise.float() - self.mean.to(noise.device)[:, None, None]
        scale = self.member_scale.to(noise.device)[:, None, None, None]
        members = noise.unflatten(1, (len(scale), -1)) / scale
        return members.mean(1) if self.average else members.flatten(1, 2)


def fit_normaliser(target, noise):
    """The `Normaliser` of a target's values on training images, noise (N, C, h, w)."""
    parts = noise.split(256)  # in parts, as double precision needs several times the memory
    mean = torch.zeros(noise.shape[1])
    if target.kind != "prior":
        mean = (sum(part.double().sum((0, 2, 3)) for part in parts) * (noise.shape[1] / noise.numel())).float()
    scales = torch.ones(target.members)
    if target.members > 1:
        scales = _deviation((part - mean[:, None, None]).unflatten(1, (target.members, -1)).transpose(0, 1).flatten(1)
                            for part in parts).float()
    normaliser = Normaliser(mean, scales, target.average)
    scale = float(_deviation(normaliser.combined(part).flatten()[None] for part in parts))
    for value in (*scales.tolist(), scale):
        if not 0 < value < float("inf"):
            raise UserError(f"the targets '{target.kind}' have a standard deviation of {value} on the training images; "
                            "check the prior and the images")
    return Normaliser(mean, scales, target.average, scale)


def _deviation(parts):
    """Row-wise standard deviation, (K,) in double precision, of concatenated matrices (K, n) whose mean is near 0."""
    count = total = squares = 0
    for part in parts:
        count, total, squares = count + part.shape[1], total + part.double().sum(1), squares + part.double().square().sum(1)
    return ((squares - total.square() / count).clamp(min=0) / (count - 1)).sqrt()


def compute_targets(target, images, names, *, seed, scale_images=0, batch_size=64, label=None):
    """Compute the scaled targets of the training images.

    Parameters
    ----------
    target : Target
    images : callable (int array) -> Tensor (B, 3, H, W)
        Images of rows, in [-1, 1], on the device of the frozen networks.
    names : sequence of str (N,)
        Names of the images' random draws.
    seed : int
        Seed of the order of `shuffled`.
    scale_images : int
        Number of images that the scale is computed from, evenly spaced; 0 = all.
    label : str or None
        Label of the progress bar; None for no progress bar.

    Returns
    -------
    (float16 Tensor (N, C, h, w) on the CPU, float)
        Targets, and the standard deviation they were divided by.

    Raises
    ------
    UserError
        If the targets are constant or not finite.
    """
    noise = _noise(target, images, names, np.arange(len(names)), batch_size, label)
    if target.kind == "shuffled":
        noise = noise[torch.from_numpy(derangement(len(names), seed))]
    normaliser = fit_normaliser(target, noise[torch.from_numpy(_scale_rows(len(names), scale_images))])
    return torch.cat([normaliser(part) for part in noise.split(256)]), normaliser.scale


class LiveTargets:
    """Targets computed when they are indexed, for benchmarks whose cache would be too large.

    `targets[rows]` equals `compute_targets(...)[0][rows]`, up to the rounding of other batch sizes. The images that the
    scale is computed from have to fit into memory.
    """

    def __init__(self, target, images, names, *, seed, scale_images=0, batch_size=64):
        self.target, self.images, self.names, self.batch_size = target, images, np.asarray(names), batch_size
        self.order = derangement(len(names), seed) if target.kind == "shuffled" else np.arange(len(names))
        self.normaliser = fit_normaliser(target, self._noise(_scale_rows(len(names), scale_images)))
        self.shape = (len(names), *self[[0]].shape[1:])

    def __getitem__(self, rows):
        """float16 (len(rows), C, h, w) on the CPU, as for a cached tensor."""
        return self.normaliser(self._noise(np.asarray(rows)))

    def _noise(self, rows):
        return _noise(self.target, self.images, self.names, self.order[rows], self.batch_size)


def _noise(target, images, names, rows, batch_size, label=None):
    """Unscaled targets of some rows, on the CPU."""
    names, parts = np.asarray(names), np.split(rows, range(batch_size, len(rows), batch_size))
    bar = tqdm(parts, desc=f"targets {label}", disable=None if label else True)
    return torch.cat([target(images(part), names[part].tolist()).float().cpu() for part in bar])


def _scale_rows(count, limit):
    """Rows that the scale is computed from: all, or `limit` of them, evenly spaced."""
    return np.linspace(0, count - 1, limit).round().astype(int) if 0 < limit < count else np.arange(count)


def load_targets(folder, name, target, images, rows, *, seed, scale_images=0, batch_size=64, most_bytes=float("inf")):
    """Read cached targets; compute and write them if the file is missing, damaged or out of date.

    Parameters
    ----------
    folder, name : path-like, str
        The cache file is `folder/name-KEY.safetensors`.
    target, images, seed, scale_images, batch_size
        See `compute_targets`.
    rows : pandas.DataFrame
        Training images, with the columns image_id, sha256, split and pair. Random draws are named by pair, or by image_id
        if pair is empty.
    most_bytes : float
        If the targets need more, they are not cached, and `LiveTargets` are returned.

    Returns
    -------
    float16 Tensor (N, C, h, w), or LiveTargets
    """
    names = rows["pair"].where(rows["pair"] != "", rows["image_id"]).tolist()
    options = {"seed": seed, "scale_images": scale_images, "batch_size": batch_size}
    if len(rows) * 2 * target(images(np.arange(1)), names[:1])[0].numel() > most_bytes:
        return LiveTargets(target, images, names, **options)
    key = cache_key(target, rows, scale_images)
    path = Path(folder) / f"{name}-{key}.safetensors"
    stored = _read(path, key, len(rows))
    if stored is not None:
        return stored
    label = name + (f" t={target.about['step']}" if "step" in target.about else "")
    values, scale = compute_targets(target, images, names, label=label, **options)
    with atomic_file(path) as temporary:
        # a single metadata entry, because safetensors writes several in no fixed order
        about = json.dumps({"key": key, "scale": scale})
        save_file({"target": values.contiguous()}, temporary, metadata={"anl": about})
    return values


def cache_key(target, rows, scale_images=0):
    """Hash of everything that determines the cached numbers: images and their order, networks, settings."""
    columns = ["image_id", "pair", "sha256", "split"]
    images = hashlib.sha256(json.dumps(rows[columns].astype(str).to_numpy().tolist()).encode()).hexdigest()
    return identity({"about": target.about, "images": images, "scale_images": scale_images, "members": target.members})


def _read(path, key, count):
    """Targets of a file with this key, or None."""
    try:
        with safe_open(path, framework="pt") as file:
            values = file.get_tensor("target")
            return values if json.loads(file.metadata()["anl"])["key"] == key and len(values) == count else None
    except Exception:  # missing, truncated or not a target file: the caller computes it again
        return None
