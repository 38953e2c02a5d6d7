"""From the active profile to trained models: loads the training photographs, trains, and puts the result in place whole."""

import contextlib
import dataclasses
import shutil
import sys
from pathlib import Path

from tqdm import tqdm

from anl.data.patches import halve, load_source, split_photos
from anl.data.photos import check_folder, read_card
from anl.errors import UserError
from anl.generators import MODELS, fit_model, load_model
from anl.prior_training import fit_prior

CACHE = ".cache/anl"


def make_model(name, params, folder="models", cache=CACHE):
    """Train the generator model `name` on the training photographs into `folder`/name; returns that path.

    A run that was interrupted goes on from its checkpoint in `cache`. Raises UserError on an unknown model, photographs
    that are not those of the data card, or, for `latent`, a missing VAE.
    """
    if name not in MODELS or name not in params.models:
        raise UserError(f"there is no generator model '{name}'; choose one of {', '.join(params.models)}")
    vae = load_model("vae", Path(folder) / "vae") if name == "latent" else None
    sources = training_sources(params)
    with whole_folder(Path(folder) / name) as temporary:
        fit_model(name, sources, config_dict(params.models[name]), temporary, seed=params.seed, cache=cache, vae=vae)
    return Path(folder) / name


def make_prior(params, folder="models", cache=CACHE):
    """Train the diffusion prior into `folder`/prior; returns that path.

    Its sources are halved, as the benchmark's patches are, and its seed is not the generators'.
    """
    sources = training_sources(params, halved=True)
    with whole_folder(Path(folder) / "prior") as temporary:
        fit_prior(sources, config_dict(params.prior), temporary, seed=params.seed + 1, cache=cache)
    return Path(folder) / "prior"


def training_sources(params, halved=False):
    """The downsampled training photographs, uint8 (H, W, 3) each, in the data card's order.

    One photograph is decoded at a time: what stays in memory is at most params.data.source_side pixels high or wide.
    """
    photos = read_card(params.data.card)
    check_folder(photos, params.data.folder)
    splits = split_photos(photos, dataclasses.asdict(params.data.split), params.seed)
    sources = []
    chosen = [photo for photo in photos if splits[photo.id] == "train"]
    for photo in tqdm(chosen, desc="photographs", mininterval=5, file=sys.stderr, disable=None):
        source = load_source(Path(params.data.folder) / photo.file, params.data.least_factor, params.data.source_side)
        sources.append(halve(source) if halved else source)
    return sources


def config_dict(config):
    """A Model or Prior as the plain mapping that names its checkpoint: only what is set."""
    return {key: value for key, value in dataclasses.asdict(config).items() if value is not None}


@contextlib.contextmanager
def whole_folder(path):
    """Yield an empty folder beside `path`; put it in its place if the block ends well, remove it otherwise."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.new")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        shutil.rmtree(path, ignore_errors=True)
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
