"""Parts of `anl bench` that time the very loops which the pipeline runs: a training step of anl.train, scoring of anl.predict."""

import contextlib
import dataclasses
import hashlib
import io
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch.optim.optimizer import register_optimizer_step_post_hook

from anl import cost, predict, runs, targets, train
from anl.benchmark import REAL, encode, read_images, read_manifest, use_rows
from anl.data import views
from anl.data.patches import to_tensor

STEPS = 24  # of each training that is timed; the median leaves out the first, and those that validate
ENLARGED = 64  # images scored at another size than the benchmark's


def step_table(params, repeats=5):
    """Seconds of a whole step of anl.train, batches cut and processed, targets read from the cache: a row a method.

    The trainings take turns, STEPS steps at a time, each from its beginning. `bare` is the backbone without the stem. Targets
    that are not there yet are computed first, as by `anl target`.
    """
    params = dataclasses.replace(params, training=dataclasses.replace(params.training, steps=STEPS))
    targets.compute(params, params.method.step, params.method.target)
    ours = {name: {"attention": name} for name in ("none", "energy", "gate", "affinity")}
    fields = {"bare": {"target": "none", "branch": "shallow"}, "plain": {"target": "none"}, **ours,
              "shallow": {"branch": "shallow"}}
    specs = {name: runs.specs_of(params, **change)[0] for name, change in fields.items()}
    determined = torch.are_deterministic_algorithms_enabled()
    seconds = {name: [] for name in specs}
    try:
        for round_ in range(repeats):
            for name in np.random.default_rng(round_).permutation(list(specs)):
                seconds[name].append(step_seconds(specs[name], params))
    finally:
        torch.use_deterministic_algorithms(determined)
    times = {name: np.array(values) for name, values in seconds.items()}
    return pd.DataFrame([{"model": name, "batch": params.training.batch_size, "seconds": float(np.median(times[name])),
                          **cost.ratios(times, name)} for name in specs])


def step_seconds(spec, params):
    """Median seconds between two updates of the weights in a training by anl.train.fit_detector."""
    ends = []
    handle = register_optimizer_step_post_hook(lambda *_: ends.append(time.perf_counter()))
    try:
        with tempfile.TemporaryDirectory() as cache, contextlib.redirect_stderr(io.StringIO()):
            train.fit_detector(spec, params, identity="bench", cache=cache)
    finally:
        handle.remove()
    return float(np.median(np.diff(ends)))


def scoring_table(params, settings, size, repeats=10, device="cpu"):
    """Images a second of scoring stored images, read and decoded, beside the same network called on tensors in a loop.

    settings: a profile's `detector`. The images are the test split's; those of another size are ENLARGED of its patches, stored
    alike. The networks are the bare backbone and the method's detector, untrained.
    """
    rows = use_rows(read_manifest(params.benchmark.folder), params)
    rows = rows[rows["split"] == "test"].sort_values("sha256").reset_index(drop=True)
    networks = {name: model.to(device, memory_format=torch.channels_last)
                for name, model in cost.variants(settings, size).items() if name in ("bare", params.method.attention)}
    table = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = params.benchmark.folder
        if size != params.benchmark.size:
            rows = rows.head(ENLARGED)
            folder, rows = temporary, _enlarged(rows, read_images(folder, rows), size, temporary)
        crops = to_tensor(read_images(folder, rows))
        batches = [part.to(device, memory_format=torch.channels_last) for part in crops.split(predict.BATCH)]
        calls = {}
        for name, network in networks.items():
            def loop(network=network):
                with torch.no_grad():
                    return [network(batch).logit.cpu() for batch in batches]

            def scored(network=network):
                return predict.score_treated(network, read_images(folder, rows), lambda image, _: views.apply("raw", image), device)

            calls |= {(name, "loop"): loop, (name, "scoring"): scored}
        named = {" ".join(key): call for key, call in calls.items()}
        times = cost.side_by_side(named, repeats, warmup=1)
        for name, what in calls:
            middle, low, high = cost.ratio(times[f"{name} loop"], times[f"{name} {what}"])
            table.append({"model": name, "what": what, "images": len(rows), "device": device,
                          "images_per_second": len(rows) / float(np.median(times[f"{name} {what}"])),
                          "speed_over_loop": middle, "speed_over_loop_low": low, "speed_over_loop_high": high})
    return pd.DataFrame(table)


def _enlarged(rows, images, size, folder):
    """Store images resized to `size` as the benchmark stores its own, in `folder`; returns their rows."""
    encoded = [encode(np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC))) for image in images]
    rows = rows.assign(generator=REAL, sha256=[hashlib.sha256(png).hexdigest() for png in encoded])
    pd.DataFrame({"sample_id": rows["sample_id"], "png": encoded}).to_parquet(Path(folder) / f"images-{REAL}.parquet", index=False)
    return rows
