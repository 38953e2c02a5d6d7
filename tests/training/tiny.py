"""Tiny profiles whose models train in a second: photographs with a data card, and a CIFAKE-like set with its index."""

import csv
import functools

from PIL import Image

from anl.config import load_config
from anl.data import indexing
from anl.data.photos import CARD_COLUMNS
from anl.io import sha256_of
from tests.conftest import photograph
from tests.data.trees import encoded, write

QUICK = {"channels": [8], "crop": 16, "batch_size": 2, "steps": 4, "learning_rate": 0.001, "ema": 0.5}


@functools.cache
def smoke():
    return load_config(profile="smoke")


def write_photographs(folder, count=10):
    """`count` photographs and their card, folder/photos.csv."""
    (folder / "photos").mkdir(parents=True)
    with open(folder / "photos.csv", "w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, CARD_COLUMNS)
        writer.writeheader()
        for number in range(count):
            path = folder / "photos" / f"p{number}.png"
            Image.fromarray(photograph(number)).save(path)
            writer.writerow({"file": path.name, "sha256": sha256_of(path), "bytes": path.stat().st_size, "width": 190,
                             "height": 150, "format": "PNG", "group": "twins" if number in (2, 5) else ""})
    return folder


def embedded_profile(folder, **changes):
    """Patches of 16 pixels of the photographs in `folder`, four families by four models."""
    models = {"pixel": {**QUICK, "max_strength": 0.3}, "vae": {**QUICK, "channels": [8, 8], "latent_channels": 4},
              "latent": {**QUICK, "max_strength": 0.4}, "unconditional": {**QUICK, "max_strength": 1.0}}
    families = {"ddim": {"inference_steps": 2}, "vae": {}, "latent": {"inference_steps": 2},
                "unconditional": {"inference_steps": 2}}
    config = smoke().override(experiments={name: None for name in smoke().experiments}, families=_only(smoke().families, families))
    return config.override(
        data={"card": str(folder / "photos.csv"), "folder": str(folder / "photos"),
              "split": {"train": 0.4, "val": 0.3, "test": 0.3}},
        prior=QUICK, other_priors={"tenth_prior": {**QUICK, "steps": 2, "warmup_steps": 1}, "untrained_prior": {**QUICK, "steps": 0},
                                   "other_prior": None, "denoiser": {**QUICK, "objective": "denoiser", "noise_step": 10}},
        models=_only(smoke().models, models),
        benchmark={"folder": str(folder / "benchmark"), "size": 16, "patches": {"train": 2, "val": 2, "test": 2}, "least_std": 1.0},
        run={"models": str(folder / "models"), "cache": str(folder / "cache")}).override(**changes)


def write_cifake(folder, each=12):
    """A tree like CIFAKE's with JPEG files of 32 pixels, one of which occurs in both splits, and its index."""
    files = {f"{split}/{label}/{number}.jpg": encoded(1000 * (2 * i + j) + number, "JPEG", 32, quality=75)
             for i, split in enumerate(("train", "test")) for j, label in enumerate(("REAL", "FAKE")) for number in range(each)}
    files["train/REAL/0.jpg"] = files["test/REAL/0.jpg"]
    write(folder / "set", files)
    indexing.index(folder / "set", folder / "set.parquet")
    return folder


def published_profile(folder, **changes):
    """Images of 32 pixels in `folder`, and two small generators of our own: one regenerates photographs, one makes samples."""
    cifake = load_config(profile="cifake")
    unconditional = {**QUICK, "crop": 32, "max_strength": 1.0}
    return cifake.override(
        experiments={name: None for name in cifake.experiments}, prior={**QUICK, "crop": 32, "source": None},
        models=_only(cifake.models, {"vae": {**QUICK, "channels": [8, 8], "latent_channels": 4, "crop": 32, "source": None},
                                     "unconditional": unconditional}),
        families=_only(cifake.families, {"sd14": {}, "vae": {}, "unconditional": {
            "model": "unconditional", "sampler": "ddpm", "inference_steps": 2, "paired": False}}),
        benchmark={"folder": str(folder / "benchmark"), "manifest": str(folder / "set.parquet"), "samples": 5, "val_share": 0.25},
        run={"models": str(folder / "models"), "cache": str(folder / "cache")}).override(**changes)


def _only(present, kept):
    return {**dict.fromkeys(present), **kept}
