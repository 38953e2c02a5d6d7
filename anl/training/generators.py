"""Train the priors and generators that are missing, and store each with the settings that it was trained with."""

import functools
import sys
from pathlib import Path

import pandas as pd
import torch
from tqdm.auto import tqdm

from anl import seeds
from anl.data import crops, manifest, photos, published
from anl.data.decode import decode
from anl.io import UserError, atomic_folder, identity, pick, read_json, sha256_of, write_json
from anl.models import generators, prior
from anl.models.prior_loading import locate, overlap_warnings
from anl.training.device import make_accelerator
from anl.training.experiments import MADE_WITH, prior_folder
from anl.training.loop import Checkpoint, fit

__all__ = ["generator_folder", "make_generators", "make_priors", "photograph_settings", "train_generative",
           "training_images", "weights_of"]

STATISTICS_BATCH = 64     # crops that a VAE's latent scale is measured on


def generator_folder(config, name):
    """Folder of a generator's weights: its `source`, or the folder that training writes."""
    source = config.models[name].source
    return Path(source) if source else Path(config.run.models) / "generators" / name


def make_priors(config, names=None):
    """Train the priors and denoisers of a profile that are missing or were trained with other settings.

    A prior with a `source` is not trained, but located (and downloaded if necessary) and checked.

    Parameters
    ----------
    config : anl.config.Config
    names : sequence of str, optional
        `prior` and keys of `other_priors`; default: all.

    Returns
    -------
    dict of str to Path
        Folder of each prior.

    Raises
    ------
    UserError
        If a name is unknown, training images are missing, or a source cannot serve as a prior.
    """
    images = functools.cache(functools.partial(training_images, config, halved=True))
    return {name: _make_prior(config, pick("prior", name, _priors(config)), images) for name in names or _priors(config)}


def make_generators(config, names=None):
    """Train the generator models of a profile that are missing or were trained with other settings.

    Parameters
    ----------
    config : anl.config.Config
    names : sequence of str, optional
        Keys of `models`; default: all. The autoencoder of a latent model is trained first if it is missing.

    Returns
    -------
    dict of str to Path
        Folder of each model.

    Raises
    ------
    UserError
        If a name is unknown, training images are missing, or a `source` holds no such model.
    """
    images, folders = functools.cache(functools.partial(training_images, config)), {}
    for name in names or config.models:
        pick("generator model", name, config.models)
        for needed in filter(None, (_decoder(config, name), name)):
            folders[needed] = _make_generator(config, needed, images)
    return folders


def training_images(config, halved=False):
    """Images that priors and generators are trained on, a list of uint8 (H, W, 3).

    These are the training photographs (with `halved` at half their size, the scale that the detector sees), or the real
    training images of a published data set.
    """
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


# ---- identity of a model -----------------------------------------------------------------------------------------------
def _record(config, kind, name):
    """The settings that determine a model's weights, and their hash."""
    section = (config.models if kind == "generators" else _priors(config))[name]
    if section.source:
        settings = {"source": section.source, "revision": section.revision}
        if kind == "priors" and Path(section.source).is_dir():
            settings["weights"] = weights_of(section.source)
    else:
        settings = {"config": section.model_dump(mode="json", exclude_none=True, exclude={"precision"}), "seed": config.seed}
        if section.steps:
            settings["images"] = (published.settings(config.benchmark) if config.benchmark.kind == "manifest"
                                  else photograph_settings(config.data))
        if kind == "generators" and (decoder := _decoder(config, name)):
            settings["decoder"] = _record(config, kind, decoder)["identity"]
    return {"identity": identity(settings), "settings": settings}


def _priors(config):
    """The sections of all priors by name."""
    return {"prior": config.prior, **config.other_priors}


def photograph_settings(data, index=None):
    """What determines the pixels and splits of the photographs of the data card, or of an index if one is given."""
    if index:
        about = {"index": sha256_of(index)}
    else:
        about = {"photographs": identity([(photo.file, photo.sha256, photo.group) for photo in photos.read_card(data.card)])}
    return about | data.model_dump(mode="json", exclude={"card", "folder"})


def _is_current(folder, record):
    try:
        return read_json(folder / MADE_WITH).get("identity") == record["identity"]
    except (UserError, AttributeError):
        return False


def _decoder(config, name):
    """Name of the autoencoder that a latent model works in, or None."""
    if generators.kind_of(name, config.models[name]) != "latent":
        return None
    found = [family.decoder for family in config.families.values() if family.model == name and family.decoder]
    return found[0] if found else "vae"


# ---- training one model ------------------------------------------------------------------------------------------------
def _make_prior(config, name, images):
    folder, record, section = prior_folder(config, name), _record(config, "priors", name), _priors(config)[name]
    if _is_current(folder, record):
        return folder
    if section.source:
        loaded = prior.NoisePrior.load(locate(section.source, section.revision)[0], precision=section.precision)
        loaded.check_size(config.benchmark.size)
        for note in [*loaded.notes(config.benchmark.size), *overlap_warnings(section.source)]:
            print(note, file=sys.stderr)
        return _write(folder, record)
    # all priors use the random stream "prior", so that initial weights depend neither on the steps nor on the loss
    seed = config.seed + section.seed_offset
    seeds.fix(seed, "prior")
    unet = prior.build_prior(section.channels, section.layers_per_block)
    objective = prior.training_loss(section.objective, section.noise_step)

    def loss(models, x, generator, step):
        return objective(models["unet"], x, generator)

    checkpoint = _checkpoint(config, f"prior-{name}", record)
    curve = train_generative("prior", {"unet": unet}, loss, _batches(images, section, seed, "prior"), section, seed=seed,
                             checkpoint=checkpoint)
    return _write(folder, record, lambda place: prior.save_prior(unet.cpu(), place), curve, checkpoint)


def _make_generator(config, name, images):
    section, record = config.models[name], _record(config, "generators", name)
    folder, kind = Path(config.run.models) / "generators" / name, generators.kind_of(name, section)
    if _is_current(folder, record):
        return generator_folder(config, name)
    if section.source:
        generators.load_model(kind, section.source)
        _write(folder, record)
        return generator_folder(config, name)
    decoder, vae = _decoder(config, name), None
    if decoder:
        vae = generators.load_model(generators.kind_of(decoder, config.models[decoder]), generator_folder(config, decoder))
    seeds.fix(config.seed, "generator", name)
    models = generators.build(name, section, vae)
    batch_at = _batches(images, section, config.seed, name)

    def on_device(step):
        return batch_at(step).to(next(models["model"].parameters()).device, memory_format=torch.channels_last)

    def before_step(step):
        generators.before_step(name, section, models, step, on_device, config.seed)

    def loss(networks, x, generator, step):
        if vae is not None:
            vae.to(x.device)
        return generators.training_loss(name, section, vae)(networks, x, generator, step)

    checkpoint = _checkpoint(config, f"generator-{name}", record)
    curve = train_generative(name, dict(models), loss, batch_at, section, seed=config.seed, checkpoint=checkpoint,
                             before_step=before_step)
    last = on_device(section.steps)[:STATISTICS_BATCH]
    model = generators.finish(name, section, models, last)
    return _write(folder, record, lambda place: generators.save_model(model.cpu(), place), curve, checkpoint)


def _batches(images, section, seed, stream):
    """Function from a step to its batch of crops. Its first call reads the photographs."""
    sampler = functools.cache(lambda: crops.CropSampler(images(), section.crop, section.batch_size, seed, stream))
    return lambda step: sampler().batch(step)


def _checkpoint(config, name, record):
    return Checkpoint(Path(config.run.cache) / "models", name, record["settings"])


def train_generative(name, models, loss, batch_at, config, *, seed, checkpoint=None, before_step=None):
    """Train one or several networks together on batches of crops, in place.

    Parameters
    ----------
    name : str
        Name of the random streams; also shown in the progress bar and in error messages.
    models : dict of str to nn.Module
        The networks to train, without frozen ones that the loss needs, such as the decoder of a latent model.
    loss : callable (models, images, generator, step) -> scalar Tensor, or dict with "loss"
        A mean over `images` (B, 3, H, W) in [-1, 1], on the device. `generator` is a torch.Generator on the CPU that
        depends only on seed, name, step and `Part`, not on earlier draws. `step` counts from 0.
    batch_at : callable (step) -> Tensor (B, 3, H, W)
        A pure function.
    config : anl.config.PriorConfig or GeneratorConfig
        0 steps leave the networks untrained.
    before_step : callable (step) or None
        Called before the loss of each step, in all processes. A pure function of the step and the models.

    Returns
    -------
    list of dict
        The curve, see `anl.training.loop.fit`.

    Raises
    ------
    UserError
        If a batch has fewer images than there are processes, or the loss is not finite.
    """
    accelerator = make_accelerator("fp32")  # the losses choose their own precision
    for model in models.values():
        model.to(accelerator.device, memory_format=torch.channels_last).train()
    if config.steps == 0:
        return []

    def loss_at(step, part):
        if before_step:
            before_step(step)
        batch = batch_at(step)
        images = part.of(batch).to(accelerator.device, memory_format=torch.channels_last)
        if len(images) == 0:
            raise UserError(f"{name}: a batch of {len(batch)} cannot be shared by {part.count} processes; raise batch_size")
        found = loss(models, images, seeds.torch_generator(seed, name, "draws", step, part.index), step)
        found = found if isinstance(found, dict) else {"loss": found}
        share = len(images) / len(batch)
        return {key: None if value is None else value * share for key, value in found.items()}

    curve = fit(models, loss_at, steps=config.steps, learning_rate=config.learning_rate, weight_decay=config.weight_decay,
                warmup_steps=config.warmup_steps, final_learning_rate=config.final_learning_rate, clip_norm=config.clip_norm,
                ema=config.ema, accelerator=accelerator, seed=seed, checkpoint=checkpoint, name=name)
    for model in models.values():
        model.eval()
    return curve


def _write(folder, record, save=None, curve=(), checkpoint=None):
    """Write a model's folder atomically, in the main process only, and remove its checkpoint."""
    accelerator = make_accelerator("fp32")
    if accelerator.is_main_process:
        with atomic_folder(folder, replace=True) as temporary:
            if save:
                save(temporary)
            if curve:
                pd.DataFrame(curve).to_csv(temporary / "curve.csv", index=False, float_format="%.6g", lineterminator="\n")
            write_json(temporary / MADE_WITH, record)
        if checkpoint:
            checkpoint.remove()
    accelerator.wait_for_everyone()
    return folder
