"""What the paper's experiment costs before it is started: operations counted, unit costs measured, the rest said to be a guess.

Counted: operations, parameters and what a training step keeps, of the very models (anl.counting). Measured, on the machine of
results/bench: seconds of a training step, of scoring, of a prior's call and of decoding an image. Extrapolated: that another
model reaches the same operations a second. On a GPU nothing was measured: the reader gives the rate.
"""

import io
import os
import platform
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from anl import counting, prior_training
from anl.data import manifest, registry
from anl.errors import UserError
from anl.files import write_csv, write_json

BENCH = "results/bench"
UNITS = "test_resnet-64"  # whose training, inference and targets the machine's rates follow from
DECODE = "decode-256"
BENCH_PRIOR = {"channels": [32, 48, 72], "layers_per_block": 1}  # what `anl bench` times: models/prior on 64 pixels
BACKWARD = 3  # a training step computes about three forward passes (Kaplan et al. 2020, section 2.1)
COLUMNS = ("stage", "what", "times", "images", "PFLOP", "hours", "disk_GB", "memory_GB", "known_from")
ROW_BYTES, SCORE_BYTES = 150, 40  # of a manifest's row, and of a score in Parquet, compressed: about, of what tests write


@dataclass(frozen=True)
class Rates:
    """train, score, prior: operations a second. decode: seconds of one core for a crop of a JPEG and of a PNG, and for a
    megabyte of either. cores: that decode."""

    train: float
    score: float
    prior: float
    decode: float
    decode_mb: float
    cores: int
    where: str


@dataclass(frozen=True)
class Budget:
    """rows: dicts with COLUMNS; hours are of all `times` together, None where something needed is not known. notes: what was
    counted, measured, entered and left open, a sentence each."""

    rows: list
    notes: list
    rates: Rates


def measure(settings, folder=f"{BENCH}/{DECODE}", images=24):
    """Time decoding and cropping on one core and write decode.csv and machine.json into `folder`; returns the folder.

    Pictures like the data sets': a photograph-like JPEG of quality 96 and 500 x 375 pixels, a PNG of 512 x 512. Processor time,
    so that other work on the machine does not count.
    """
    from PIL import Image

    from anl.data.decode import decode_bytes
    from anl.paper.images import crop

    rng, rows = np.random.default_rng(0), []
    for kind, size, options in (("JPEG", (500, 375), {"quality": 96}), ("PNG", (512, 512), {})):
        coarse = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
        grain = np.clip(np.asarray(coarse, float) + rng.normal(0, 6, (size[1], size[0], 3)), 0, 255).astype(np.uint8)
        stream = io.BytesIO()
        Image.fromarray(grain).save(stream, format=kind, **options)
        seconds = []
        for _ in range(images):
            started = time.process_time()
            crop(decode_bytes(stream.getvalue()), settings.crop)
            seconds.append(time.process_time() - started)
        rows.append({"format": kind, "width": size[0], "height": size[1], "bytes": len(stream.getvalue()),
                     "core_seconds": float(np.median(seconds)), "core_seconds_low": float(np.quantile(seconds, 0.25)),
                     "core_seconds_high": float(np.quantile(seconds, 0.75))})
    write_csv(Path(folder) / "decode.csv", rows)
    write_json(Path(folder) / "machine.json", {"cores": os.cpu_count(), "device": platform.machine(), "repeats": images,
                                               "torch": torch.__version__, "python": platform.python_version()})
    return Path(folder)


def rates(tflops=None, gpus=1, cores=None, bench=BENCH):
    """Rates of the machine that was measured, or of GPUs that reach `tflops` each, while cores decode as was measured."""
    folder, decode = Path(bench) / UNITS, _read(Path(bench) / DECODE / "decode.csv", "anl budget --measure")
    per_image, per_mb = decode["core_seconds"].mean(), decode["core_seconds"].sum() / decode["bytes"].sum() * 1e6
    counted = _read(folder / "inference.csv").query("batch == 64").set_index("model")
    step, made = _read(folder / "training.csv").set_index("model"), _read(folder / "targets.csv").set_index("what")
    with torch.device("meta"):
        unet, x = prior_training.build(**BENCH_PRIOR).eval(), torch.zeros(1, 3, 64, 64)
        time_ = torch.zeros((), dtype=torch.long)
    prior_flops = counting.flops_of(lambda: unet(x, time_))
    if tflops is not None:
        rate = tflops * 1e12 * gpus
        return Rates(rate, rate, rate, per_image, per_mb, cores or os.cpu_count(), f"{gpus} GPU{'s' if gpus > 1 else ''} at {tflops:g} TFLOP/s each")
    ours = "affinity"
    train = BACKWARD * 2 * counted.loc[ours, "multiply_adds"] * step.loc[ours, "batch"] / step.loc[ours, "seconds"]
    score = 2 * counted.loc[ours, "multiply_adds"] * 64 / (counted.loc[ours, "milliseconds"] / 1000)
    return Rates(float(train), float(score), float(made.loc["bare prior", "images_per_second"] * prior_flops), per_image, per_mb,
                 cores or 2, "the machines measured in results/bench")


def work_out(settings, tflops=None, gpus=1, cores=None, bench=BENCH):
    """The Budget of a profile's settings."""
    rate = rates(tflops, gpus, cores, bench)
    call, channels, cell = counting.prior_cost(settings.prior.source, settings.crop)
    rows, runs_each = [], len(settings.protocols) * len(settings.seeds)
    tested = {name: _test_images(settings, name) for name in settings.tested}
    for name in settings.sets:
        rows.append(_index_row(name, rate))
    seen = len(settings.protocols) * settings.prior.scale_images
    rows.append(_row("targets", settings.prior.source, len(settings.protocols), seen, seen * call.flops, rate.prior, rate, seen,
                     0.0, 4 * call.parameters, "counted, rate"))
    training = settings.training
    for name, backbone in settings.backbones.items():
        for method in settings.methods:
            noise = method != "plain"
            cost = counting.detector_cost(backbone, settings.detector, settings.crop, noise, channels, cell)
            images = training.steps * training.batch_size
            asked = images * (1 - training.augment_probability) if noise else 0
            step, teacher = BACKWARD * cost.flops * images, call.flops * asked
            seconds = step / rate.train + teacher / rate.prior
            # weights, gradients and AdamW's two moments in float32; what is kept for the backward pass in 16 bits
            memory = 16 * cost.parameters + 2 * cost.kept * training.batch_size + (4 * call.parameters if noise else 0)
            made = _row("train", f"{name}, {method}", runs_each, images, step + teacher, None, rate, images,
                        runs_each * 4 * cost.parameters + 12 * cost.parameters, memory, "counted, rate")
            rows.append({**made, "PFLOP": runs_each * made["PFLOP"],
                         "hours": runs_each * max(seconds, images * rate.decode / rate.cores) / 3600})
            scored = sum(count for count, _ in tested.values()) * len(settings.evaluation.views)
            made = _row("score", f"{name}, {method}", runs_each, scored, cost.flops * scored, rate.score, rate, scored,
                        runs_each * SCORE_BYTES * scored, 4 * cost.parameters + 4 * cost.kept * settings.evaluation.batch_size / 8,
                        "counted, rate; images " + " and ".join(sorted({known for _, known in tested.values()})))
            rows.append({**made, "PFLOP": runs_each * made["PFLOP"], "hours": runs_each * made["hours"]})
    rows.append({**dict.fromkeys(COLUMNS), "stage": "table", "what": "all runs", "times": 1, "known_from": "minutes; not measured"})
    rows.sort(key=lambda row: ("index", "targets", "train", "score", "table").index(row["stage"]))
    rows.append(_total(rows))
    return Budget(rows, _notes(settings, rate, call, tested, tflops), rate)


def _row(stage, what, times, images, flops, speed, rate, decoded, disk, memory, known):
    seconds = max(flops / speed if speed else 0.0, decoded * rate.decode / rate.cores)
    return {"stage": stage, "what": what, "times": times, "images": int(images), "PFLOP": flops / 1e15, "hours": seconds / 3600,
            "disk_GB": disk / 1e9, "memory_GB": memory / 1e9, "known_from": known}


def _index_row(name, rate):
    source = registry.get(name)
    size = source.bytes or source.unpacked_bytes
    images = source.images or sum(count.images for count in source.counts if count.generator is None and count.split is None) or None
    seconds, known = None, "number and size are not known"
    if images:
        seconds, known = images * rate.decode, "registry's number of images, decoding measured"
    elif size:
        seconds, known = size / 1e6 * rate.decode_mb, "registry's bytes, decoding measured"
    return {"stage": "index", "what": name, "times": 1, "images": images, "PFLOP": 0.0,
            "hours": None if seconds is None else seconds / rate.cores / 3600,
            "disk_GB": (size + ROW_BYTES * (images or 0)) / 1e9 if size else None, "memory_GB": 1.0, "known_from": known}


def _test_images(settings, name):
    """(test images of a set, "counted" or "assumed")."""
    path = settings.manifest(name)
    if path.is_file():
        return int(manifest.counts(path, ("split",), split="test")["images"].sum()), "counted"
    return settings.sets[name].assumed, "assumed"


def _total(rows):
    def added(key):
        return sum(row[key] for row in rows if row[key] is not None)

    lacking = [row["what"] for row in rows if row["stage"] == "index" and row["hours"] is None]
    return {**dict.fromkeys(COLUMNS), "stage": "all", "what": "", "PFLOP": added("PFLOP"), "hours": added("hours"),
            "disk_GB": added("disk_GB"), "memory_GB": max(row["memory_GB"] for row in rows if row["memory_GB"] is not None),
            "known_from": f"without index of {', '.join(lacking)}" if lacking else "all of the above"}


def _notes(settings, rate, call, tested, tflops):
    assumed = [name for name, (_, known) in tested.items() if known == "assumed"]
    notes = [f"Hours are for {rate.where}, {rate.cores} cores decoding; a stage takes as long as the slower of the two.",
             (f"Decoding a crop was measured: {1000 * rate.decode:.1f} ms of one core. One call of {settings.prior.source} on a crop "
              f"of {settings.crop} pixels is {call.flops / 1e9:,.0f} GFLOP, counted.")]
    if tflops is None:
        notes.append(f"Measured: {rate.train / 1e9:,.0f} GFLOP/s in training, {rate.score / 1e9:,.0f} in scoring, "
                     f"{rate.prior / 1e9:,.0f} in the prior, each with a small model; that a large one reaches the same is "
                     "extrapolated.")
    else:
        notes.append("On a GPU nothing was measured here: hours = PFLOP / (3.6 x TFLOP/s x GPUs), with the rate you gave. Give what "
                     "a training of yours reaches, well below the data sheet's figure; GPUs are taken to divide the time.")
    if assumed:
        notes.append(f"Numbers of test images of {', '.join(assumed)} are assumed (profiles/paper.yaml) until `anl paper index` "
                     "has counted them.")
    return notes


def write(found, gpu, folder="results/scale"):
    """Write two budgets side by side, found: of the machine measured, gpu: of one GPU at a stated rate, for the book."""
    rows = [{**row, "hours_on_gpu": other["hours"]} for row, other in zip(found.rows, gpu.rows, strict=True)]
    write_csv(Path(folder) / "budget.csv", rows, [*COLUMNS[:6], "hours_on_gpu", *COLUMNS[6:]])
    write_json(Path(folder) / "budget.json", {
        "notes": [*found.notes, gpu.notes[2]], "gpu": f"{gpu.rates.where}, {gpu.rates.cores} cores decoding"})
    return Path(folder)


def _read(path, command="make bench"):
    if not path.is_file():
        raise UserError(f"{path} is missing; measure it with `{command}`")
    return pd.read_csv(path)
