"""One training loop, from top to bottom, on Accelerate: a CPU here, a GPU where there is one, with no change of code.

A batch holds pairs, a real patch and its regeneration, so that content tells nothing; batch k is a pure function of
the seed and k, so that a killed run resumes into the very batches it would have seen.
"""

import dataclasses
import sys
import time

import numpy as np
import torch
from accelerate import Accelerator
from sklearn.metrics import average_precision_score
from tqdm import tqdm

from anl import seeds, targets
from anl.benchmark import REAL, read_images
from anl.data import augment
from anl.data.patches import to_tensor
from anl.detector import Detector
from anl.errors import UserError
from anl.fitting import Checkpoint, learning_rate_factor
from anl.losses import anl_loss

CHECKPOINT_SECONDS = 10
CURVE_POINTS = 40
VAL_POINTS = 4
VAL_LIMIT = 256  # validation images scored while training; the last step's weights are used whatever they say


def fit_detector(spec, params, *, identity, cache=".cache/anl", accelerator=None):
    """Train one detector; returns (detector in eval mode on the CPU, curve: list of dicts).

    spec: an anl.runs.RunSpec. identity: the run's hash, which names its checkpoint. Raises UserError on a loss that is
    not finite, naming the step and the samples of its batch.
    """
    accelerator = accelerator or Accelerator(mixed_precision="no" if params.training.precision == "fp32" else "bf16")
    data = _load_data(spec, params)
    config = params.training
    seeds.fix(spec.seed, "detector", spec.target, spec.attention)
    detector = Detector(**dataclasses.asdict(params.detector), size=params.benchmark.size,
                        noise=spec.target != "none", attention=spec.attention)
    detector.to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(detector.parameters(), config.learning_rate, weight_decay=config.weight_decay)
    detector, optimiser = accelerator.prepare(detector, optimiser)
    # without Accelerate's own wrapper: validation and final scores are computed in full precision
    bare = accelerator.unwrap_model(detector, keep_fp32_wrapper=False)
    checkpoint = Checkpoint(cache, spec.slug, {"identity": identity})
    curve, start = [], 0
    if state := checkpoint.load():
        bare.load_state_dict(state["detector"])
        optimiser.load_state_dict(state["optimiser"])
        curve, start = state["curve"], state["step"]
    saved_at = time.monotonic()
    for step in tqdm(range(start, config.steps), initial=start, total=config.steps, desc=spec.slug, mininterval=5,
                     file=sys.stderr, disable=not accelerator.is_main_process):
        for group in optimiser.param_groups:
            group["lr"] = config.learning_rate * learning_rate_factor(step, config.steps)
        pairs = pair_batch(len(data["real"]), config.batch_size // 2, spec.seed, step)
        plan = augment.plan(pairs, config, spec.seed, step)
        pairs = pairs[accelerator.process_index::accelerator.num_processes]
        rows = np.concatenate([data["real"][pairs], data["fake"][pairs]])
        plans = [plan[pair] for pair in pairs.tolist()] * 2  # both images of a pair alike
        x = to_tensor(augment.apply(plans, data["pixels"][rows])).to(accelerator.device, memory_format=torch.channels_last)
        label = torch.from_numpy(data["label"][rows]).to(accelerator.device)
        target = None if data["target"] is None else data["target"][rows].to(accelerator.device)
        untouched = torch.tensor([p is None for p in plans], device=accelerator.device)  # as the prior saw them
        detector.train()
        with accelerator.autocast():
            output = detector(x)
        losses = anl_loss(output.logit, label, output.noise, target, untouched, spec.loss_weight)
        if not torch.isfinite(losses["loss"]):
            raise UserError(f"{spec.slug}: the loss is {losses['loss'].item()} at step {step + 1} "
                            f"(batch of {', '.join(data['samples'][rows[:3]])}, ...); lower training.learning_rate")
        optimiser.zero_grad(set_to_none=True)
        accelerator.backward(losses["loss"])
        accelerator.clip_grad_norm_(detector.parameters(), 1.0)
        optimiser.step()
        if due(step, config.steps, CURVE_POINTS):
            point = {"step": step + 1, **{key: None if v is None else float(v.detach()) for key, v in losses.items()},
                     "val_AP": None}
            if due(step, config.steps, VAL_POINTS):
                point["val_AP"] = float(_validate(bare, data, accelerator.device))
            curve.append(point)
        if accelerator.is_main_process and time.monotonic() - saved_at > CHECKPOINT_SECONDS:
            checkpoint.save({"detector": bare.state_dict(), "optimiser": optimiser.state_dict(), "curve": curve,
                             "step": step + 1})
            saved_at = time.monotonic()
    checkpoint.remove()
    return bare.cpu().eval(), curve


def pair_batch(pairs, size, seed, step):
    """Indices of the pairs in batch `step`: epochs of shuffled pairs, laid end to end, cut into batches of `size`."""
    wanted = np.arange(step * size, (step + 1) * size)
    epochs = {e: seeds.generator(seed, "order", e).permutation(pairs) for e in np.unique(wanted // pairs).tolist()}
    return np.array([epochs[position // pairs][position % pairs] for position in wanted.tolist()])


def due(step, steps, points):
    """Whether one of `points` equal shares of `steps` ends with this step."""
    return (step + 1) * points // steps > step * points // steps


def _load_data(spec, params):
    rows = targets.training_rows(params)
    train, val = (rows[rows["split"] == split].reset_index(drop=True) for split in ("train", "val"))
    places = {sample: index for index, sample in enumerate(train["sample_id"])}
    real = [sample for sample in train["sample_id"] if sample.startswith(f"{REAL}/")]
    fake = [f"{params.benchmark.seen}/{sample.split('/', 1)[1]}" for sample in real]
    if not real:
        raise UserError("the benchmark holds no training patches; raise use.train")
    order = np.argsort(val["sample_id"].str.split("/", n=1).str[1].to_numpy(), kind="stable")[:VAL_LIMIT]
    return {"pixels": read_images(params.benchmark.folder, train), "label": train["label"].to_numpy(np.float32),
            "samples": train["sample_id"].to_numpy(), "real": np.array([places[s] for s in real]),
            "fake": np.array([places[s] for s in fake]),
            "target": None if spec.target == "none" else targets.load(params, spec.step, train, spec.target)[0],
            "val_pixels": read_images(params.benchmark.folder, val.iloc[order]),
            "val_label": val.iloc[order]["label"].to_numpy()}


@torch.no_grad()
def _validate(detector, data, device):
    detector.eval()
    logit = torch.cat([detector(to_tensor(data["val_pixels"][i:i + 64]).to(device)).logit.float().cpu()
                       for i in range(0, len(data["val_pixels"]), 64)])
    return average_precision_score(data["val_label"], logit.numpy())
