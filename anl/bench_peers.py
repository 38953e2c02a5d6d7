"""Part of `anl bench`: what the peers cost at inference beside the detector, the calls of the prior that they keep included."""

import contextlib
import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from anl import baselines, cost
from anl.baselines import encoders
from anl.baselines.costs import inference_cost

PEERS = ("dnf", "lare", "dire", "univfd")


def peers_table(params, batches=(1, 64), repeats=5):
    """Parameters (frozen ones too), multiply-adds, calls of the prior and time of an image, a row a method and batch, with the
    ratios to the bare backbone and to the method's detector. On the CPU, where the peers call their prior.

    UnivFD has a row where its encoder can be had: the packaged one needs an environment of its own (page `peers` of the book).
    """
    settings, size = dataclasses.asdict(params.detector), params.benchmark.size
    ours, own = cost.variants(settings, size), params.method.attention
    models = {name: ours[name] for name in ("bare", "plain", own)}
    counted = {name: inference_cost(model, size) for name, model in models.items()}
    for name in PEERS:
        if name == "univfd" and not _has_encoder(params.baselines):
            print(f"univfd is left out: its encoder needs {params.baselines.encoder_python}, see page `peers` of the book")
            continue
        peer = baselines.build(name, settings, size, dataclasses.asdict(params.baselines), params.models_folder)
        counted[name] = inference_cost(peer, size, baselines.get(name).needs, params.models_folder)
        peer.represent = peer.represent.function  # computed each time, not looked up
        models[name] = peer.eval().to(memory_format=torch.channels_last)
    called = {name: _calls(model, size) for name, model in models.items()}
    rows = []
    for batch in batches:
        x = (torch.rand(batch, 3, size, size) * 2 - 1).contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            times = cost.side_by_side({name: lambda model=model, x=x: model(x) for name, model in models.items()}, repeats, 1)
        for name in models:
            rows.append({"model": "anl" if name == own else name, "batch": batch, **counted[name], "prior_calls": called[name],
                         "milliseconds_an_image": 1000 * float(np.median(times[name])) / batch,
                         "multiply_adds_over_bare": counted[name]["multiply_adds"] / counted["bare"]["multiply_adds"],
                         **cost.ratios(times, name, ["bare"]),
                         **{key.replace(own, "anl"): value for key, value in cost.ratios(times, name, [own]).items()}})
    return pd.DataFrame(rows)


def _has_encoder(settings):
    return settings.encoder != encoders.PACKAGED or Path(settings.encoder_python).is_file()


def _calls(model, size):
    """How often a diffusion model is called for one image."""
    from diffusers import UNet2DModel

    count = 0

    def hook(module, _):
        nonlocal count
        count += isinstance(module, UNet2DModel)

    with contextlib.ExitStack() as stack:
        stack.callback(torch.nn.modules.module.register_module_forward_pre_hook(hook).remove)
        with torch.no_grad():
            model(torch.zeros(1, 3, size, size))
    return count
