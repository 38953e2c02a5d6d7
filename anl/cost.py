"""What a detector costs: parameters and multiply-adds counted exactly, times measured side by side in one run.

Times on a shared machine drift, so the things compared take turns, and only their ratios are worth quoting.
"""

import time

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from anl import detector as detectors
from anl.losses import anl_loss


class BareBackbone(nn.Module):
    """A timm backbone on the pixels themselves, pooled, with a linear head: no stem, no noise, no attention."""

    def __init__(self, backbone, stride, size=None):
        super().__init__()
        self.backbone = detectors.features_of(backbone, stride, in_chans=3, size=size)
        self.classifier = nn.Linear(self.backbone.feature_info.channels()[-1], 1)

    def forward(self, x):
        pooled = self.backbone(x)[-1].mean((2, 3))
        return detectors.Output(self.classifier(pooled).squeeze(1), None, None, pooled)


def variants(settings, size):
    """The models compared, untrained: dict name -> module. settings: a profile's `detector` as a mapping.

    `bare` is the timm backbone alone, `plain` the detector without noise (backbone behind the full-resolution stem), the
    others the detector with each attention; `shallow` is the bare backbone with `affinity` read from the shallow branch alone.
    """
    torch.manual_seed(0)
    made = {"bare": BareBackbone(settings["backbone"], settings["stride"], size),
            "plain": detectors.Detector(**settings, size=size, noise=False, attention="none")}
    made |= {name: detectors.Detector(**settings, size=size, attention=name) for name in ("none", "energy", "gate", "affinity")}
    made["shallow"] = detectors.Detector(**settings, size=size, branch="shallow")
    return {name: model.eval() for name, model in made.items()}


def counts(model, size):
    """(parameters, multiply-adds for one image of `size` pixels a side), counted exactly."""
    device = next((p.device for p in model.parameters()), "cpu")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 3, size, size, device=device))
    return sum(p.numel() for p in model.parameters()), counter.get_total_flops() // 2


def side_by_side(calls, repeats, warmup=3):
    """Seconds of each call: dict name -> (repeats,). The calls take turns, in a new order each round."""
    rng = np.random.default_rng(0)
    seconds = {name: [] for name in calls}
    for round_ in range(warmup + repeats):
        for name in rng.permutation(list(calls)):
            _wait()
            started = time.perf_counter()
            calls[name]()
            _wait()
            if round_ >= warmup:
                seconds[name].append(time.perf_counter() - started)
    return {name: np.array(values) for name, values in seconds.items()}


def ratio(mine, base):
    """Median of the rounds' ratios with its quartiles: a round's calls share what the machine was doing."""
    return tuple(float(value) for value in np.quantile(mine / base, [0.5, 0.25, 0.75]))


def inference_table(settings, size, batches=(1, 64), repeats=30, device="cpu"):
    """Parameters, multiply-adds and latency of `variants`, a row each and batch size, with ratios to bare and plain."""
    models = {name: model.to(device, memory_format=torch.channels_last)
              for name, model in variants(settings, size).items()}
    counted = {name: counts(model, size) for name, model in models.items()}
    rows = []
    for batch in batches:
        x = torch.rand(batch, 3, size, size, device=device).contiguous(memory_format=torch.channels_last) * 2 - 1
        with torch.no_grad():
            times = side_by_side({name: lambda model=model, x=x: model(x) for name, model in models.items()}, repeats)
        for name in models:
            row = {"model": name, "batch": batch, "device": device, "parameters": counted[name][0],
                   "multiply_adds": counted[name][1], "milliseconds": 1000 * float(np.median(times[name]))}
            for base in ("bare", "plain"):
                row |= {f"parameters_over_{base}": counted[name][0] / counted[base][0],
                        f"multiply_adds_over_{base}": counted[name][1] / counted[base][1], **ratios(times, name, [base])}
            rows.append(row)
    return pd.DataFrame(rows)


def stepper(models, size, batch, precision, device="cpu"):
    """{name: a call that does one training step with cached targets}: forward, loss, backward, AdamW. The batch is ready.

    models: as of `variants`. precision: fp32, bf16 or fp16, of autocast.
    """
    generator = torch.Generator().manual_seed(0)
    x = (torch.rand(batch, 3, size, size, generator=generator) * 2 - 1).to(device, memory_format=torch.channels_last)
    target = torch.randn(batch, 3, size, size, generator=generator).half().to(device)
    label = (torch.arange(batch, device=device) % 2).float()
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)

    def step(model, optimiser):
        optimiser.zero_grad(set_to_none=True)
        with torch.autocast(torch.device(device).type, dtype, enabled=dtype is not None):
            output = model(x)
        anl_loss(output.logit, label, output.noise, None if output.noise is None else target)["loss"].backward()
        optimiser.step()

    optimisers = {name: torch.optim.AdamW(model.parameters()) for name, model in models.items()}
    return {name: lambda name=name: step(models[name], optimisers[name]) for name in models}


def training_table(settings, size, batch, precision, repeats=20, device="cpu"):
    """Seconds of one training step with cached targets, a row a method, with the ratios to the bare backbone and the plain
    detector."""
    models = {name: model.train().to(device, memory_format=torch.channels_last) for name, model in variants(settings, size).items()}
    times = side_by_side(stepper(models, size, batch, precision, device), repeats)
    return pd.DataFrame([{"model": name, "batch": batch, "device": device, "seconds": float(np.median(times[name])),
                          **ratios(times, name)} for name in models])


def ratios(times, name, bases=("bare", "plain")):
    """Columns time_over_BASE, with quartiles, of one call among those of side_by_side."""
    found = {}
    for base in bases:
        middle, low, high = ratio(times[name], times[base])
        found |= {f"time_over_{base}": middle, f"time_over_{base}_low": low, f"time_over_{base}_high": high}
    return found


def target_table(compute, prior, pixels, step, repeats=3):
    """Images a second of `compute()`, which makes the targets of `pixels` with one prior call an image, beside the bare
    prior called on the same images in a loop. pixels: float32 (N, 3, H, W)."""
    def bare():
        for start in range(0, len(pixels), 64):
            prior.noise(pixels[start:start + 64], step)

    times = side_by_side({"bare prior": bare, "targets": compute}, repeats, warmup=1)
    middle, low, high = ratio(times["bare prior"], times["targets"])
    return pd.DataFrame([{"what": name, "images": len(pixels), "images_per_second": len(pixels) / float(np.median(value))}
                         for name, value in times.items()]).assign(
        speed_over_bare=[1.0, middle], speed_over_bare_low=[1.0, low], speed_over_bare_high=[1.0, high])


def _wait():
    if torch.cuda.is_available():
        torch.cuda.synchronize()
