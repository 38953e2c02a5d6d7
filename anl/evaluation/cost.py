"""What a detector costs: parameters and multiply-adds counted exactly, times measured side by side.

Times drift on a shared machine, so the models take turns and only their ratios are worth quoting.
"""

import time

import numpy as np
import pandas as pd
import torch
from torch.utils.flop_counter import FlopCounterMode


def count(model, size):
    """Parameters, and multiply-adds for one image.

    Parameters
    ----------
    model : nn.Module
        In eval mode. It may lie on the `meta` device, where nothing is computed.
    size : int
        Pixels on a side of the image.

    Returns
    -------
    parameters, multiply_adds : int
        Multiply-adds of convolutions and matrix products, half of `FlopCounterMode`'s operations.
    """
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 3, size, size, device=device))
    return sum(parameter.numel() for parameter in model.parameters()), counter.get_total_flops() // 2


def inference_forms(variants):
    """The networks that a user runs, in eval mode.

    Parameters
    ----------
    variants : dict
        Name -> detector.

    Returns
    -------
    dict
        name -> the detector as trained, and `name (inference)` -> `detector.for_inference()` where that is smaller.
    """
    forms = {}
    for name, model in variants.items():
        forms[name] = model.eval()
        if hasattr(model, "for_inference"):
            smaller = model.for_inference()
            if sum(p.numel() for p in smaller.parameters()) < sum(p.numel() for p in model.parameters()):
                forms[f"{name} (inference)"] = smaller
    return forms


def inference_table(models, size, *, baseline, device, batch_sizes=(1,), repeats=30):
    """Parameters, multiply-adds and latency of several models, with their ratios to one of them.

    Parameters
    ----------
    models : dict
        Name -> module in eval mode, for example of `inference_forms({"plain": ..., "anl": ...})`.
    size : int
        Pixels on a side of the images.
    baseline : str
        Name of the model that ratios refer to.
    device : torch.device
    batch_sizes : sequence of int
    repeats : int
        Rounds of timing; 0 counts only.

    Returns
    -------
    DataFrame
        A row per model and batch size: variant, batch_size, parameters, multiply_adds (of one image), their ratios
        parameters_ratio and multiply_adds_ratio, and, if timed, milliseconds (median), time_ratio with its quartiles
        time_ratio_low and time_ratio_high over the rounds.
    """
    models = {name: model.to(device, memory_format=torch.channels_last) for name, model in models.items()}
    counted = {name: count(model, size) for name, model in models.items()}
    rows = []
    for batch_size in batch_sizes if repeats else batch_sizes[:1]:
        x = torch.rand(batch_size, 3, size, size, device=device).contiguous(memory_format=torch.channels_last) * 2 - 1
        with torch.no_grad():
            times = side_by_side({name: lambda model=model, x=x: model(x) for name, model in models.items()}, repeats,
                                 device) if repeats else {}
        for name in models:
            row = {"variant": name, "batch_size": batch_size, "parameters": counted[name][0], "multiply_adds": counted[name][1],
                   "parameters_ratio": counted[name][0] / counted[baseline][0],
                   "multiply_adds_ratio": counted[name][1] / counted[baseline][1]}
            rows.append(row | (_timing(times[name], times[baseline]) if times else {}))
    return pd.DataFrame(rows)


def training_table(step_calls, *, baseline, device, repeats=20):
    """Seconds of one training step of several variants, with ratios to one of them.

    Parameters
    ----------
    step_calls : dict
        Name -> callable without arguments that does one training step.
    baseline : str
    device : torch.device
    repeats : int

    Returns
    -------
    DataFrame
        variant, milliseconds, time_ratio, time_ratio_low, time_ratio_high.
    """
    times = side_by_side(step_calls, repeats, device)
    return pd.DataFrame([{"variant": name, **_timing(times[name], times[baseline])} for name in step_calls])


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


def _timing(own, base):
    """Median time, and the median and quartiles of the rounds' ratios: the calls of a round share the machine's state."""
    middle, low, high = (float(value) for value in np.quantile(own / base, [0.5, 0.25, 0.75]))
    return {"milliseconds": 1000 * float(np.median(own)), "time_ratio": middle, "time_ratio_low": low, "time_ratio_high": high}


def _synchronise(device):
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
