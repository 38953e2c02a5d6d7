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
PRIOR_PARTS = ("unet", "scheduler", "vae", "tokenizer", "text_encoder")  # of a diffusers folder


def make_model(name, params, folder="models", cache=CACHE):
    """Train the generator model `name` on the training photographs into `folder`/name; returns that path.

    A run that was interrupted goes on from its checkpoint in `cache`. Raises UserError on an unknown model, photographs
    that are not those of the data card, or, for `latent`, a missing VAE.
    """
    configs = params.models | params.more_models
    if name not in MODELS or name not in configs:
        raise UserError(f"there is no generator model '{name}'; choose one of {', '.join(configs)}")
    vae = load_model("vae", Path(folder) / "vae") if name == "latent" else None
    sources = training_sources(params)
    with whole_folder(Path(folder) / name) as temporary:
        fit_model(name, sources, config_dict(configs[name]), temporary, seed=params.seed, cache=cache, vae=vae)
    return Path(folder) / name


def make_prior(params, name="prior", folder="models", cache=CACHE):
    """Train the diffusion prior, or the one called `name` in `other_priors`, into `folder`/name; returns that path.

    Its sources are halved, as the benchmark's patches are, and its seed is not the generators'. A prior whose config
    names a `source` is fetched and checked instead. Raises UserError on an unknown name, or a source that cannot serve.
    """
    if name != "prior" and name not in params.other_priors:
        raise UserError(f"there is no prior '{name}'; choose one of {', '.join(['prior', *params.other_priors])}")
    config = params.prior if name == "prior" else params.other_priors[name]
    if config.source is not None:
        return fetch_prior(config, params.benchmark.size, Path(folder) / name)
    sources = training_sources(params, halved=True)
    with whole_folder(Path(folder) / name) as temporary:
        fit_prior(sources, config_dict(config), temporary, seed=params.seed + config.seed_offset, cache=cache)
    return Path(folder) / name


def fetch_prior(config, size, path):
    """Put the model that `config.source` names at `path`, checked on crops of `size` pixels; prints what to know of it."""
    from anl.prior import NoisePrior
    from anl.prior_presets import PRESETS, overlap_warning
    from anl.prior_source import locate

    source = Path(locate(config.source, config.revision)[0])
    prior = NoisePrior.load(source, precision=config.precision)
    prior.check_size(size)
    known = [overlap_warning(config.source, name) for name in PRESETS[config.source].overlaps] if config.source in PRESETS else []
    for note in [*prior.notes(size), *known]:
        print(note, file=sys.stderr)
    with whole_folder(path) as temporary:
        for file in source.rglob("*"):
            part = file.relative_to(source)
            wanted = len(part.parts) == 1 or part.parts[0] in PRIOR_PARTS
            if file.is_file() and wanted and file.suffix in (".json", ".txt", ".safetensors"):
                (temporary / part).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, temporary / part)
        NoisePrior.load(temporary)
    return path


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
