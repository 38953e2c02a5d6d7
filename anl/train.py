"""One training loop, from top to bottom, on Accelerate: a CPU here, a GPU where there is one, with no change of code.

A batch holds pairs, a real patch and its regeneration, so that content tells nothing; batch k is a pure function of
the seed and k, so that a killed run resumes into the very batches it would have seen, and several processes share the batch
that one would take: losses are sums of shares of it, and batch norm standardises by all of it.
"""

import contextlib
import dataclasses
import sys
import time
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import average_precision_score
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from anl import arithmetic, baselines, processes, seeds, targets, tracking
from anl.benchmark import REAL, read_images
from anl.data import augment, formats
from anl.data.patches import to_tensor
from anl.detector import Detector
from anl.errors import UserError
from anl.files import write_text
from anl.fitting import Checkpoint, learning_rate_factor
from anl.losses import anl_loss
from anl.sync_norm import synchronised

CHECKPOINT_SECONDS = 10
CURVE_POINTS = 40
VAL_POINTS = 4
VAL_LIMIT = 256  # validation images scored while training; the last step's weights are used whatever they say


def fit_detector(spec, params, *, identity, cache=".cache/anl", accelerator=None, curves=None):
    """Train one detector; returns (detector in eval mode on the CPU, curve: list of dicts).

    spec: an anl.runs.RunSpec. identity: the run's hash, which names its checkpoint. curves: folder into which the
    curve's points are written as they come (anl.tracking). Several processes that have joined (anl.processes) share each
    batch, and all return the same detector. Raises UserError on a loss that is not finite, naming the step and the samples
    of its batch, and on a checkpoint of another number of processes.
    """
    config = baselines.recipe_of(spec, params)
    accelerator = accelerator or _accelerator(config.precision)
    me = processes.here()
    if config.batch_size // 2 < me.count:
        raise UserError(f"a batch of {config.batch_size // 2} pairs cannot be shared by {me.count} processes; raise "
                        "training.batch_size or lower launch.processes")
    data = _load_data(spec, params)
    seeds.fix(spec.seed, "detector", spec.target, spec.attention)
    detector = _build(spec, params, data)
    peer = baselines.get(spec.baseline) if spec.baseline else None
    if peer:
        baselines.prepare(detector, spec, params, data)
        if not peer.trained:
            return detector.eval(), []
    if me.count > 1:
        detector = synchronised(detector, accelerator.device)
    detector.to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(detector.parameters(), config.learning_rate, weight_decay=config.weight_decay)
    detector, optimiser = accelerator.prepare(detector, optimiser)
    # without Accelerate's own wrapper: validation and final scores are computed in full precision
    bare = accelerator.unwrap_model(detector, keep_fp32_wrapper=False)
    # what is validated and returned: the weights themselves, or their exponential average
    average = AveragedModel(bare, multi_avg_fn=get_ema_multi_avg_fn(config.ema), use_buffers=True) if config.ema else None
    final = average.module if average else bare
    resumable = {"detector": bare, "optimiser": optimiser, "average": average, "scaler": accelerator.scaler}
    checkpoint = Checkpoint(cache, spec.slug, {"identity": identity})
    curve, start = [], 0
    if state := processes.resumed(checkpoint):
        for name, part in resumable.items():
            if part is not None:
                part.load_state_dict(state[name])
        curve, start = state["curve"], state["step"]
    tracking.start(accelerator, curves, curve)
    saved_at = time.monotonic()
    for step in tqdm(range(start, config.steps), initial=start, total=config.steps, desc=spec.slug, mininterval=5,
                     file=sys.stderr, disable=not accelerator.is_main_process):
        for group in optimiser.param_groups:
            group["lr"] = config.learning_rate * learning_rate_factor(step, config.steps)
        pairs = pair_batch(len(data["real"]), config.batch_size // 2, spec.seed, step)
        plan = augment.plan(pairs, config, spec.seed, step)
        flips = augment.flips(pairs, config, spec.seed, step)
        fakes = _fake_rows(data, spec.seed, step)
        detector.train()
        optimiser.zero_grad(set_to_none=True)
        batch = (2 * len(pairs), int(_counted(pairs, plan, spec).sum()))
        losses = {}
        parts = np.array_split(pairs, min(config.accumulate, len(pairs) // me.count))
        for number, whole in enumerate(parts, 1):
            part = whole[me.index::me.count]
            # gradients are sent once a step, with the last part
            with contextlib.nullcontext() if number == len(parts) else accelerator.no_sync(detector):
                rows = np.concatenate([data["real"][part], fakes[part]])
                plans = [plan[pair] for pair in part.tolist()] * 2  # both images of a pair alike
                x = _inputs(data, rows, plans).to(accelerator.device, memory_format=torch.channels_last)
                label = torch.from_numpy(data["label"][rows]).to(accelerator.device)
                target = None if data["target"] is None else data["target"][rows].to(accelerator.device)
                if config.flip:  # a mirror image's noise is taken for the mirror image of the noise: nearly so, and free
                    flipped = [flips[pair] for pair in part.tolist()] * 2
                    x = augment.mirror(x, flipped).contiguous(memory_format=torch.channels_last)
                    target = None if target is None else augment.mirror(target, flipped)
                counts = torch.from_numpy(_counted(part, plan, spec)).to(accelerator.device)
                with accelerator.autocast():
                    output = detector(x, represented=True) if peer else detector(x)
                share = anl_loss(output.logit, label, output.noise, target, counts, spec.loss_weight, batch)
                if peer and peer.extra_loss:
                    guide = None if "guide" not in data else _chosen(data["guide"], rows, plans).to(accelerator.device)
                    share["loss"] = share["loss"] + len(label) / batch[0] * peer.extra_loss(
                        output, label, guide, dataclasses.asdict(params.baselines))
                if processes.any_of(not torch.isfinite(share["loss"]), accelerator.device):
                    _stop(spec, share["loss"], step, output, data["samples"][rows], cache)
                # gradients are averaged over processes
                accelerator.backward(share["loss"] * me.count if me.count > 1 else share["loss"])
            losses = {key: None if value is None else losses.get(key, 0) + value.detach() for key, value in share.items()}
        accelerator.clip_grad_norm_(detector.parameters(), 1.0)
        optimiser.step()
        if average:
            average.update_parameters(bare)
        if due(step, config.steps, CURVE_POINTS):
            known = {key: value for key, value in losses.items() if value is not None}
            sums = processes.summed(known.values(), accelerator.device)
            point = {"step": step + 1, **dict.fromkeys(losses), **dict(zip(known, sums)), "val_AP": None}
            if due(step, config.steps, VAL_POINTS):
                point["val_AP"] = float(_validate(final, data, accelerator.device))
            curve.append(point)
            tracking.log(accelerator, point)
        if accelerator.is_main_process and time.monotonic() - saved_at > CHECKPOINT_SECONDS:
            states = {name: part.state_dict() for name, part in resumable.items() if part is not None}
            checkpoint.save({**states, "curve": curve, "step": step + 1, "processes": me.count})
            saved_at = time.monotonic()
    for tracker in accelerator.trackers:  # not end_training, which would part the processes
        tracker.finish()
    if me.main:
        checkpoint.remove()
    return final.cpu().eval(), curve


def _accelerator(precision):
    if precision == "fp16" and not torch.cuda.is_available():
        raise UserError("training.precision fp16 needs a GPU, and there is none here; choose bf16 or fp32")
    used = arithmetic.in_use(precision, "cuda" if torch.cuda.is_available() else "cpu")
    return processes.accelerator(used, tracking.TRACKER)


def _build(spec, params, data):
    if spec.baseline:
        return baselines.build(spec.baseline, dataclasses.asdict(params.detector), params.benchmark.size,
                               dataclasses.asdict(params.baselines), params.models_folder)
    channels, factor = _noise_shape(data, params.benchmark.size)
    return Detector(**dataclasses.asdict(params.detector), size=params.benchmark.size, noise=spec.target != "none",
                    attention=spec.attention, gradient=spec.gradient, noise_channels=channels, noise_factor=factor,
                    branch=spec.branch, reads=spec.reads)


def _fake_rows(data, seed, step):
    """(pairs,): the row of each pair's generated image in this batch, one of its alternatives where it has several."""
    pairs, alternatives = data["fake"].shape
    if alternatives == 1:
        return data["fake"][:, 0]
    return data["fake"][np.arange(pairs), seeds.generator(seed, "alternatives", step).integers(alternatives, size=pairs)]


def _inputs(data, rows, plans):
    """What the detector sees of a batch: pixels after their plans, or what frozen models have made of them before."""
    if "represented" in data:
        return _chosen(data["represented"], rows, plans)
    return to_tensor(augment.apply(plans, data["pixels"][rows]))


def _chosen(pair, rows, plans):
    """Rows of pair[0] where the plan is None, of pair[1] where the image is processed."""
    return pair[torch.tensor([int(plan is not None) for plan in plans]), torch.from_numpy(rows)]


def _noise_shape(data, size):
    """Channels of the noise, and image pixels on a side of one of its cells."""
    return (3, 1) if data["target"] is None else (data["target"].shape[1], size // data["target"].shape[2])


def _counted(pairs, plan, spec):
    """(2 * pairs,) of bool, reals first: the images of the chosen class whose noise is asked for, all of them or the
    untouched ones."""
    asked = np.array([spec.consistent or plan[pair] is None for pair in pairs.tolist()])
    return np.concatenate([asked & (spec.noise_on != "generated"), asked & (spec.noise_on != "real")])


def _stop(spec, loss, step, output, samples, cache):
    """Raise the UserError of a loss that is not finite on some process; the samples of its batch go into a file."""
    path = Path(cache) / f"{spec.slug}-stopped.txt"
    bad = samples[~torch.isfinite(output.logit.detach().float().cpu()).numpy()]
    shares = processes.gathered((float(loss.detach()), bad.tolist(), samples.tolist()))
    samples = [name for _, _, names in shares for name in names]
    first = ([name for _, names, _ in shares for name in names] or samples)[:3]
    ranks = [rank for rank, (value, _, _) in enumerate(shares) if not np.isfinite(value)]
    where = "" if len(shares) == 1 else f" in process {' and '.join(map(str, ranks))} of {len(shares)}"

    def stop():
        write_text(path, "\n".join(samples) + "\n")
        raise UserError(f"{spec.slug}: the loss is {shares[ranks[0]][0]} at step {step + 1}{where} (batch of "
                        f"{', '.join(first)}, ...; all of it in {path}); lower training.learning_rate")

    processes.agreed(stop)


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
    if not real:
        raise UserError("the benchmark holds no training patches; raise use.train")
    if spec.pairs > len(real):
        raise UserError(f"{spec.pairs} training pairs were asked for, and the benchmark holds {len(real)}")
    if spec.pairs:  # smaller sets lie in the larger ones
        order = seeds.generator(spec.seed, "pairs").permutation(len(real))[:spec.pairs]
        real = [real[index] for index in sorted(order)]
    fake = [f"{params.benchmark.seen}/{sample.split('/', 1)[1]}" for sample in real]
    val = val.iloc[np.argsort(val["sample_id"].str.split("/", n=1).str[1].to_numpy(), kind="stable")[:VAL_LIMIT]]
    pixels, val_pixels = (formats.as_published(read_images(params.benchmark.folder, part), part["label"], spec.formats)
                          for part in (train, val))
    return {"pixels": pixels, "label": train["label"].to_numpy(np.float32), "samples": train["sample_id"].to_numpy(),
            "real": np.array([places[s] for s in real]), "fake": np.array([[places[s]] for s in fake]),
            "target": None if spec.target == "none" else targets.load(params, spec.step, train, spec.target,
                                                                      spec.formats)[0],
            "val_pixels": val_pixels, "val_label": val["label"].to_numpy()}


@torch.no_grad()
def _validate(detector, data, device):
    detector.eval()
    logit = torch.cat(processes.spread(lambda batch: detector(to_tensor(data["val_pixels"][batch]).to(device)).logit.float()
                                       .cpu(), len(data["val_pixels"]), 64))
    return average_precision_score(data["val_label"], logit.numpy())
