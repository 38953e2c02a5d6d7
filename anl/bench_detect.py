"""`anl bench --detect`: what using a detector costs on this machine, as tables under results/bench.

Speed of reading pictures, of the network, and of both as `anl detect` runs them; memory by the number of pictures; the time
to a first score; ONNX runtime beside PyTorch. One thread for the network and one for reading, so that a machine of two
cores shows whether they overlap.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image

from anl import cost
from anl.bench_machine import write
from anl.data.decode import decode
from anl.detect import export, inputs, lines
from anl.detect.scorer import BATCH
from anl.errors import UserError
from anl.machine import peak_memory_mb

SIZES = {"640 x 480": (640, 480, 48), "2,400 x 1,800": (2400, 1800, 24)}  # name: width, height, how many
COUNTS = (1000, 10000)
BATCHES = (1, 64)


def run(detector, photos, repeats=10, counts=COUNTS, folder="results/bench", only=None):
    """Measure, print and write `folder`/detect-SIZE/*.csv; returns that folder.

    detector: ImageDetector. photos: folder of pictures that the measured ones are made of. only: some of the tables, by
    name. Raises UserError where there is no picture, or with fewer than 2 rounds.
    """
    if repeats < 2:
        raise UserError(f"--repeats {repeats}: at least 2 rounds make a median")
    found = sorted(path for path in Path(photos).glob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    if not found:
        raise UserError(f"{photos} holds no pictures to measure with; get them with `make data`")
    folder, threads = Path(folder) / f"detect-{detector.card.size}", torch.get_num_threads()
    with tempfile.TemporaryDirectory() as made:
        temporary = Path(made)
        measured = {"start": lambda: start(detector, found[0], temporary, min(repeats, 5)),
                    "runtimes": lambda: runtimes(detector, temporary, repeats),
                    "throughput": lambda: throughput(detector, found, temporary, repeats),
                    "memory": lambda: memory(detector, found[0], temporary, counts)}
        try:
            torch.set_num_threads(1)
            return write(folder, ((name, measured[name]()) for name in (measured if only is None else only)), repeats)
        finally:
            torch.set_num_threads(threads)


def throughput(detector, photos, folder, repeats):
    """Pictures a second of reading alone (decoded and cut up), of the network alone, and of `anl detect`; the calls take
    turns. `whole_over_slower`: the whole's speed over that of the slower part, 1 where they overlap wholly."""
    rows = []
    for size, (width, height, count) in SIZES.items():
        paths = [_picture(photos[i % len(photos)], width, height, folder / f"{width}-{i}.jpg") for i in range(count)]
        wanted = [(str(path), None) for path in paths]
        tiled = [detector.tile(path) for path in paths]

        def read(wanted=wanted):
            for _ in inputs.read_ahead(wanted, lambda item: detector.tile(item[0]), 1):
                pass

        calls = {"reading": read, "network": lambda tiled=tiled: list(detector.stream((None, one) for one in tiled)),
                 "whole": lambda wanted=wanted: list(lines.score(detector, wanted, BATCH, 1))}
        times = cost.side_by_side(calls, repeats, warmup=1)
        slower = np.maximum(times["reading"], times["network"])  # of each round, which shares what the machine was doing
        middle, low, high = cost.ratio(slower, times["whole"])
        for name, seconds in times.items():
            own = (middle, low, high) if name == "whole" else (None,) * 3
            rows.append({"pictures": size, "what": name, "count": count,
                         "pictures_per_second": count / float(np.median(seconds)),
                         **dict(zip(("whole_over_slower", "whole_over_slower_low", "whole_over_slower_high"), own))})
    return pd.DataFrame(rows)


def runtimes(detector, folder, repeats):
    """Crops a second of PyTorch, and of ONNX runtime with the exported file, in 32 and 8 bits where it was made; one thread
    each, the same batch."""
    export.export(detector, folder / "detector.onnx")
    session = export.open_session(folder / "detector.onnx", threads=1)
    rows = []
    for batch in BATCHES:
        size = detector.card.size
        crops = torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1
        last = crops.contiguous(memory_format=torch.channels_last)
        given = {export.INPUT: crops.numpy()}
        calls = {"PyTorch": lambda x=last: _forward(detector, x),
                 "ONNX runtime": lambda x=given: session.run(["logit"], x)}
        times = cost.side_by_side(calls, repeats * 3)
        for name, seconds in times.items():
            middle, low, high = cost.ratio(times["PyTorch"], seconds)
            rows.append({"runtime": name, "batch": batch, "crops_per_second": batch / float(np.median(seconds)),
                         "speed_over_pytorch": middle, "speed_over_pytorch_low": low, "speed_over_pytorch_high": high})
    return pd.DataFrame(rows)


def memory(detector, photo, folder, counts):
    """Peak memory of `anl detect --json` in a process of its own, a row a number of pictures."""
    rows = []
    _picture(photo, detector.card.size, detector.card.size, folder / "small.jpg")
    for count in counts:
        place = folder / f"pictures-{count}"
        place.mkdir()
        for i in range(count):
            os.link(folder / "small.jpg", place / f"{i:06d}.jpg")
        used = _detect(detector, place)
        rows.append({"pictures": count, "peak_memory_mb": peak_memory_mb(used)})
    table = pd.DataFrame(rows)
    return table.assign(memory_over_first=table["peak_memory_mb"] / table["peak_memory_mb"].iloc[0])


def start(detector, photo, folder, repeats):
    """Seconds from typing `anl detect ONE.png` to its end: by the clock, and of processor time; medians."""
    picture = _picture(photo, 640, 480, folder / "one.png")
    clock, busy = [], []
    for _ in range(repeats):
        began = time.perf_counter()
        used = _detect(detector, picture)
        clock.append(time.perf_counter() - began)
        busy.append(used.ru_utime + used.ru_stime)
    return pd.DataFrame([{"what": "first score", "seconds": statistics.median(clock), "fastest": min(clock),
                          "processor_seconds": statistics.median(busy), "runs": repeats}])


def _detect(detector, path):
    """Resources used by `anl detect` on a path, in a process of its own with one thread. Raises UserError if it fails."""
    command = [sys.executable, "-m", "anl.cli", "detect", "--json", "--device", "cpu", "--model", str(detector.folder), str(path)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                          env={**os.environ, "OMP_NUM_THREADS": "1"}) as process:
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise UserError(f"`{' '.join(command[1:])}` ended with status {process.returncode}; run it to see why")
    return used


def _picture(photo, width, height, path):
    """A picture of that size, the photograph resized, in the format of the name; returns its path."""
    Image.fromarray(decode(photo)).resize((width, height)).save(path, quality=90)
    return path


@torch.inference_mode()
def _forward(detector, x):
    return detector.detector(x).logit
