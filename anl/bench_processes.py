"""`anl bench --together`: what two processes bring over one on this machine, in scoring and in training.

    python -m anl.bench_processes PARAMS OUT COUNT

starts them, and is what each of them runs; the main one writes what was measured to OUT.
"""

import contextlib
import dataclasses
import io
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from anl import bench_loops, cost, launch, params, predict, processes, runs
from anl.bench_machine import write
from anl.benchmark import read_images, read_manifest, use_rows
from anl.errors import UserError
from anl.files import read_json, write_json

ENOUGH = 768  # images scored: six batches, shared evenly by two processes
STEP, LARGE_STEP = "training step", "training step, ResNet-50"
LARGE = {"backbone": "resnet50", "stride": 32}  # a network in which messages between processes weigh less
LARGE_STEPS = 6


def run(params_path, repeats=5, folder="results/bench"):
    """Measure, print and write `folder`/processes/*.csv; returns that folder. Needs the method's targets (`anl target`)."""
    return write(Path(folder) / "processes", {"processes": processes_table(params_path, repeats)}, repeats)


def processes_table(params_path, repeats=5):
    """Images scored and training steps a second, by the number of processes and of threads each: a row each.

    One process has one thread, or all cores; two have a thread each. They take turns. `speed_over_one`: over one process of
    one thread, `speed_over_all_cores`: over one process with as many threads as there are processes.
    """
    ways = [(1, 1), (2, 1), (1, 2)]
    found = {way: {"scoring": [], STEP: [], LARGE_STEP: []} for way in ways}
    for _ in range(repeats):
        for way in ways:
            for what, speed in _measured(params_path, *way).items():
                found[way][what].append(speed)
    rows = []
    for count, threads in ways:
        for what, speeds in found[count, threads].items():
            row = {"what": what, "processes": count, "threads": threads, "a_second": float(np.median(speeds))}
            for name, base in (("one", (1, 1)), ("all_cores", (1, 2))):
                middle, low, high = cost.ratio(np.array(speeds), np.array(found[base][what]))
                row |= {f"speed_over_{name}": middle, f"speed_over_{name}_low": low, f"speed_over_{name}_high": high}
            rows.append(row)
    return pd.DataFrame(rows)


def _measured(params_path, count, threads):
    """{what: a second} of `count` processes; a new interpreter starts them, so that nothing is shared with this one."""
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(temporary) / "speed.json"
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        done = subprocess.run([sys.executable, "-m", "anl.bench_processes", str(params_path), str(out), str(count)], check=False,
                              env=environment, capture_output=True, text=True)
        if done.returncode or not out.is_file():
            raise UserError(f"{count} processes could not be measured: {(done.stderr.strip().splitlines() or ['no word'])[-1]}")
        return read_json(out)


def measure(settings, out):
    """One of the processes: scores images and trains for some steps; the main one writes {what: a second} to `out`."""
    rows = use_rows(read_manifest(settings.benchmark.folder), settings)
    rows = rows[rows["split"] == "test"].head(ENOUGH)
    pixels = read_images(settings.benchmark.folder, rows)
    network = cost.variants(dataclasses.asdict(settings.detector), settings.benchmark.size)[settings.method.attention]
    speeds, larger = {}, dataclasses.replace(settings.detector, **LARGE)
    for _ in range(2):  # the first warms up
        processes.gathered(None)  # all begin together
        began = time.perf_counter()
        with torch.no_grad():
            predict.score_treated(network, pixels, lambda image, _: image)
        speeds["scoring"] = len(pixels) / (time.perf_counter() - began)
    for what, detector, steps in ((STEP, settings.detector, bench_loops.STEPS), (LARGE_STEP, larger, LARGE_STEPS)):
        short = dataclasses.replace(settings, detector=detector, training=dataclasses.replace(settings.training, steps=steps))
        speeds[what] = 1 / bench_loops.step_seconds(runs.main_specs(short)[-1], short)
    if processes.here().main:
        write_json(out, speeds)


def main(params_path, out, count="1"):
    """Start `count` processes, or be one of them."""
    if launch.asked() > 1:
        return launch.share(lambda: measure(params.load(params_path), out), "anl bench", lambda problem: False)
    if int(count) > 1:
        with contextlib.redirect_stdout(io.StringIO()):
            return launch.start([params_path, out], int(count), ("-m", "anl.bench_processes"))
    return measure(params.load(params_path), out) or 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
