"""What a detector learns to predict: the noise target n*_t(x) = eps_theta(x, t) / s_t, and targets to compare it with.

s_t is the standard deviation of eps_theta over the training split, so that the regression has the same scale at every
step. No noise is added to x: a network that sees only x can know the target. The controls tell whether the diffusion
prior is the cause of a gain: `highpass` is a fixed residual, `random` what a frozen random network sees, `shuffled` the
prior's noise of another image. Targets are computed once and cached.
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

from anl import seeds
from anl.benchmark import REAL, read_images, read_manifest, use_rows
from anl.data.patches import to_tensor
from anl.errors import UserError
from anl.files import sha256_of, whole_file
from anl.params import TARGETS

BATCH = 64
KINDS = tuple(name for name in TARGETS if name != "none")


def target_path(params, step, kind="prior", folder="targets"):
    return Path(folder) / params.profile / f"{kind}-t{step}.safetensors"


def training_rows(params):
    """Manifest rows of the training and validation splits that detectors learn from: reals and the seen family."""
    rows = use_rows(read_manifest(params.benchmark.folder), params)
    mine = rows["generator"].isin([REAL, params.benchmark.seen]) & rows["split"].isin(["train", "val"])
    return rows[mine].reset_index(drop=True)


def cache_key(rows, prior_folder, step, kind="prior"):
    """Identity of a target file: pixels, prior weights, step and kind."""
    pixels = hashlib.sha256("".join(rows["sha256"]).encode()).hexdigest()
    return f"{kind}-{pixels[:16]}-{sha256_of(prior_folder)[:16]}-t{step}"


def compute(params, step, kind="prior", prior_folder="models/prior", folder="targets"):
    """Write the targets of `kind` and `step` for `training_rows`, float16 (N, 3, H, W), unless a file of that key is there.

    kind: one of KINDS; `highpass` and `random` are the same at every step. Returns the path. Raises
    UserError if the kind is unknown or the step is not one of the prior's.
    """
    from anl.prior import NoisePrior  # not above: who finds its targets made need not wait for diffusers

    if kind not in KINDS:
        raise UserError(f"there is no target '{kind}'; choose one of {', '.join(KINDS)}")
    prior = NoisePrior.load(prior_folder, "cuda" if torch.cuda.is_available() else "cpu")
    prior.check_step(step)
    rows = training_rows(params)
    path = target_path(params, step, kind, folder)
    key = cache_key(rows, prior_folder, step, kind)
    if _stored_key(path) == key:
        return path
    pixels = read_images(params.benchmark.folder, rows)
    residual = {"highpass": highpass, "random": RandomNetwork(params.seed)}.get(kind, lambda x: prior.noise(x, step))
    with torch.no_grad():
        noise = torch.cat([residual(to_tensor(pixels[i:i + BATCH]))
                           for i in tqdm(range(0, len(pixels), BATCH), desc=f"targets {kind} t={step}", mininterval=5,
                                         file=sys.stderr)])
    if kind == "shuffled":
        noise = noise[derangement(rows["split"].to_numpy(), params.seed)]
    train = torch.from_numpy((rows["split"] == "train").to_numpy(copy=True))
    if kind != "prior":  # a predicted noise needs no centring: its mean is small beside its deviation
        noise = noise - noise[train].double().mean((0, 2, 3), keepdim=True).float()
    scale = float(noise[train].double().std())
    with whole_file(path) as temporary:
        # one metadata entry: safetensors writes several in no fixed order, and the file's bytes would change
        save_file({"target": (noise / scale).half().contiguous()}, temporary, metadata={"anl": json.dumps(
            {"key": key, "scale": scale, "samples": rows["sample_id"].tolist()})})
    return path


def load(params, step, rows, kind="prior", prior_folder="models/prior", folder="targets"):
    """Targets for `rows`, float16 (N, 3, H, W), and their scale s_t. A stale, truncated or foreign file is rebuilt."""
    path = target_path(params, step, kind, folder)
    if _stored_key(path) != cache_key(training_rows(params), prior_folder, step, kind):
        compute(params, step, kind, prior_folder, folder)
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["anl"])
        target = file.get_tensor("target")
    place = {sample: index for index, sample in enumerate(header["samples"])}
    missing = [sample for sample in rows["sample_id"] if sample not in place]
    if missing:
        raise UserError(f"{path} holds no target for {missing[0]}; delete it and run "
                        f"`anl target --target {kind} --step {step}`")
    return target[[place[sample] for sample in rows["sample_id"]]], header["scale"]


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
