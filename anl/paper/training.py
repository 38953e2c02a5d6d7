"""One detector trained on a protocol: images from the files, noise from the teacher, one process or many on Accelerate.

Beside `anl.train`, which holds a whole benchmark in memory: the loss, the learning rate, the processing and the detector are
the same, what differs is where a batch comes from.
"""

import dataclasses
import sys
import time
from pathlib import Path

import timm
import torch
from accelerate import Accelerator
from tqdm import tqdm

from anl import arithmetic, seeds
from anl import detector as detectors
from anl.errors import UserError
from anl.files import identity, write_csv, write_json
from anl.fitting import Checkpoint, learning_rate_factor
from anl.losses import anl_loss
from anl.paper.images import TrainingBatches, training_loader
from anl.paper.protocol import training_rows
from anl.paper.teacher import Teacher

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

    timm folds pretrained weights of the first layer from three channels to the stem's; without a stem they are taken as they
    are. Raises UserError where they cannot be had.
    """
    chosen, shape = settings.backbones[backbone], settings.detector
    noise = method != "plain"
    made = detectors.Detector(chosen.model, chosen.stride, shape.stem_width, shape.patch, settings.crop, noise=noise,
                              attention=shape.attention if noise else "none", attention_dim=shape.attention_dim,
                              noise_channels=teacher.channels if teacher else 3, noise_factor=teacher.cell if teacher else 1,
                              branch=shape.branch)
    if chosen.pretrained:
        index = made.backbone.feature_info.out_indices
        try:
            source = timm.create_model(chosen.model, pretrained=True, features_only=True, in_chans=3 if made.stem is None else shape.stem_width,
                                       out_indices=index)
        except Exception as problem:  # of the hub, the network or the cache: many kinds
            raise UserError(f"pretrained weights of {chosen.model} cannot be had ({' '.join(str(problem).split())[:150]}); "
                            "unset HF_HUB_OFFLINE where the hub can be reached, or set backbones."
                            f"{backbone}.pretrained to false") from None
        made.backbone.load_state_dict(source.state_dict())
    return made


def train(settings, protocol, backbone, method, seed, cache=".cache/anl", accelerator=None):
    """Train one detector into its run's folder, resuming from a checkpoint; returns the folder.

    Processes of `accelerate launch` share each batch. Raises UserError on a loss that is not finite, naming its files.
    """
    config, folder = settings.training, settings.run(protocol, backbone, method, seed)
    used = arithmetic.in_use(config.precision, "cuda" if torch.cuda.is_available() else "cpu")
    accelerator = accelerator or Accelerator(mixed_precision="no" if used == "fp32" else used)
    device, rank, world = accelerator.device, accelerator.process_index, accelerator.num_processes
    if config.batch_size // 2 < world:
        raise UserError(f"a batch of {config.batch_size // 2} pairs cannot be shared by {world} processes; raise "
                        "training.batch_size")
    teacher = Teacher(settings, protocol, device) if method != "plain" else None
    rows, _ = training_rows(settings, protocol)
    seeds.fix(seed, "paper", protocol, backbone, method)
    torch.use_deterministic_algorithms(False)  # on a GPU some backbones have no such kernels
    bare = build(settings, backbone, method, teacher).to(device, memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(bare.parameters(), config.learning_rate, weight_decay=config.weight_decay)
    wanted = run_identity(settings, protocol, backbone, method, seed)
    checkpoint = Checkpoint(cache, f"paper-{protocol}-{folder.name}", {"identity": wanted, "processes": world})
    curve, start, started = [], 0, time.monotonic()
    if state := checkpoint.load():
        bare.load_state_dict(state["detector"])
        optimiser.load_state_dict(state["optimiser"])
        curve, start = state["curve"], state["step"]
    detector, optimiser = accelerator.prepare(bare, optimiser)
    batches = training_loader(TrainingBatches(rows, settings.crop, config, seed, rank, world), start, config.workers)
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
        losses = anl_loss(output.logit, label, output.noise, target, untouched, settings.detector.loss_weight)
        if not torch.isfinite(losses["loss"]):
            raise UserError(f"{folder}: the loss is {losses['loss'].item()} at step {step + 1} (batch of "
                            f"{', '.join(batch['files'][:3])}, ...); lower training.learning_rate")
        accelerator.backward(losses["loss"])
        accelerator.clip_grad_norm_(detector.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        if step % max(1, config.steps // CURVE_POINTS) == 0 or step == config.steps - 1:
            curve.append({"step": step + 1, **{key: None if value is None else float(value.detach())
                                               for key, value in losses.items()}})
        if accelerator.is_main_process and time.monotonic() - saved_at > CHECKPOINT_SECONDS:
            checkpoint.save({"detector": bare.state_dict(), "optimiser": optimiser.state_dict(), "curve": curve,
                             "step": step + 1})
            saved_at = time.monotonic()
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        detectors.save(bare.cpu().to(memory_format=torch.contiguous_format), folder / WEIGHTS)
        write_csv(folder / "curve.csv", curve or [{"step": 0}])
        write_json(folder / "run.json", {
            "identity": wanted, "protocol": protocol, "backbone": backbone, "method": method, "seed": seed,
            "processes": world, "device": str(device), "images": len(rows), "wall_seconds": time.monotonic() - started,
            "scale": teacher.scale if teacher else None})
        checkpoint.remove()
    return Path(folder)
