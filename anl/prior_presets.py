"""Published diffusion models by name: where they lie, under what licence, and which benchmarks' reals they have seen.

A prior that was trained on a benchmark's real images may see less noise in them than in any fake, for that reason alone.
Nothing here was downloaded by us: `verified` says so row by row, and the hub's own page is what counts.
"""

from dataclasses import asdict, dataclass, fields

import pandas as pd

from anl.errors import UserError

DDPM_STEP = "the paper's t = 1 is diffusers' timestep 0, the least noise of the schedule; NoisePrior counts from 1"
SD_STEP = (f"{DDPM_STEP}; its own samplers start at timestep 1 (`steps_offset: 1` in its scheduler), so that t = 1 is a "
           "step it was trained for but is never sampled at")
PICKLED = ("the copy we know of holds its weights as a pickle only, which is refused: load it elsewhere with diffusers, "
           "`save_pretrained(folder, safe_serialization=True)`, and pass that folder")


@dataclass(frozen=True)
class Preset:
    """One published model.

    repo: hub id. revision: 40-hex commit, or None where none is known to us. resolution: pixels of a side it was trained
    at. overlaps: benchmarks whose real images are in its training data. verified: whether we have loaded it ourselves;
    a row that is not was written from memory and from stored copies of the hub's pages.
    """

    name: str
    repo: str
    revision: str | None
    licence: str
    trained_on: str
    resolution: int
    overlaps: tuple[str, ...]
    first_step: str = DDPM_STEP
    note: str = ""
    verified: bool = False


PRESETS = {preset.name: preset for preset in (
    Preset("ddpm-cifar10-32", "google/ddpm-cifar10-32", "267b167dc01f0e4e61923ea244e8b988f84deb80", "Apache-2.0",
           "CIFAR-10", 32, ("cifake",)),
    Preset("ddpm-ema-celebahq-256", "google/ddpm-ema-celebahq-256", None, "Apache-2.0", "CelebA-HQ", 256,
           ("diffusionforensics-celebahq",), note=PICKLED),
    Preset("ddpm-ema-bedroom-256", "google/ddpm-ema-bedroom-256", None, "Apache-2.0", "LSUN bedroom", 256,
           ("forensynths", "diffusionforensics-lsun"), note=PICKLED),
    Preset("adm-imagenet-256", "xutongda/adm_imagenet_256x256_unconditional", None, "MIT", "ImageNet", 256,
           ("genimage", "tiny-genimage", "diffusionforensics-imagenet", "univfd-imagenet", "openfake"),
           note="a conversion whose author uses a fork of diffusers: compare its samples with the original's before use"),
    Preset("stable-diffusion-1.5", "stable-diffusion-v1-5/stable-diffusion-v1-5",
           "451f4fe16113bff5a5d2269ed5ad43b0592e9a14", "CreativeML Open RAIL-M", "LAION", 512, ("univfd-laion", "openfake"),
           first_step=SD_STEP, note="latent: its autoencoder smooths an image before the prior sees it"),
)}


def get(name):
    """The Preset called `name`. Raises UserError naming those there are."""
    if name not in PRESETS:
        raise UserError(f"there is no prior preset '{name}'; choose one of {', '.join(PRESETS)}")
    return PRESETS[name]


def overlap_warning(preset, benchmark):
    """A sentence if the real images of `benchmark` are in the training data of `preset` (its name), or None.

    None says only that no overlap is known: the list holds what the models' authors say they trained on.
    """
    row = get(preset)
    if benchmark not in row.overlaps:
        return None
    return (f"The prior {row.name} was trained on {row.trained_on}, from which the real images of {benchmark} are drawn: "
            "it may see less noise in them because it knows them, not because they are real.")


def table():
    """All presets, a row each, as a DataFrame with Preset's fields as columns; `overlaps` joined by spaces."""
    rows = [{**asdict(preset), "overlaps": " ".join(preset.overlaps)} for preset in PRESETS.values()]
    return pd.DataFrame(rows, columns=[field.name for field in fields(Preset)])
