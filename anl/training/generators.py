"""The priors and generators of a profile: trained where they are missing, and kept with the settings they were made with."""

import functools
import sys
from pathlib import Path

import pandas as pd
import torch
from tqdm import tqdm

from anl import seeds
from anl.data import crops, manifest, photos, published
from anl.data.decode import decode
from anl.io import UserError, atomic_folder, identity, read_json, sha256_of, write_json
from anl.models import generators, prior
from anl.models.prior_loading import locate, overlap_warnings
from anl.training.device import make_accelerator
from anl.training.generative import train_generative
from anl.training.loop import Checkpoint

__all__ = ["generator_folder", "make_generators", "make_priors", "prior_folder", "training_images", "weights_of"]

RECORD = "identity.json"  # of a model's folder: the settings that it was trained with, and their hash
STATISTICS_BATCH = 64     # crops that a VAE's latent scale is measured on


def prior_folder(config, name="prior"):
    """Where a prior lies; a published one (`source`) leaves only its record there."""
    return Path(config.run.models) / "priors" / name


def generator_folder(config, name):
    """Where a generator's weights lie: its `source`, or the folder it is trained into."""
    source = config.models[name].source
    return Path(source) if source else Path(config.run.models) / "generators" / name


def make_priors(config, names=None, device=None):
    """Train the priors of a profile, and the denoisers it compares them with, that are missing or had other settings.

    A prior with a `source` is located (downloaded if need be) and checked instead.

    Parameters
    ----------
    config : anl.config.Config
    names : sequence of str, optional
        `prior` and keys of `other_priors`; by default all.
    device : torch.device or str, optional
        By default the GPU if there is one.

    Returns
    -------
    dict of str to Path
        The folder of each, {run.models}/priors/NAME.

    Raises
    ------
    UserError
        If a name is unknown, training images are missing, or a source cannot serve as a prior.
    """
    sections = {"prior": config.prior, **config.other_priors}
    images, folders = functools.cache(functools.partial(training_images, config, halved=True)), {}
    for name in _chosen(names, sections, "prior"):
        folders[name] = _make_prior(config, name, sections[name], images, device)
    return folders


def make_generators(config, names=None, device=None):
    """Train the generator models of a profile that are missing or had other settings.

    Parameters
    ----------
    config : anl.config.Config
    names : sequence of str, optional
        Keys of `models`; by default all. The autoencoder of a latent model is made first if it is missing.
    device : torch.device or str, optional
        By default the GPU if there is one.

    Returns
    -------
    dict of str to Path
        The folder of each, {run.models}/generators/NAME or its `source`.

    Raises
    ------
    UserError
        If a name is unknown, training images are missing, or a `source` holds no such model.
    """
    images, folders = functools.cache(functools.partial(training_images, config)), {}
    for name in _chosen(names, config.models, "generator model"):
        for needed in filter(None, (_decoder(config, name), name)):
            folders[needed] = _make_generator(config, needed, images, device)
    return {name: folders[name] for name in folders if names is None or name in names}


def training_images(config, halved=False):
    """What priors and generators learn from, a list of uint8 (H, W, 3): the training photographs, or the training images of
    class real of a published data set. halved: photographs at the detector's scale, as the benchmark's patches."""
    if config.benchmark.kind == "manifest":
        rows, root = published.rows(config.benchmark, config.seed), manifest.root_of(config.benchmark.manifest)
        rows = rows[(rows["split"] == "train") & (rows["label"] == 0) & (rows["dataset"] == rows["dataset"].iloc[0])]
        return [decode(root / manifest.file_path(path)) for path in tqdm(rows["path"], desc="images", file=sys.stderr,
                                                                         mininterval=5, disable=None)]
    cards = photos.read_card(config.data.card)
    photos.check_folder(cards, config.data.folder)
    splits = crops.split_photos(cards, config.data.split, config.seed)
    chosen = [photo for photo in cards if splits[photo.id] == "train"]
    sources = [crops.load_source(Path(config.data.folder) / photo.file, config.data.least_factor, config.data.source_side)
               for photo in tqdm(chosen, desc="photographs", file=sys.stderr, mininterval=5, disable=None)]
    return [crops.halve(source) for source in sources] if halved else sources


def weights_of(folder):
    """A hash of the weights in a model's folder."""
    folder = Path(folder)
    files = sorted(folder.rglob("*.safetensors"))
    if not files:
        raise UserError(f"{folder} holds no weights; fetch them with `dvc pull`, or make them with `anl make generator`")
    return identity({path.relative_to(folder).as_posix(): sha256_of(path) for path in files})


def _chosen(names, known, what):
    names = list(known) if names is None else list(names)
    if unknown := [name for name in names if name not in known]:
        raise UserError(f"there is no {what} '{unknown[0]}' in the profile; choose one of {', '.join(known) or 'none'}")
    return names


# ---- what a model is made with -----------------------------------------------------------------------------------------
def _record(config, kind, name):
    """The record of a model with the settings that decide its weights."""
    section = (config.models if kind == "generators" else {"prior": config.prior, **config.other_priors})[name]
    if section.source:
        settings = {"source": section.source, "revision": section.revision}
    else:
        settings = {"config": section.model_dump(mode="json", exclude_none=True, exclude={"precision"}), "seed": config.seed}
        if section.steps:
            settings["images"] = _image_settings(config)
        if kind == "generators" and (decoder := _decoder(config, name)):
            settings["decoder"] = _record(config, kind, decoder)["identity"]
    return {"identity": identity(settings), "settings": settings}


def _image_settings(config):
    if config.benchmark.kind == "manifest":
        return published.settings(config.benchmark)
    return photograph_settings(config.data)


def photograph_settings(data):
    """What decides the photographs' pixels and splits."""
    card = identity([(photo.file, photo.sha256, photo.group) for photo in photos.read_card(data.card)])
    return {"photographs": card, **data.model_dump(mode="json", exclude={"card", "folder"})}


def _is_current(folder, record):
    try:
        return read_json(folder / RECORD).get("identity") == record["identity"]
    except (UserError, AttributeError):
        return False


def _decoder(config, name):
    """Name of the autoencoder that a latent model works in, or None."""
    if generators.kind_of(name, config.models[name]) != "latent":
        return None
    found = [family.decoder for family in config.families.values() if family.model == name and family.decoder]
    return found[0] if found else "vae"


# ---- making one model --------------------------------------------------------------------------------------------------
def _make_prior(config, name, section, images, device):
    folder, record = prior_folder(config, name), _record(config, "priors", name)
    if _is_current(folder, record):
        return folder
    if section.source:
        place = locate(section.source, section.revision)[0]
        loaded = prior.NoisePrior.load(place, precision=section.precision)
        loaded.check_size(config.benchmark.size)
        for note in [*loaded.notes(config.benchmark.size), *overlap_warnings(section.source)]:
            print(note, file=sys.stderr)
        return _write(folder, record)
    # all priors draw from the stream "prior": another length of training or another loss starts from the same weights
    seed = config.seed + section.seed_offset
    seeds.fix(seed, "prior")
    unet = prior.build_prior(section.channels, section.layers_per_block)
    objective = prior.training_loss(section.objective, section.noise_step)

    def loss(models, x, generator, step):
        return objective(models["unet"], x, generator)

    trained = _train(config, "prior", f"prior-{name}", section, {"unet": unet}, loss, images, seed, record, device)
    return _write(folder, record, lambda place: prior.save_prior(unet.cpu(), place), *trained)


def _make_generator(config, name, images, device):
    section, record = config.models[name], _record(config, "generators", name)
    folder = Path(config.run.models) / "generators" / name
    if _is_current(folder, record):
        return generator_folder(config, name)
    kind = generators.kind_of(name, section)
    if section.source:
        generators.load_model(kind, section.source)
        _write(folder, record)
        return generator_folder(config, name)
    decoder, vae = _decoder(config, name), None
    if decoder:
        vae = generators.load_model(generators.kind_of(decoder, config.models[decoder]), generator_folder(config, decoder))
    seeds.fix(config.seed, "generator", name)
    models = generators.build(name, section, vae)
    sampler = functools.cache(lambda: crops.CropSampler(images(), section.crop, section.batch_size, config.seed, name))

    def batch_at(step):
        return sampler().batch(step).to(next(models["model"].parameters()).device, memory_format=torch.channels_last)

    def before_step(step):
        generators.before_step(name, section, models, step, batch_at, config.seed)

    def loss(networks, x, generator, step):
        if vae is not None:
            vae.to(x.device)
        return generators.training_loss(name, section, vae)(networks, x, generator, step)

    trained = _train(config, name, f"generator-{name}", section, dict(models), loss, images, config.seed, record, device,
                     before_step)
    last = batch_at(section.steps)[:STATISTICS_BATCH]
    model = generators.finish(name, section, models, last, seeds.torch_generator(config.seed, name, "statistics"))
    return _write(folder, record, lambda place: generators.save_model(model.cpu(), place), *trained)


def _train(config, stream, name, section, models, loss, images, seed, record, device, before_step=None):
    """Train networks in place: (curve, checkpoint, accelerator)."""
    accelerator = make_accelerator("fp32")  # the losses choose their own precision
    if device is not None and torch.device(device).type != accelerator.device.type:
        raise UserError(f"trainings run on {accelerator.device.type} here, not on {device}; hide or add a GPU with "
                        "CUDA_VISIBLE_DEVICES")
    checkpoint = Checkpoint(Path(config.run.cache) / "models", name, record["settings"])
    sampler = crops.CropSampler(images(), section.crop, section.batch_size, seed, stream) if section.steps else None
    curve = train_generative(stream, models, loss, sampler, section, seed=seed, accelerator=accelerator, checkpoint=checkpoint,
                             before_step=before_step)
    return curve, checkpoint, accelerator


def _write(folder, record, save=None, curve=(), checkpoint=None, accelerator=None):
    """Put a model's folder in place, whole; of several processes the main one does."""
    if accelerator is None or accelerator.is_main_process:
        with atomic_folder(folder, replace=True) as temporary:
            if save:
                save(temporary)
            if curve:
                pd.DataFrame(curve).to_csv(temporary / "curve.csv", index=False, float_format="%.6g", lineterminator="\n")
            write_json(temporary / RECORD, record)
        if checkpoint:
            checkpoint.remove()
    if accelerator is not None:
        accelerator.wait_for_everyone()
    return folder
