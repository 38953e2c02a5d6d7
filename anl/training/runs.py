"""Train a run from its configuration: benchmark, frozen models, noise targets, training, loading of the trained detector."""

import functools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tqdm.auto import tqdm

from anl import seeds
from anl.config import NETWORK_TARGETS, STEPLESS_TARGETS
from anl.data import REAL, crops, embedded, images, processing
from anl.io import UserError, atomic_file, cores, identity, pick
from anl.models import baselines, checkpoint, generators
from anl.models.baselines.univfd import Encoder
from anl.models.detector import Detector, anl_loss
from anl.models.generators.diffusion import noise_scheduler
from anl.models.prior import NoisePrior
from anl.training import targets
from anl.training.detector import TrainingData, train_detector
from anl.training.device import make_accelerator
from anl.training.experiments import (
    CURVE,
    WEIGHTS,
    Run,
    experiment_runs,
    missing_runs,
    prior_folder,
    read_curve,
    run_inputs,
    train_experiment,
)
from anl.training.generators import generator_folder
from anl.training.loop import Checkpoint

__all__ = ["WEIGHTS", "Benchmark", "load_generator", "load_prior", "load_run", "load_trained", "make_all_targets", "make_targets",
           "open_benchmark", "read_curve", "train", "train_run"]

AUTOENCODERS = ("vae", "vq", "taef2")
IN_MEMORY = 4 * 2**30  # bytes of decoded images; larger sets are decoded batch by batch


@dataclass(frozen=True)
class Benchmark:
    """The images of a profile."""

    rows: pd.DataFrame  # rows of the manifest, see `anl.data.embedded.COLUMNS`
    folder: Path        # the rows' paths are relative to it
    size: int           # pixels on a side; larger images are cropped at the centre
    workers: int = 0    # threads that decode images, if these do not fit into memory

    def pixels(self, rows):
        """Decoded images of some rows: uint8 (N, size, size, 3)."""
        return images.load_pixels(rows, self.folder, self.size)

    def array(self, rows):
        """Like `pixels`; if the images need more than 4 GiB, an array-like that decodes them when it is indexed."""
        large = len(rows) * self.size**2 * 3 > IN_MEMORY
        return _PixelFiles(rows.reset_index(drop=True), self) if large else self.pixels(rows)

    def split(self, name, generators=None):
        """Rows of a split, of some generators (default: all)."""
        chosen = self.rows["split"] == name
        if generators is not None:
            chosen &= self.rows["generator"].isin(generators)
        return self.rows[chosen].reset_index(drop=True)


class _PixelFiles:
    """Images decoded when they are indexed: `files[rows]` is uint8 (N, size, size, 3)."""

    def __init__(self, rows, benchmark):
        self.rows, self.benchmark = rows, benchmark
        self.pool = ThreadPoolExecutor(max(1, benchmark.workers))

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        places = np.array_split(np.arange(len(self.rows))[index], max(1, self.benchmark.workers))
        parts = [self.rows.iloc[place] for place in places if len(place)]
        return np.concatenate(list(self.pool.map(self.benchmark.pixels, parts)))


def open_benchmark(config, test_set=None):
    """The images that a profile uses, with its limits applied. They are the same for every run.

    Parameters
    ----------
    config : anl.config.Config
    test_set : str, optional
        Key of `benchmark.test_sets` whose test images are used. Default: those of the benchmark's main data set, or, if it
        has no test split, those of the first other data set.

    Returns
    -------
    Benchmark

    Raises
    ------
    UserError
        If the test set is unknown, the benchmark's folder is missing or damaged, or a seen generator has no training images.
    """
    section = config.benchmark
    rows = embedded.read_embedded(section.folder)
    others = section.other_sets
    used = crops.use_rows(rows[~rows["dataset"].isin(others)], section.most, config.seed)
    if test_set is not None:
        pick("test set", test_set, section.test_sets)
    elif not (used["split"] == "test").any():
        test_set = next(iter(others), None)
    if test_set in others:
        tested = crops.use_rows(rows[rows["dataset"] == test_set], section.most, config.seed)
        used = pd.concat([used[used["split"] != "test"], tested[tested["split"] == "test"]], ignore_index=True)
    lacking = [name for name in section.seen if name not in set(used.loc[used["split"] == "train", "generator"])]
    if lacking:
        raise UserError(f"{section.folder} has no training images of generator '{lacking[0]}' (benchmark.seen); choose one of "
                        f"{', '.join(sorted(set(used['generator']) - {'real'}))}")
    return Benchmark(used, Path(section.folder), section.size, config.run.workers)


# ---- frozen models -----------------------------------------------------------------------------------------------------
def load_prior(config, name="prior", device="cpu"):
    """The frozen `NoisePrior` called `prior`, or a prior or denoiser of `other_priors`."""
    section, folder = config.prior if name == "prior" else config.other_priors[name], prior_folder(config, name)
    if not section.source and not folder.is_dir():
        raise UserError(f"{folder} is missing; fetch it with `dvc pull prior`, or train it with `anl make prior {name}`")
    prior = NoisePrior.load(section.source or folder, device, section.precision, section.revision if section.source else None)
    prior.check_size(config.benchmark.size)
    return prior


def load_generator(config, name, device="cpu"):
    """A frozen generator or autoencoder of the profile's `models`."""
    section, folder = config.models[name], generator_folder(config, name)
    if not folder.is_dir():
        raise UserError(f"{folder} is missing; " + (f"correct models.{name}.source" if section.source else
                        f"fetch it with `dvc pull generator`, or train it with `anl make generator {name}`"))
    return generators.load_model(generators.kind_of(name, section), folder, device)


def _frozen(config, needs, device):
    """The frozen model that a baseline needs, or None."""
    if needs == "prior":
        return load_prior(config, "prior", device)
    if needs == "latent":
        return _latent_prior(config, device)
    if needs == "vae":
        names = [name for name, section in config.models.items() if generators.kind_of(name, section) in AUTOENCODERS]
        if not names:
            raise UserError(f"profile {config.profile} has no autoencoder in `models`; add a vae, vq or taef2 for aeroblade")
        return [load_generator(config, name, device) for name in names]
    return Encoder(config.baselines.encoder, device) if needs == "encoder" else None


def _latent_prior(config, device):
    """The profile's prior if it works in latent space, else its latent diffusion model with its autoencoder."""
    prior = load_prior(config, "prior", device) if config.prior.source else None
    if prior is not None and prior.vae is not None:
        return prior
    for family in config.families.values():
        if family.decoder and generators.kind_of(family.model, config.models[family.model]) == "latent":
            return NoisePrior(load_generator(config, family.model, device), noise_scheduler(), device, config.prior.precision,
                              load_generator(config, family.decoder, device))
    raise UserError(f"profile {config.profile} has no latent diffusion model; add one to `families`, or choose a latent prior")


# ---- noise targets -----------------------------------------------------------------------------------------------------
def make_targets(config, benchmark=None, device="cpu"):
    """The noise targets of a variant's training images. They are cached in `run.targets`, and variants share the cache.

    Parameters
    ----------
    config : anl.config.Config
        Configuration of the variant.
    benchmark : Benchmark, optional
        Default: that of the configuration.
    device : torch.device or str
        Where the frozen networks compute.

    Returns
    -------
    float16 Tensor (N, C, h, w), LiveTargets, or None
        None for a detector that learns no noise.
    """
    method, run = config.method, config.run
    if method.target == "none":
        return None
    benchmark = benchmark or open_benchmark(config)
    rows = _training_rows(config, benchmark)
    pixels = benchmark.array(rows)
    target = _target(config, device)
    target = replace(target, about=target.about | {"size": config.benchmark.size})
    return targets.load_targets(
        Path(run.targets) / config.profile, method.target, target,
        lambda index: images.to_tensor(pixels[index], device), rows, seed=config.seed, scale_images=method.scale_images,
        batch_size=run.batch_size, most_bytes=run.target_gigabytes * 1e9)


def make_all_targets(variants):
    """Compute and cache the noise targets of several variants, so that their runs can read them."""
    benchmarks = {}
    for variant in variants:
        if variant.method.target != "none":
            key = identity([variant.benchmark.model_dump(), variant.seed])
            benchmarks[key] = benchmarks.get(key) or open_benchmark(variant)
            make_targets(variant, benchmarks[key], make_accelerator().device)
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()  # the training processes need the memory


def _target(config, device):
    """The noise target of a variant, before scaling."""
    method, kind, step, prior, second = config.method, config.method.target, config.method.step, None, None
    if kind in config.other_priors:
        prior = load_prior(config, kind, device)
        step = config.other_priors[kind].noise_step if config.is_denoiser(kind) else step
        kind = kind if kind in NETWORK_TARGETS else "prior"
    elif kind == "ffdnet":
        from anl.models.ffdnet import load_ffdnet

        prior = load_ffdnet(method.denoiser_weights, device)
    elif kind not in STEPLESS_TARGETS:
        prior = load_prior(config, "prior", device)
        second = load_prior(config, method.second_prior, device) if kind == "ensemble" else None
    return targets.make_target(kind, prior, step, method, seed=config.seed, second=second)


# ---- training ----------------------------------------------------------------------------------------------------------
def train(config, name, *, jobs=None, seeds=None):
    """Train the runs of an experiment that are missing.

    Parameters
    ----------
    config : anl.config.Config
    name : str
        A key of `config.experiments`.
    jobs : int, optional
        See `anl.training.experiments.train_experiment`. Default: `run.jobs`; if that is 0, one per core, or a single one if
        there is a GPU.
    seeds : list of int, optional
        Default: those of the experiment.

    Returns
    -------
    list of anl.training.experiments.Run
        All runs of the experiment.
    """
    if jobs is None:
        jobs = config.run.jobs or (1 if torch.cuda.is_available() else cores())
    if jobs > 0:
        missing = missing_runs(config, name, config.run.runs, seeds)
        make_all_targets({run.variant: run.config for run in missing}.values())
    train_experiment(config, name, train_run=train_run, jobs=jobs, root=config.run.runs, seeds=seeds)
    return experiment_runs(config, name, seeds)


def train_run(config, seed, folder):
    """Train one variant with one seed; write its weights and training curve into `folder`.

    Raises
    ------
    UserError
        If images, models or targets are missing, or the loss is not finite.
    """
    accelerator = make_accelerator(config.training.precision)
    detector, data, options = _prepare(config, seed, open_benchmark(config), accelerator.device)
    name, curve = Run("", config, seed).name, []
    saved = Checkpoint(Path(config.run.cache) / "training", name, {"identity": config.identity(), "inputs": run_inputs(config), "seed": seed})
    if options:
        detector, curve = train_detector(detector, data, method=config.method, seed=seed, accelerator=accelerator,
                                         checkpoint=saved, workers=config.run.workers, name=name, **options)
    checkpoint.save(detector, folder / WEIGHTS)
    pd.DataFrame(curve).to_csv(folder / CURVE, index=False, lineterminator="\n")
    if accelerator.is_main_process:
        saved.remove()


def _training_rows(config, benchmark):
    return benchmark.split("train", [REAL, *config.benchmark.seen])


def _prepare(config, seed, benchmark, device):
    """The untrained detector, its data and the options of `train_detector` (None for a method without training)."""
    rows = _training_rows(config, benchmark)
    real, fake = _pairs(rows, config.seed)
    val = benchmark.split("val", [REAL, *config.benchmark.seen])
    data = TrainingData(benchmark.array(rows), rows["label"].to_numpy(np.float32), rows["image_id"].tolist(), real,
                        fake, None, benchmark.array(val), val["label"].to_numpy(np.float32))
    if config.method.baseline:
        return _prepare_baseline(config, seed, data, rows, benchmark, device)
    data.target = make_targets(config, benchmark, device)
    settings = config.detector.model_dump()
    if data.target is not None:
        settings |= {"noise_channels": data.target.shape[1], "noise_factor": config.benchmark.size // data.target.shape[-1]}
    detector = Detector(**settings, size=config.benchmark.size, noise=data.target is not None, seed=seed,
                        attention=config.method.attention, detach=config.method.detach, front_end=config.method.front_end)
    return detector, data, {"training": config.training, "loss": functools.partial(anl_loss, ranking=config.method.ranking)}


def _prepare_baseline(config, seed, data, rows, benchmark, device):
    name, options, size = config.method.baseline, config.baselines.model_dump(), config.benchmark.size
    method, training, cache = baselines.get(name), config.training, Path(config.run.cache) / "representations"
    frozen = _frozen(config, method.needs, device)
    detector = baselines.build(name, config.detector.model_dump(), size, options, frozen, cache=cache, seed=seed)
    augment = (processing.augmentation_plan, processing.apply_plan)
    if method.training:
        training = training.model_copy(update=method.training(options))
    if method.represent:  # slow, so the results are cached on disk
        augment = (baselines.fixed_augmentation(processing.augmentation_plan), processing.apply_plan)
    if method.extra_images:
        extra = _extra_images(config, method, frozen, data.pixels, rows, device)
        count = len(rows)
        data.pixels = np.concatenate([data.pixels[np.arange(count)], extra])
        data.label = np.concatenate([data.label, np.ones(count, np.float32)])
        data.image_ids = [*data.image_ids, *(f"{name}, reconstructed" for name in data.image_ids)]
        data.fake = np.concatenate([data.fake, count + data.real[:, None], count + data.fake], 1)
    if method.teacher:
        data.target = _teacher_features(config, method.teacher, seed, data.pixels, benchmark, device)
    if method.target:
        with torch.no_grad():
            own = torch.cat([method.target(frozen, x).half().cpu() for x in _batches(data.pixels, len(data.pixels), device, name)])
        photograph = np.arange(len(own))
        photograph[data.fake] = data.real[:, None]
        data.target = torch.cat([own, own[torch.from_numpy(photograph)]], 1)
    chosen = {"training": training, "loss": method.loss(options, frozen), "augment": augment}
    return detector, data, chosen if method.trained else None


def _pairs(rows, seed):
    """Rows of real training images (P,) and of the generated images of each (P, A).

    Each generator whose images are paired with real ones gives one column. If no image is paired, real and generated images
    are paired at random; the order depends on the seed only.
    """
    reals, fakes = rows.index[rows["label"] == 0].to_numpy(), rows[rows["label"] == 1]
    place = {pair: row for row, pair in zip(reals, rows.loc[reals, "pair"], strict=True) if pair}
    columns = []
    for _, part in fakes[fakes["pair"].isin(place)].groupby("generator", observed=True, sort=True):
        columns.append(pd.Series(part.index, part["pair"].map(place)))
    if columns:
        if alone := sorted(set(fakes.loc[~fakes["pair"].isin(place), "generator"])):
            raise UserError(f"images of '{alone[0]}' (benchmark.seen) belong to no real image, but those of other seen "
                            "generators do; train on paired or on unpaired generators only")
        table = pd.concat(columns, axis=1, join="inner").sort_index()
        return table.index.to_numpy(), table.to_numpy()
    rng = seeds.generator(seed, "unpaired")
    reals, fakes = rng.permutation(reals), rng.permutation(fakes.index.to_numpy())
    count = min(len(reals), len(fakes))
    return reals[:count], fakes[:count, None]


def _extra_images(config, method, frozen, pixels, rows, device):
    """Additional generated training images of a baseline, uint8 (N, H, W, 3); cached on disk."""
    options = {key: getattr(config.baselines, key) for key in method.parameters}
    key = identity({"method": method.name, "options": options, "images": rows["sha256"].tolist(), "seed": config.seed,
                    "frozen": baselines.frozen_hash(frozen), "size": config.benchmark.size})
    path = Path(config.run.cache) / "representations" / f"extra-{key}.safetensors"
    try:
        return load_file(path)["pixels"].numpy()
    except (OSError, SafetensorError, KeyError):
        pass
    parts, generator = [], seeds.torch_generator(config.seed, "extra images")
    for x in _batches(pixels, len(rows), device, method.name):
        parts.append(images.to_pixels(method.extra_images(frozen, x, generator, options)))
    found = np.concatenate(parts)
    with atomic_file(path) as temporary:
        save_file({"pixels": torch.from_numpy(found)}, temporary)
    return found


def _teacher_features(config, name, seed, pixels, benchmark, device):
    """Features (N, D) of a teacher on training images without augmentation. It is trained first, or read from the cache."""
    teacher = Run("", config.override(method={"baseline": name}), seed)
    path = Path(config.run.cache) / "teachers" / f"{teacher.name}-{identity(run_inputs(teacher.config))}.safetensors"
    if not path.is_file():
        detector, data, options = _prepare(teacher.config, seed, benchmark, device)
        detector, _ = train_detector(detector, data, method=teacher.config.method, seed=seed, name=f"teacher {name}",
                                     accelerator=make_accelerator(config.training.precision), **options)
        checkpoint.save(detector, path)
    network = _load_network(path, teacher.config, device)
    with torch.no_grad():
        return torch.cat([network(x).features.float().cpu() for x in _batches(pixels, len(pixels), device, f"teacher {name}")])


def _batches(pixels, count, device, label):
    """The first `count` images of an array as tensors (B, 3, H, W), with a progress bar."""
    for start in tqdm(range(0, count, 64), desc=label, disable=None):
        yield images.to_tensor(pixels[np.arange(start, min(start + 64, count))], device)


# ---- trained runs ------------------------------------------------------------------------------------------------------
def load_run(folder, config, device="cpu"):
    """Load the trained detector of a run, in its inference form.

    Parameters
    ----------
    folder : path-like
        Folder of the run.
    config : anl.config.Config
        Configuration of the run's variant. It says where the frozen models of a baseline are.
    device : torch.device or str

    Returns
    -------
    nn.Module
        Images (B, 3, H, W) in [-1, 1] -> `anl.models.detector.Output`.
    """
    return _load_network(Path(folder) / WEIGHTS, config, device)


def load_trained(folder, config, device="cpu"):
    """Like `load_run`, but with the parts that only training needs, such as the noise head, whose output a figure can show."""
    return _load_network(Path(folder) / WEIGHTS, config, device, inference=False)


def _load_network(path, config, device, inference=True):
    cache = Path(config.run.cache) / "representations"
    builders = {"detector": Detector, "baseline": baselines.builder(lambda needs, options: _frozen(config, needs, device), cache)}
    network = checkpoint.load(path, builders, device)
    return network.for_inference() if inference and hasattr(network, "for_inference") else network
