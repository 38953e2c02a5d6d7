"""What a detector learns to predict: the noise target n*_t(x) = eps_theta(x, t) / s_t, and targets to compare it with.

s_t is the standard deviation of eps_theta over the training split, so that the regression has the same scale at every
step. No noise is added to x: a network that sees only x can know the target. The others tell what is the cause of a gain:

- `multistep`: the prior's noise at MULTISTEP times the step, stacked, each in its own deviation;
- `ensemble`: the mean of what the prior and `other_prior` see, each in its own deviation;
- `noised`: the prior's noise in x with a draw of noise added, the same draw for both images of a pair;
- `error`: the squared error of that prediction, a mean over ERROR_DRAWS draws (as in LaRE, Luo et al., CVPR 2024);
- `highpass`: a fixed residual; `random`: what a frozen random network sees; `shuffled`: the prior's noise of another
  image of the split;
- any name in a profile's `other_priors`: the noise of that prior, another model or one trained for less.

Targets are computed once and cached, or asked for batch by batch where the cache would be too large (anl.live_targets).
"""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch.nn import functional as F
from tqdm import tqdm

from anl import arithmetic, live_targets, processes, seeds
from anl.benchmark import REAL, read_images, read_manifest, use_rows
from anl.data.formats import as_published
from anl.data.patches import to_tensor
from anl.errors import UserError
from anl.files import sha256_of, whole_file
from anl.params import LOSSLESS, TARGETS

BATCH = 64
KINDS = tuple(name for name in TARGETS if name != "none")
ERROR_DRAWS = 8
MULTISTEP = (1, 2, 5)
SECOND = "other_prior"  # the ensemble's second member


def kinds(params):
    """Every target a detector can learn: KINDS, and the profile's other priors."""
    return (*KINDS, *params.other_priors)


def is_control(params, kind):
    """Whether a target needs no trained diffusion model (`shuffled` has one, but of another image)."""
    untrained = kind in params.other_priors and params.other_priors[kind].steps == 0
    return kind in ("highpass", "random", "shuffled") or untrained


def target_path(params, step, kind="prior", formats=LOSSLESS, folder="targets"):
    return Path(folder) / params.profile / f"{kind}-t{step}{'' if formats == LOSSLESS else f'-{formats}'}.safetensors"


def training_rows(params):
    """Manifest rows of the training and validation splits that detectors learn from: reals and the seen family."""
    rows = use_rows(read_manifest(params.benchmark.folder), params)
    mine = rows["generator"].isin([REAL, params.benchmark.seen]) & rows["split"].isin(["train", "val"])
    return rows[mine].reset_index(drop=True)


def prior_of(params, kind, prior_folder="models/prior"):
    """The folder of the prior that a target of `kind` is made with: another prior lies beside the first."""
    return Path(prior_folder).with_name(kind) if kind in params.other_priors else Path(prior_folder)


def cache_key(rows, prior_folder, step, kind="prior", formats=LOSSLESS):
    """Identity of a target file: pixels, prior weights (an ensemble's both), step, kind and file formats."""
    pixels = hashlib.sha256("".join(rows["sha256"]).encode()).hexdigest()
    second = f"-{sha256_of(Path(prior_folder).with_name(SECOND))[:16]}" if kind == "ensemble" else ""
    return f"{kind}-{pixels[:16]}-{formats}-{sha256_of(prior_folder)[:16]}{second}-t{step}"


def compute(params, step, kind="prior", formats=LOSSLESS, prior_folder=None, folder="targets"):
    """Write the targets of `kind` and `step` for `training_rows`, float16 (N, C, h, w), unless a file of that key is there.

    kind: one of `kinds(params)`; `highpass` and `random` are the same at every step, and always (N, 3, H, W). formats:
    one of anl.data.formats.FORMATS. prior_folder: default that of the profile. Returns the path. Where the file would be
    larger than the profile's cache.targets it holds no targets, but what anl.live_targets needs. Several processes that have
    joined share the batches. Raises UserError if the kind is unknown, the step is not one of the prior's, or the prior
    cannot take the benchmark's patches.
    """
    from anl.prior import NoisePrior  # not above: who finds its targets made need not wait for diffusers

    if kind not in kinds(params):
        raise UserError(f"there is no target '{kind}'; choose one of {', '.join(kinds(params))}")
    if kind == "ensemble" and SECOND not in params.other_priors:
        raise UserError(f"an ensemble needs a second prior; add '{SECOND}' to other_priors")
    prior_folder = prior_folder or f"{params.models_folder}/prior"
    source = prior_of(params, kind, prior_folder)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    computed_in = arithmetic.in_use(params.prior.precision, device)
    prior = NoisePrior.load(source, device, computed_in)
    prior.check_step(step)
    prior.check_size(params.benchmark.size)
    rows = training_rows(params)
    path = target_path(params, step, kind, formats, folder)
    second = NoisePrior.load(prior_of(params, SECOND, prior_folder), device, computed_in) \
        if kind == "ensemble" else None
    if kind == "multistep":
        prior.check_step(MULTISTEP[-1] * step)
    key = cache_key(rows, source, step, kind, formats)
    stored = processes.agreed(lambda: _stored_key(path))
    if stored == key:
        return path
    pixels = as_published(read_images(params.benchmark.folder, rows), rows["label"], formats)
    residual = _residual(kind, prior, step, params.seed, second)
    names = pair_names(rows)

    def part(batch):
        with torch.no_grad():
            return residual(to_tensor(pixels[batch]), names[batch])

    def progress(starts):
        return tqdm(starts, desc=f"targets {kind} t={step}", mininterval=5, file=sys.stderr,
                    disable=not processes.here().main)

    if live_targets.too_large(len(rows), part(slice(0, 1))[0].numel(), params):
        if stored != live_targets.key_of(key):
            live_targets.write(path, live_targets.key_of(key), kind, rows, part, BATCH, progress)
        return path
    batches = processes.spread(part, len(pixels), BATCH, everywhere=False, progress=progress)
    # the main process has them all, scales them and writes; the others wait for its file
    processes.agreed(lambda: _write(path, key, kind, rows, torch.cat(batches), params.seed, source, step))
    return path


def pair_names(rows):
    """What both images of a pair are called: it shares its draws of noise, and what differs between its targets is the
    images' own."""
    return rows["sample_id"].str.split("/", n=1).str[1].tolist()


def _write(path, key, kind, rows, noise, seed, source, step):
    """Scale the noise (N, C, h, w) and write it."""
    if kind == "shuffled":
        noise = noise[derangement(rows["split"].to_numpy(), seed)]
    train = torch.from_numpy((rows["split"] == "train").to_numpy(copy=True))
    if kind != "prior":  # a predicted noise needs no centring: its mean is small beside its deviation
        noise = noise - noise[train].double().mean((0, 2, 3), keepdim=True).float()
    if kind in ("multistep", "ensemble"):  # members of unlike amplitude count alike
        members = torch.stack(noise.chunk(2 if kind == "ensemble" else len(MULTISTEP), 1))
        members = members / members[:, train].double().std((1, 2, 3, 4), keepdim=True).float()
        noise = members.mean(0) if kind == "ensemble" else members.transpose(0, 1).flatten(1, 2)
    scale = float(noise[train].double().std())
    if not 0 < scale < float("inf"):
        raise UserError(f"the targets '{kind}' of step {step} have a standard deviation of {scale}; look at {source}")
    with whole_file(path) as temporary:
        # one metadata entry: safetensors writes several in no fixed order, and the file's bytes would change
        save_file({"target": (noise / scale).half().contiguous()}, temporary, metadata={"anl": json.dumps(
            {"key": key, "scale": scale, "samples": rows["sample_id"].tolist()})})


def load(params, step, rows, kind="prior", formats=LOSSLESS, prior_folder=None, folder="targets"):
    """Targets for `rows`, float16 (N, C, h, w), and their scale s_t. A stale, truncated or foreign file is rebuilt.

    Where the cache would be too large, the targets are an anl.live_targets.LiveTargets: indexed alike, made when asked for.
    """
    path = target_path(params, step, kind, formats, folder)
    prior_folder = prior_folder or f"{params.models_folder}/prior"
    source = prior_of(params, kind, prior_folder)
    known = training_rows(params)
    if not source.is_dir() or processes.agreed(lambda: _stored_key(path)) != cache_key(known, source, step, kind, formats):
        compute(params, step, kind, formats, prior_folder, folder)
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["anl"])
        target = file.get_tensor("target") if "live" not in header else None
    place = {sample: index for index, sample in enumerate(header["samples"])}
    missing = [sample for sample in rows["sample_id"] if sample not in place]
    if missing:
        raise UserError(f"{path} holds no target for {missing[0]}; delete it and run "
                        f"`anl target --target {kind} --step {step}`")
    order = [place[sample] for sample in rows["sample_id"]]
    if target is not None:
        return target[order], header["scale"]
    pixels = as_published(read_images(params.benchmark.folder, known), known["label"], formats)
    if kind == "shuffled":
        order = derangement(known["split"].to_numpy(), params.seed)[order]
    from anl.prior import NoisePrior

    device = "cuda" if torch.cuda.is_available() else "cpu"
    prior = NoisePrior.load(source, device, arithmetic.in_use(params.prior.precision, device))
    names = pair_names(known)
    return live_targets.LiveTargets(_residual(kind, prior, step, params.seed), pixels, names, order, header), header["scale"]


def _residual(kind, prior, step, seed, second=None):
    """The function (x, names) -> target before scaling: x (B, 3, H, W) in [-1, 1], names of its patches.

    second: the ensemble's other prior. Members of `multistep` and `ensemble` are stacked along the channels.
    """
    def noised(x, names, draw=0):
        clean = prior.encode(x)
        noise = torch.stack([torch.randn(clean.shape[1:], generator=seeds.torch_generator(seed, "targets", name, draw))
                             for name in names])
        alpha = prior.alphas_cumprod[step - 1]
        return prior.epsilon(alpha.sqrt().float() * clean + (1 - alpha).sqrt().float() * noise, step), noise

    def error(x, names):
        draws = (noised(x, names, draw) for draw in range(ERROR_DRAWS))
        return sum((prediction - noise).square() for prediction, noise in draws) / ERROR_DRAWS

    random = RandomNetwork(seed)
    return {"multistep": lambda x, names: torch.cat([prior.noise(x, k * step) for k in MULTISTEP], 1),
            "ensemble": lambda x, names: torch.cat([prior.noise(x, step), second.noise(x, step)], 1),
            "highpass": lambda x, names: highpass(x), "random": lambda x, names: random(x), "error": error,
            "noised": lambda x, names: noised(x, names)[0]}.get(kind, lambda x, names: prior.noise(x, step))


def highpass(x):
    """What a 3 x 3 binomial filter takes away from x (B, 3, H, W): a fixed residual, after Fridrich & Kodovsky (2012)."""
    line = torch.tensor([1.0, 2.0, 1.0])
    kernel = (torch.outer(line, line) / 16).expand(x.shape[1], 1, 3, 3)
    return x - F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), kernel, groups=x.shape[1])


class RandomNetwork:
    """Three convolutions with fixed random weights, GELU between: (B, 3, H, W) -> (B, 3, H, W), never trained."""

    def __init__(self, seed, width=16):
        generator = seeds.torch_generator(seed, "targets", "random")
        sizes = [(width, 3), (width, width), (3, width)]
        self.weights = [torch.randn(out, into, 3, 3, generator=generator) / (9 * into) ** 0.5 for out, into in sizes]

    def __call__(self, x):
        for index, weight in enumerate(self.weights):
            x = F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), weight)
            x = F.gelu(x) if index < 2 else x
        return x


def derangement(splits, seed):
    """For each image the index of another one of its split, none twice: (N,) of ints."""
    rng = seeds.generator(seed, "targets", "shuffled")
    index = np.empty(len(splits), int)
    for split in np.unique(splits):
        order = rng.permutation(np.flatnonzero(splits == split))
        index[order] = np.roll(order, 1)
    return index


def _stored_key(path):
    try:
        with safe_open(path, framework="pt") as file:
            return json.loads(file.metadata()["anl"])["key"]
    except Exception:  # missing, truncated or not ours: rebuilt by the caller
        return None
