"""Part of `anl bench`: does torch.compile pay? The same calls, as they are and compiled, in turns."""

import time

import numpy as np
import pandas as pd
import torch

from anl import cost

MODEL = "affinity"


def compile_table(settings, size, training_batch, precision, batches=(1, 64), repeats=10, device="cpu"):
    """Seconds of a forward pass and of a training step, compiled and not: a row each, `speed_over_eager` above 1 where it pays.

    settings: a profile's `detector`. seconds_to_compile: of the first call; `steps_to_pay` is how many calls win that back, None
    where it never does. A machine without a compiler gets rows without numbers, and the reason.
    """
    calls = {}
    for batch in batches:
        x = (torch.rand(batch, 3, size, size, device=device) * 2 - 1).contiguous(memory_format=torch.channels_last)
        eager = cost.variants(settings, size)[MODEL].to(device, memory_format=torch.channels_last)
        calls["forward", batch] = [lambda model=model, x=x: _forward(model, x) for model in (eager, torch.compile(eager))]
    steps = []
    for compiled in (False, True):
        model = cost.variants(settings, size)[MODEL].train().to(device, memory_format=torch.channels_last)
        model = torch.compile(model) if compiled else model
        steps.append(cost.stepper({MODEL: model}, size, training_batch, precision, device)[MODEL])
    calls["training step", training_batch] = steps
    rows = []
    for (what, batch), (eager, compiled) in calls.items():
        row = {"model": MODEL, "what": what, "batch": batch, "device": device}
        started = time.perf_counter()
        try:
            compiled()
        except Exception as problem:  # of the compiler, or of the lack of one: many kinds
            reason = (str(problem).strip().splitlines() or [type(problem).__name__])[0][:120]
            rows.append({**row, "failed": reason})
            continue
        first = time.perf_counter() - started
        times = cost.side_by_side({"eager": eager, "compiled": compiled}, repeats)
        middle, low, high = cost.ratio(times["eager"], times["compiled"])
        won = float(np.median(times["eager"]) - np.median(times["compiled"]))
        rows.append({**row, "eager_milliseconds": 1000 * float(np.median(times["eager"])),
                     "compiled_milliseconds": 1000 * float(np.median(times["compiled"])), "speed_over_eager": middle,
                     "speed_over_eager_low": low, "speed_over_eager_high": high, "seconds_to_compile": first,
                     "steps_to_pay": first / won if won > 0 else None, "failed": None})
    columns = ["model", "what", "batch", "device", "eager_milliseconds", "compiled_milliseconds", "speed_over_eager",
               "speed_over_eager_low", "speed_over_eager_high", "seconds_to_compile", "steps_to_pay", "failed"]
    return pd.DataFrame(rows).reindex(columns=columns)


@torch.no_grad()
def _forward(model, x):
    return model(x).logit
