"""What a detector costs: parameters and multiply-adds counted exactly, times measured side by side.

Times drift on a shared machine, so the calls take turns and only their ratios are worth quoting.
"""

import time

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from anl.models.detector import Output, features_of, initialised_from


class BareBackbone(nn.Module):
    """A timm backbone on the pixels, mean pooling, a linear layer: no stem, no noise, no attention."""

    def __init__(self, backbone, stride, size):
        super().__init__()
        with initialised_from(0, "bare"):
            self.backbone = features_of(backbone, stride, 3, size)
            self.classifier = nn.Linear(self.backbone.feature_info.channels()[-1], 1)

    def forward(self, x):
        pooled = self.backbone(x)[-1].mean((2, 3))
        return Output(self.classifier(pooled).squeeze(1), None, None, pooled)


def count(model, size):
    """Count the parameters of a model, and its multiply-adds for one image.

    Parameters
    ----------
    model : nn.Module
        In eval mode, on any device; on `meta` nothing is computed.
    size : int
        Pixels on a side of the image.

    Returns
    -------
    parameters : int
        Parameters of the module, without those of a frozen model that it calls.
    multiply_adds : int
        Of convolutions and matrix products (half of the operations of `FlopCounterMode`), including frozen models.
    """
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 3, size, size, device=device))
    return sum(parameter.numel() for parameter in model.parameters()), counter.get_total_flops() // 2


def inference_forms(variants):
    """Inference form of networks, dict name -> `for_inference()`, or the network in eval mode if it has no such method."""
    return {name: model.for_inference() if hasattr(model, "for_inference") else model.eval() for name, model in variants.items()}


def count_table(models, size, *, baselines):
    """Parameters and multiply-adds of several models in eval mode (dict name -> module), and their ratios to some of them.

    Returns
    -------
    DataFrame
        variant, parameters, multiply_adds, and for each baseline B parameters_over_B and multiply_adds_over_B.
    """
    counted = {name: dict(zip(("parameters", "multiply_adds"), count(model, size))) for name, model in models.items()}
    return pd.DataFrame([{"variant": name, **own, **{f"{key}_over_{base}": own[key] / counted[base][key] if counted[base][key] else None
                                                     for base in baselines for key in own}} for name, own in counted.items()])


def inference_table(models, size, *, baselines, device, batch_sizes=(1,), repeats=30, warmup=3):
    """`count_table` and `time_table` of a forward pass, merged: a row per batch size and model, with a column batch_size."""
    models = {name: model.to(device, memory_format=torch.channels_last) for name, model in models.items()}
    counted, tables = count_table(models, size, baselines=baselines), []
    for images in batch_sizes:
        x = (torch.rand(images, 3, size, size, device=device) * 2 - 1).contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            times = time_table({name: lambda model=model, x=x: model(x) for name, model in models.items()},
                               baselines=baselines, device=device, repeats=repeats, warmup=warmup, images=images)
        tables.append(counted.assign(batch_size=images).merge(times, on="variant"))
    return pd.concat(tables, ignore_index=True)


def time_table(calls, *, baselines, device, repeats, warmup=3, images=1):
    """Times of several calls that take turns, and their ratios to some of them.

    Parameters
    ----------
    calls : dict
        Name -> callable without arguments, for example one training step.
    baselines : sequence of str
        Names of the calls that ratios refer to.
    device : torch.device
    repeats, warmup : int
        Rounds of timing, and rounds before them that are not timed.
    images : int
        Images that one call processes.

    Returns
    -------
    DataFrame
        variant, milliseconds (of a call, median), images_per_second, and for each baseline B the ratio of times time_over_B,
        a median over the rounds, with the quartiles time_over_B_low and time_over_B_high.
    """
    return ratios(side_by_side(calls, repeats, device, warmup), baselines, images)


def ratios(seconds, baselines, images=1):
    """The table of `time_table` from the seconds of each call, dict name -> (rounds,)."""
    rows = []
    for name, own in seconds.items():
        row = {"variant": name, "milliseconds": 1000 * float(np.median(own)), "images_per_second": images / float(np.median(own))}
        for base in baselines:  # the calls of a round run under the same load of the machine
            middle, low, high = (float(value) for value in np.quantile(np.divide(own, seconds[base]), [0.5, 0.25, 0.75]))
            row |= {f"time_over_{base}": middle, f"time_over_{base}_low": low, f"time_over_{base}_high": high}
        rows.append(row)
    return pd.DataFrame(rows)


def side_by_side(calls, repeats, device, warmup=3):
    """Seconds of each call, dict name -> (repeats,). The calls take turns, in a new order each round."""
    rng = np.random.default_rng(0)
    seconds = {name: [] for name in calls}
    for turn in range(warmup + repeats):
        for name in rng.permutation(list(calls)):
            _synchronise(device)
            started = time.perf_counter()
            calls[name]()
            _synchronise(device)
            if turn >= warmup:
                seconds[name].append(time.perf_counter() - started)
    return {name: np.array(values) for name, values in seconds.items()}


def _synchronise(device):
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
