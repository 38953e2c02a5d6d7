"""One detector trained on a protocol: images from the files, noise from the teacher, one process or many on Accelerate.

Beside `anl.train`, which holds a whole benchmark in memory: the loss, the learning rate, the processing and the detector are
the same, what differs is where a batch comes from.
"""

import dataclasses
import math
import sys
import time
from pathlib import Path

import torch
from tqdm import tqdm

from anl import arithmetic, processes, seeds
from anl import detector as detectors
from anl.errors import UserError
from anl.files import identity, write_csv, write_json
from anl.fitting import Checkpoint, learning_rate_factor
from anl.losses import anl_loss
from anl.paper.images import TrainingBatches, training_loader
from anl.paper.protocol import training_rows
from anl.paper.store import pictures
from anl.paper.teacher import Teacher
from anl.sync_norm import synchronised

CHECKPOINT_SECONDS = 120
CURVE_POINTS = 200
WEIGHTS = "model.safetensors"


def run_identity(settings, protocol, backbone, method, seed):
    """Hash of everything that decides a run's weights."""
    parts = {key: dataclasses.asdict(settings)[key] for key in ("seed", "limit", "prior", "crop", "detector", "training",
                                                                "validation")}
    del parts["training"]["workers"]
    if parts["detector"]["branch"] == "stem":  # it came later: runs without it keep their identity
        del parts["detector"]["branch"]
    return identity({**parts, "protocol": dataclasses.asdict(settings.protocols[protocol]),
                     "backbone": dataclasses.asdict(settings.backbones[backbone]), "method": method, "run_seed": seed})


def build(settings, backbone, method, teacher=None):
    """The untrained Detector, its backbone as timm gives it: pretrained where the profile says so.

    timm repeats the first layer's pretrained weights, which are of three channels, over the stem's. The stem itself starts
    untrained, so that layer has to learn anew what its inputs mean, while deeper ones begin where they were; without a stem
    all are taken as they are. Raises UserError where the weights cannot be had.
    """
    chosen, shape = settings.backbones[backbone], settings.detector
    noise = method != "plain"
    made = detectors.Detector(chosen.model, chosen.stride, shape.stem_width, shape.patch, settings.crop, noise=noise,
                              attention=shape.attention if noise else "none", attention_dim=shape.attention_dim,
                              noise_channels=teacher.channels if teacher else 3, noise_factor=teacher.cell if teacher else 1,
                              branch=shape.branch)
    if chosen.pretrained:
        try:
            made.backbone = detectors.features_of(chosen.model, chosen.stride, 3 if made.stem is None else shape.stem_width,
                                                  settings.crop, pretrained=True)
        except Exception as problem:  # of the hub, the network or the cache: many kinds
            raise UserError(f"pretrained weights of {chosen.model} cannot be had ({' '.join(str(problem).split())[:150]}); "
                            "unset HF_HUB_OFFLINE where the hub can be reached, or set backbones."
                            f"{backbone}.pretrained to false") from None
    return made


def checkpoint_of(settings, protocol, backbone, method, seed, cache=".cache/anl"):
    """The Checkpoint of a run."""
    wanted = run_identity(settings, protocol, backbone, method, seed)
    return Checkpoint(cache, f"paper-{protocol}-{settings.run(protocol, backbone, method, seed).name}", {"identity": wanted})


def train(settings, protocol, backbone, method, seed, cache=".cache/anl", accelerator=None):
    """Train one detector into its run's folder, resuming from a checkpoint; returns the folder.

    Several processes that have joined (anl.processes) share each batch: losses are sums of shares of it, and batch norm
    standardises by all of it. Raises UserError on a loss that is not finite, naming its files, on a batch that has fewer
    pairs than there are processes, and on a checkpoint of another number of processes.
    """
    config, folder = settings.training, settings.run(protocol, backbone, method, seed)
    used = arithmetic.in_use(config.precision, "cuda" if torch.cuda.is_available() else "cpu")
    accelerator = accelerator or processes.accelerator(used)
    device, me = accelerator.device, processes.here()
    if config.batch_size // 2 < me.count:
        raise UserError(f"a batch of {config.batch_size // 2} pairs cannot be shared by {me.count} processes; raise "
                        "training.batch_size or lower launch.processes")
    teacher = Teacher(settings, protocol, device) if method != "plain" else None
    rows, _ = training_rows(settings, protocol)
    seeds.fix(seed, "paper", protocol, backbone, method)
    torch.use_deterministic_algorithms(False)  # on a GPU some backbones have no such kernels
    bare = build(settings, backbone, method, teacher)
    if me.count > 1:
        bare = synchronised(bare, device)
    bare.to(device, memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(bare.parameters(), config.learning_rate, weight_decay=config.weight_decay)
    checkpoint = checkpoint_of(settings, protocol, backbone, method, seed, cache)
    curve, start, started = [], 0, time.monotonic()
    if state := processes.resumed(checkpoint):
        bare.load_state_dict(state["detector"])
        optimiser.load_state_dict(state["optimiser"])
        curve, start = state["curve"], state["step"]
    detector, optimiser = accelerator.prepare(bare, optimiser)
    kept = pictures(settings, settings.protocols[protocol].train, rows)
    batches = training_loader(TrainingBatches(rows, settings.crop, config, seed, me.index, me.count, kept),
                              range(start, config.steps), config.workers)
    saved_at = time.monotonic()
    for step, batch in enumerate(tqdm(batches, initial=start, total=config.steps, desc=f"{protocol} {folder.name}",
                                      mininterval=5, file=sys.stderr, disable=not accelerator.is_main_process), start):
        for group in optimiser.param_groups:
            group["lr"] = config.learning_rate * learning_rate_factor(step, config.steps)
        detector.train()
        x = batch["x"].to(device, non_blocking=True, memory_format=torch.channels_last)
        label, untouched = (batch[key].to(device, non_blocking=True) for key in ("label", "untouched"))
        target = teacher.target(x, untouched) if teacher else None
        with accelerator.autocast():
            output = detector(x)
        losses = anl_loss(output.logit, label, output.noise, target, untouched, settings.detector.loss_weight, batch["whole"])
        if processes.any_of(not torch.isfinite(losses["loss"]), device):
            _stop(folder, losses["loss"], step, batch["files"])
        # gradients are averaged over processes
        accelerator.backward(losses["loss"] * me.count if me.count > 1 else losses["loss"])
        accelerator.clip_grad_norm_(detector.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        if step % max(1, config.steps // CURVE_POINTS) == 0 or step == config.steps - 1:
            known = {key: value.detach() for key, value in losses.items() if value is not None}
            sums = processes.summed(known.values(), device)
            curve.append({"step": step + 1, **dict.fromkeys(losses), **dict(zip(known, sums))})
        if accelerator.is_main_process and time.monotonic() - saved_at > CHECKPOINT_SECONDS:
            checkpoint.save({"detector": bare.state_dict(), "optimiser": optimiser.state_dict(), "curve": curve,
                             "step": step + 1, "processes": me.count})
            saved_at = time.monotonic()

    def save():
        detectors.save(bare.cpu().to(memory_format=torch.contiguous_format), folder / WEIGHTS)
        write_csv(folder / "curve.csv", curve or [{"step": 0}])
        write_json(folder / "run.json", {
            "identity": run_identity(settings, protocol, backbone, method, seed), "protocol": protocol, "backbone": backbone, "method": method, "seed": seed,
            "processes": me.count, "device": str(device), "images": len(rows), "wall_seconds": time.monotonic() - started,
            "scale": teacher.scale if teacher else None})
        checkpoint.remove()

    processes.agreed(save)
    return Path(folder)


def _stop(folder, loss, step, files):
    """Raise the UserError of a loss that is not finite on some process, naming images of its share of the batch."""
    shares = processes.gathered((float(loss.detach()), files))
    ranks = [rank for rank, (value, _) in enumerate(shares) if not math.isfinite(value)]
    value, files = shares[ranks[0]]
    where = "" if len(shares) == 1 else f" in process {' and '.join(map(str, ranks))} of {len(shares)}"

    def stop():
        raise UserError(f"{folder}: the loss is {value} at step {step + 1}{where} (batch of {', '.join(files[:3])}, ...); lower "
                        "training.learning_rate")

    processes.agreed(stop)
