"""A whole tiny project in a folder: a benchmark of smooth photographs and checkerboards, an untrained prior, a configuration."""

import hashlib

import numpy as np
import pandas as pd
import torch

from anl import seeds
from anl.config import load_config
from anl.data import embedded
from anl.models.prior import build_prior, save_prior

SIZE = 32
GENERATORS = {"ddim": 40, "ddpm": 35, "vae": 30}  # amplitude of the checkerboard that each leaves, in grey levels


def make_benchmark(folder, photographs=8, generators=("ddim", "ddpm", "vae"), trained=("ddim",), paired=True):
    """Write a benchmark's folder; training and validation have the `trained` generators only."""
    rng = seeds.generator(0, "photographs")
    checker = (np.indices((SIZE, SIZE)).sum(0) % 2 * 2 - 1)[..., None]
    tables = {name: [] for name in ("real", *generators)}
    for split in ("train", "val", "test"):
        for number in range(photographs):
            photo = f"{split}{number}"
            base = rng.integers(60, 190, (1, 1, 3)) + rng.normal(0, 4, (SIZE, SIZE, 3))
            for name, table in tables.items():
                if split != "test" and name not in ("real", *trained):
                    continue
                pixels = np.clip(base + GENERATORS.get(name, 0) / 2 * checker, 0, 255).astype(np.uint8)
                image = embedded.encode(pixels)
                table.append({
                    "image_id": f"{name}/{photo}", "path": "", "sha256": hashlib.sha256(image).hexdigest(),
                    "label": int(name != "real"), "generator": name, "family": name, "dataset": "tiny", "split": split,
                    "source_real": "tiny", "width": SIZE, "height": SIZE, "format": "PNG", "jpeg_quality": None,
                    "bytes": len(image), "group": photo, "pair": photo if paired else "", "image": image})
    return embedded.write({name: pd.DataFrame(rows) for name, rows in tables.items()}, folder,
                          {name: "tiny" for name in tables})


def make_prior(folder):
    torch.manual_seed(0)
    save_prior(build_prior([8, 8], 1), folder)


def make_project(root, **sections):
    """A configuration whose folders are below `root`, with its benchmark and prior; `sections` change it."""
    make_benchmark(root / "benchmark")
    for name in ("prior", "other_prior"):
        make_prior(root / "models" / "priors" / name)
    return tiny_config(root, **sections)


def tiny_config(root, **sections):
    paths = {key: str(root / key) for key in ("models", "runs", "targets", "results", "cache")}
    changes = {
        "profile": "tiny", "seeds": [0, 1],
        "benchmark": {"folder": str(root / "benchmark"), "size": SIZE, "use": {"train": 8, "val": 8, "test": 8}},
        "detector": {"stem_width": 8, "attention_dim": 8},
        "training": {"steps": 4, "warmup_steps": 1, "batch_size": 8, "augment_probability": 0.3, "precision": "fp32"},
        "prior": {"precision": "fp32"}, "evaluation": {"bootstrap": 40, "views": ["raw", "matched"], "controls": ["blur"]},
        "run": {**paths, "jobs": 1}}
    base = load_config(profile="smoke")
    for name, value in [*changes.items(), *sections.items()]:
        base = base.override(**{name: value})
    return base
