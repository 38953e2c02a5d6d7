"""`make bench`: what inference, training and targets cost on this machine, as tables under results/bench.

Other parts: anl.bench_detect, anl.bench_pipeline, anl.bench_processes; anl.bench_summary holds all against the limits.
"""

import dataclasses
import tempfile
from pathlib import Path

import torch

from anl import arithmetic, bench_compile, bench_loops, bench_peers, cost, targets
from anl.bench_machine import write
from anl.benchmark import read_images
from anl.data.patches import to_tensor
from anl.errors import UserError
from anl.prior import NoisePrior

STRIDE = 32  # of another backbone, where none is asked for: its deepest stage
LARGE = 64  # pixels on a side above which a training step has LARGE_BATCH images
LARGE_BATCH = 8
FEW = 5  # rounds of what takes seconds


def run(params, backbone=None, stride=None, size=None, repeats=30, stem_width=None, folder="results/bench", only=None):
    """Measure, print and write `folder`/NAME/*.csv; NAME is the backbone and the size. Returns that folder.

    stem_width: channels of the full-resolution stem, instead of the profile's; named in NAME where it is given. only: some of the
    tables; targets, peers and steps of the training loop are measured for the profile's own detector and size alone.
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
    batch, few = params.training.batch_size if size <= LARGE else LARGE_BATCH, min(repeats, FEW)
    used = arithmetic.in_use(params.training.precision, device)
    makers = {"inference": lambda: cost.inference_table(settings, size, repeats=repeats, device=device),
              "training": lambda: cost.training_table(settings, size, batch, used, repeats, device),
              "scoring": lambda: bench_loops.scoring_table(params, settings, size, few, device),
              "compile": lambda: bench_compile.compile_table(settings, size, batch, used, repeats=few, device=device)}
    if not backbone and size == params.benchmark.size:
        makers |= {"targets": lambda: _target_speed(params, device), "peers": lambda: bench_peers.peers_table(params, repeats=few),
                   "steps": lambda: bench_loops.step_table(params, few)}
    wanted = [name for name in makers if only is None or name in only]
    if unknown := [name for name in only or () if name not in makers]:
        raise UserError(f"--only {unknown[0]}: the tables here are {', '.join(makers)}")
    return write(Path(folder) / f"{named}-{size}", ((name, makers[name]()) for name in wanted), repeats, device,
                 training_precision=used)


def _target_speed(params, device):
    rows = targets.training_rows(params)
    prior = NoisePrior.load("models/prior", device, arithmetic.in_use(params.prior.precision, device))
    pixels = to_tensor(read_images(params.benchmark.folder, rows))
    with tempfile.TemporaryDirectory() as temporary:
        made = iter(range(1000))  # a new folder each time, so that the cache is never found
        return cost.target_table(lambda: targets.compute(params, params.method.step, folder=f"{temporary}/{next(made)}"),
                                 prior, pixels, params.method.step, repeats=2)
