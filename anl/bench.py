"""`make bench`: what inference, training and targets cost on this machine, as tables under results/bench."""

import dataclasses
import os
import platform
import resource
import tempfile
from pathlib import Path

import torch

from anl import arithmetic, cost, targets
from anl.benchmark import read_images
from anl.data.patches import to_tensor
from anl.errors import UserError
from anl.files import write_csv, write_json
from anl.prior import NoisePrior

STRIDE = 32  # of another backbone, where none is asked for: its deepest stage


def run(params, backbone=None, stride=None, size=None, repeats=30, stem_width=None, folder="results/bench"):
    """Measure, print and write `folder`/NAME/*.csv; NAME is the backbone and the size. Returns that folder.

    stem_width: channels of the full-resolution stem, instead of the profile's; named in NAME where it is given.

    A detector of another backbone or size is compared at inference and in training; targets are made with the profile's.
    """
    if repeats < 2:
        raise UserError(f"--repeats {repeats}: at least 2 rounds make a median")
    settings = dataclasses.asdict(params.detector)
    if backbone:
        settings |= {"backbone": backbone, "stride": stride or STRIDE}
    settings["stride"] = stride or settings["stride"]
    settings["stem_width"] = stem_width or settings["stem_width"]
    size = size or params.benchmark.size
    device = "cuda" if torch.cuda.is_available() else "cpu"
    named = f"{settings['backbone']}-stem{stem_width}" if stem_width else settings["backbone"]
    folder = Path(folder) / f"{named}-{size}"
    batch = params.training.batch_size if size <= 64 else 8
    used = arithmetic.in_use(params.training.precision, device)
    tables = {"inference": cost.inference_table(settings, size, repeats=repeats, device=device),
              "training": cost.training_table(settings, size, batch, used, repeats, device)}
    if not backbone and size == params.benchmark.size:
        tables["targets"] = _target_speed(params, device)
    for name, table in tables.items():
        write_csv(folder / f"{name}.csv", table.to_dict("records"))
        print(f"\n{name}\n{table.round(3).to_string(index=False)}")
    write_json(folder / "machine.json", {
        "device": torch.cuda.get_device_name() if device == "cuda" else platform.machine(), "cores": os.cpu_count(),
        "torch": torch.__version__, "training_precision": used, "python": platform.python_version(), "repeats": repeats,
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024})
    return folder


def _target_speed(params, device):
    rows = targets.training_rows(params)
    prior = NoisePrior.load("models/prior", device, arithmetic.in_use(params.prior.precision, device))
    pixels = to_tensor(read_images(params.benchmark.folder, rows))
    with tempfile.TemporaryDirectory() as temporary:
        made = iter(range(1000))  # a new folder each time, so that the cache is never found
        return cost.target_table(lambda: targets.compute(params, params.method.step, folder=f"{temporary}/{next(made)}"),
                                 prior, pixels, params.method.step, repeats=2)
