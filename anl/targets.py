"""The noise target n*_t(x) = eps_theta(x, t) / s_t, computed once per step and cached.

s_t is the standard deviation of eps_theta over the training split, so that the regression has the same scale at every
step. No noise is added to x: a network that sees only x can know the target.
"""

import hashlib
import json
import sys
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tqdm import tqdm

from anl.benchmark import REAL, read_images, read_manifest, use_rows
from anl.data.patches import to_tensor
from anl.errors import UserError
from anl.files import sha256_of, whole_file
from anl.prior import NoisePrior

BATCH = 64


def target_path(params, step, folder="targets"):
    return Path(folder) / params.profile / f"t{step}.safetensors"


def training_rows(params):
    """Manifest rows of the training and validation splits that detectors learn from: reals and the seen family."""
    rows = use_rows(read_manifest(params.benchmark.folder), params)
    mine = rows["generator"].isin([REAL, params.benchmark.seen]) & rows["split"].isin(["train", "val"])
    return rows[mine].reset_index(drop=True)


def cache_key(rows, prior_folder, step):
    """Identity of a target file: pixels, prior weights and step."""
    pixels = hashlib.sha256("".join(rows["sha256"]).encode()).hexdigest()
    return f"{pixels[:16]}-{sha256_of(prior_folder)[:16]}-t{step}"


def compute(params, step, prior_folder="models/prior", folder="targets"):
    """Write the targets of `step` for `training_rows`, float16 (N, 3, H, W), unless a file of the same key is there.

    Returns the path. Raises UserError if the step is not one of the prior's.
    """
    prior = NoisePrior.load(prior_folder, "cuda" if torch.cuda.is_available() else "cpu")
    prior.check_step(step)
    rows = training_rows(params)
    path = target_path(params, step, folder)
    key = cache_key(rows, prior_folder, step)
    if _stored_key(path) == key:
        return path
    pixels = read_images(params.benchmark.folder, rows)
    noise = torch.cat([prior.noise(to_tensor(pixels[i:i + BATCH]), step)
                       for i in tqdm(range(0, len(pixels), BATCH), desc=f"targets t={step}", mininterval=5,
                                     file=sys.stderr)])
    train = torch.from_numpy((rows["split"] == "train").to_numpy(copy=True))
    scale = float(noise[train].double().std())
    with whole_file(path) as temporary:
        # one metadata entry: safetensors writes several in no fixed order, and the file's bytes would change
        save_file({"target": (noise / scale).half().contiguous()}, temporary, metadata={"anl": json.dumps(
            {"key": key, "scale": scale, "samples": rows["sample_id"].tolist()})})
    return path


def load(params, step, rows, prior_folder="models/prior", folder="targets"):
    """Targets for `rows`, float16 (N, 3, H, W), and their scale s_t. A stale, truncated or foreign file is rebuilt."""
    path = target_path(params, step, folder)
    if _stored_key(path) != cache_key(training_rows(params), prior_folder, step):
        compute(params, step, prior_folder, folder)
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["anl"])
        target = file.get_tensor("target")
    place = {sample: index for index, sample in enumerate(header["samples"])}
    missing = [sample for sample in rows["sample_id"] if sample not in place]
    if missing:
        raise UserError(f"{path} holds no target for {missing[0]}; delete it and run `anl target --step {step}`")
    return target[[place[sample] for sample in rows["sample_id"]]], header["scale"]


def _stored_key(path):
    try:
        with safe_open(path, framework="pt") as file:
            return json.loads(file.metadata()["anl"])["key"]
    except Exception:  # missing, truncated or not ours: rebuilt by the caller
        return None
