"""One run from its configuration: benchmark, frozen models, noise targets, training, and the trained detector again."""

import csv
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from tqdm.auto import tqdm

from anl import seeds
from anl.config import NETWORK_TARGETS
from anl.data import crops, embedded, images, processing
from anl.io import UserError, atomic_file, identity
from anl.models import baselines, checkpoint, generators
from anl.models.baselines.univfd import Encoder
from anl.models.detector import Detector, anl_loss
from anl.models.prior import NoisePrior
from anl.training import targets
from anl.training.detector import TrainingData, train_detector
from anl.training.device import make_accelerator
from anl.training.experiments import CURVE, WEIGHTS, read_curve, run_name
from anl.training.loop import Checkpoint

__all__ = ["WEIGHTS", "Benchmark", "load_generator", "load_prior", "load_run", "make_targets", "open_benchmark", "read_curve",
           "train_run"]

AUTOENCODERS = ("vae", "vq", "taef2")
IN_MEMORY = 4 * 2**30  # bytes of decoded images; larger sets are decoded batch by batch


@dataclass(frozen=True)
class Benchmark:
    """The images of a profile.

    Attributes
    ----------
    rows : DataFrame
        Manifest rows that the profile uses, see `anl.data.embedded.COLUMNS`.
    folder : Path
        What the paths are relative to.
    size : int
        Pixels on a side; larger images are cropped at the centre.
    workers : int
        Threads that decode, where the images do not fit into memory.
    """

    rows: pd.DataFrame
    folder: Path
    size: int
    workers: int = 0

    def pixels(self, rows):
        """Decoded images of some rows: uint8 (N, size, size, 3)."""
        return images.load_pixels(rows, self.folder, self.size)

    def array(self, rows):
        """Like `pixels`, but an array-like that decodes when it is indexed if the images need more than 4 GiB."""
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
        chosen = self.rows.iloc[np.atleast_1d(np.arange(len(self.rows))[index])]
        parts = [chosen.iloc[start::self.pool._max_workers] for start in range(min(len(chosen), self.pool._max_workers))]
        pixels = np.empty((len(chosen), self.benchmark.size, self.benchmark.size, 3), np.uint8)
        for start, part in enumerate(self.pool.map(self.benchmark.pixels, parts)):
            pixels[start::self.pool._max_workers] = part
        return pixels


def open_benchmark(config, test_set=None):
    """The images that a profile uses: its limits applied, the same for every run.

    Parameters
    ----------
    config : anl.config.Config
    test_set : str, optional
        A key of `benchmark.test_sets`: test images are those of this other data set; the others stay.

    Returns
    -------
    Benchmark

    Raises
    ------
    UserError
        If the benchmark's folder is missing or damaged, or an image of a seen generator is lacking.
    """
    section = config.benchmark
    if test_set is not None and test_set not in section.test_sets:
        raise UserError(f"profile {config.profile} has no test set '{test_set}'; "
                        f"known: {', '.join(section.test_sets) or 'none'}")
    most = {split: min(section.limit or count, count) for split, count in section.use.model_dump().items()}
    rows = embedded.read_embedded(section.folder)
    other = rows["dataset"].isin(section.test_sets)
    used = crops.use_rows(rows[~other], most, config.seed)
    if test_set is not None:
        tested = crops.use_rows(rows[rows["dataset"] == test_set], most, config.seed)
        used = pd.concat([used[used["split"] != "test"], tested[tested["split"] == "test"]], ignore_index=True)
    rows = used
    lacking = [name for name in section.seen if name not in set(rows.loc[rows["split"] == "train", "generator"])]
    if lacking:
        raise UserError(f"{section.folder} has no training images of generator '{lacking[0]}' (benchmark.seen); choose one of "
                        f"{', '.join(sorted(set(rows['generator']) - {'real'}))}")
    return Benchmark(rows, Path(section.folder), section.size, config.run.workers)


# ---- frozen models -----------------------------------------------------------------------------------------------------
def load_prior(config, name="prior", device="cpu"):
    """A frozen prior of the profile, or a denoiser of its `other_priors`.

    Parameters
    ----------
    config : anl.config.Config
    name : str
        `prior`, or a key of `other_priors`.

    Returns
    -------
    NoisePrior
    """
    section = config.prior if name == "prior" else config.other_priors[name]
    folder = Path(config.run.models) / "priors" / name
    if not section.source and not folder.is_dir():
        raise UserError(f"{folder} is missing; fetch it with `dvc pull prior`, or train it with `anl make prior {name}`")
    prior = NoisePrior.load(section.source or folder, device, section.precision, section.revision if section.source else None)
    prior.check_size(config.benchmark.size)
    return prior


def load_generator(config, name, device="cpu"):
    """A frozen generator or autoencoder of the profile's `models`."""
    section = config.models[name]
    folder = Path(section.source or Path(config.run.models) / "generators" / name)
    if not folder.is_dir():
        raise UserError(f"{folder} is missing; " + (f"correct models.{name}.source" if section.source else
                        f"fetch it with `dvc pull generator`, or train it with `anl make generator {name}`"))
    return generators.load_model(generators.kind_of(name, section), folder, device)


def _frozen(config, needs, device):
    """The frozen model that a baseline needs, or None."""
    if needs == "prior":
        return load_prior(config, "prior", device)
    if needs == "vae":
        names = [name for name, section in config.models.items() if generators.kind_of(name, section) in AUTOENCODERS]
        if not names:
            raise UserError(f"profile {config.profile} has no autoencoder in `models`; add a vae, vq or taef2 for aeroblade")
        return [load_generator(config, name, device) for name in names]
    return Encoder(config.baselines.encoder, device) if needs == "encoder" else None


# ---- noise targets -----------------------------------------------------------------------------------------------------
def _target(config, device):
    """The noise target of a variant, before scaling."""
    method = config.method
    kind, step, second, network, name = method.target, method.step, None, None, "prior"
    if kind in NETWORK_TARGETS:
        network, step = load_prior(config, kind, device), config.other_priors[kind].noise_step
    elif kind == "ffdnet":
        raise UserError("the target 'ffdnet' needs a network that this version does not build; choose denoiser, blind_denoiser "
                        "or wavelet")
    elif kind == "ensemble":
        second = load_prior(config, method.second_prior, device)
    elif kind in config.other_priors:
        kind, name = "prior", kind
    needed = kind not in ("highpass", "random", "wavelet", *NETWORK_TARGETS)
    prior = load_prior(config, name, device) if needed else None
    return targets.make_target(kind, prior, step, method, seed=config.seed, second=second, network=network)


def make_targets(config, benchmark=None, device="cpu"):
    """The noise targets of a variant's training images, computed once and kept in `run.targets`.

    Parameters
    ----------
    config : anl.config.Config
        Of a variant. Several variants with the same target share the file.
    benchmark : Benchmark, optional
        Default: the configuration's.
    device : torch.device or str
        Where the frozen networks compute.

    Returns
    -------
    float16 Tensor (N, C, h, w), `LiveTargets` where the file would exceed run.target_gigabytes, or None
        In the order of the training rows; None for a detector that learns no noise.
    """
    if config.method.target == "none":
        return None
    benchmark = benchmark or open_benchmark(config)
    rows, target = _training_rows(config, benchmark), _target(config, device)
    pixels = _pixels(config, benchmark, rows)
    names = rows["pair"].where(rows["pair"] != "", rows["image_id"]).tolist()

    def tensor(index):
        return images.to_tensor(pixels[index]).to(device)

    first = target(tensor(np.arange(1)), names[:1])
    if len(rows) * first[0].numel() * 2 > config.run.target_gigabytes * 1e9:
        return targets.LiveTargets(target, tensor, names, rows["split"], seed=config.seed,
                                   scale_images=config.method.scale_images, batch_size=config.run.batch_size)
    key = targets.cache_key(target, rows, config.seed, config.method.scale_images)
    size = config.run.batch_size
    label = config.method.target + (f" t={config.method.step}" if "step" in target.about else "")

    def batches():
        for start in tqdm(range(0, len(rows), size), desc=f"targets {label}", disable=None):
            yield tensor(np.arange(start, min(start + size, len(rows)))), names[start:start + size]

    path = Path(config.run.targets) / config.profile / f"{config.method.target}-{key[:16]}.safetensors"
    return targets.load_targets(path, target, batches, rows, seed=config.seed, scale_images=config.method.scale_images)[0]


# ---- training ----------------------------------------------------------------------------------------------------------
def train_run(config, seed, folder):
    """Train one variant with one seed and write its weights and training curve.

    Parameters
    ----------
    config : anl.config.Config
        Of the variant.
    seed : int
    folder : Path
        Gets `detector.safetensors` and `curve.csv`. `anl.training.experiments` makes it appear when all is written.

    Raises
    ------
    UserError
        If images, models or targets are missing, or the loss is not finite.
    """
    accelerator = make_accelerator(config.training.precision)
    device, benchmark = accelerator.device, open_benchmark(config)
    detector, data, options = _prepare(config, seed, benchmark, device)
    curve = []
    if options.pop("trained"):
        saved = Checkpoint(Path(config.run.cache) / "training", run_name(config, seed),
                           {"identity": config.identity(), "seed": seed})
        detector, curve = train_detector(detector, data, method=config.method, seed=seed, accelerator=accelerator,
                                         checkpoint=saved, name=run_name(config, seed), **options)
    checkpoint.save(detector, folder / WEIGHTS)
    with open(folder / CURVE, "w", newline="", encoding="utf-8") as stream:
        columns = list(dict.fromkeys(key for point in curve for key in point))
        writer = csv.DictWriter(stream, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(curve)
    if curve and accelerator.is_main_process:
        saved.remove()


def _training_rows(config, benchmark):
    return benchmark.split("train", ["real", *config.benchmark.seen])


def _pixels(config, benchmark, rows):
    """Images as `benchmark.formats` has them: as they are, or reals compressed as JPEG to show what such a leak does."""
    if config.benchmark.formats == "lossless":
        return benchmark.array(rows)
    names = processing.encodings(rows, "raw", config.seed, config.benchmark.formats)
    return processing.apply_all(names, benchmark.pixels(rows), config.seed, rows["image_id"].tolist())


def _prepare(config, seed, benchmark, device):
    """The untrained detector, its data and the options of `train_detector`."""
    rows = _training_rows(config, benchmark)
    real, fake = _pairs(rows, config.seed)
    val = benchmark.split("val", ["real", *config.benchmark.seen])
    data = TrainingData(_pixels(config, benchmark, rows), rows["label"].to_numpy(np.float32), rows["image_id"].tolist(), real,
                        fake, None, _pixels(config, benchmark, val), val["label"].to_numpy(np.float32))
    if config.method.baseline:
        return _prepare_baseline(config, seed, data, rows, benchmark, device)
    data.target = make_targets(config, benchmark, device)
    settings = config.detector.model_dump()
    if data.target is not None:
        settings |= {"noise_channels": data.target.shape[1], "noise_factor": config.benchmark.size // data.target.shape[-1]}
    detector = Detector(**settings, size=config.benchmark.size, noise=data.target is not None, seed=seed,
                        attention=config.method.attention, detach=config.method.detach, front_end=config.method.front_end)
    return detector, data, {"training": config.training, "loss": anl_loss, "trained": True}


def _prepare_baseline(config, seed, data, rows, benchmark, device):
    name, options, size = config.method.baseline, config.baselines.model_dump(), config.benchmark.size
    method, training, cache = baselines.get(name), config.training, Path(config.run.cache) / "representations"
    frozen = _frozen(config, method.needs, device)
    detector = baselines.build(name, config.detector.model_dump(), size, options, frozen, cache=cache, seed=seed)
    augment = (processing.augmentation_plan, processing.apply_plan)
    if method.training:
        training = training.model_copy(update=method.training(options))
    if method.represent and method.needs != "encoder":  # many calls of a network for each image: kept on disk
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
    return detector, data, {"training": training, "loss": method.loss(options), "augment": augment, "trained": method.trained}


def _pairs(rows, seed):
    """Rows of real training images (P,) and of the generated images of each (P, A).

    Generators whose images have the pair of a real one give a column each. Images without pairs are paired in a random
    order that depends on the seed alone.
    """
    reals, fakes = rows.index[rows["label"] == 0].to_numpy(), rows[rows["label"] == 1]
    place = {pair: row for row, pair in zip(reals, rows.loc[reals, "pair"], strict=True) if pair}
    columns = []
    for _, part in fakes[fakes["pair"].isin(place)].groupby("generator", observed=True, sort=True):
        columns.append(pd.Series(part.index, part["pair"].map(place)))
    if columns:
        table = pd.concat(columns, axis=1, join="inner").sort_index()
        return table.index.to_numpy(), table.to_numpy()
    rng = seeds.generator(seed, "unpaired")
    reals, fakes = rng.permutation(reals), rng.permutation(fakes.index.to_numpy())
    count = min(len(reals), len(fakes))
    return reals[:count], fakes[:count, None]


def _extra_images(config, method, frozen, pixels, rows, device):
    """Further generated training images of a baseline, uint8 (N, H, W, 3), kept in the cache."""
    options = {key: getattr(config.baselines, key) for key in method.parameters}
    key = identity({"method": method.name, "options": options, "images": rows["sha256"].tolist(), "seed": config.seed,
                    "frozen": baselines.frozen_hash(frozen)})
    path = Path(config.run.cache) / "representations" / f"extra-{key}.safetensors"
    try:
        return load_file(path)["pixels"].numpy()
    except (OSError, SafetensorError, KeyError):
        pass
    parts, generator = [], seeds.torch_generator(config.seed, "extra images")
    for start in tqdm(range(0, len(rows), 64), desc=method.name, disable=None):
        x = images.to_tensor(pixels[np.arange(start, min(start + 64, len(rows)))]).to(device)
        parts.append(images.to_pixels(method.extra_images(frozen, x, generator, options)))
    found = np.concatenate(parts)
    with atomic_file(path) as temporary:
        save_file({"pixels": torch.from_numpy(found)}, temporary)
    return found


def _teacher_features(config, name, seed, pixels, benchmark, device):
    """Features (N, D) of the trained teacher on the untouched training images; it is trained first if it is missing."""
    teacher = config.override(method={"baseline": name})
    path = Path(config.run.cache) / "teachers" / f"{run_name(teacher, seed)}.safetensors"
    finished = Path(config.run.runs) / config.profile / run_name(teacher, seed) / WEIGHTS
    if finished.is_file():
        network = load_run(finished.parent, teacher, device)
    else:
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            detector, data, options = _prepare(teacher, seed, benchmark, device)
            options.pop("trained")
            detector, _ = train_detector(detector, data, method=teacher.method, seed=seed,
                                         accelerator=make_accelerator(config.training.precision), name=f"teacher {name}", **options)
            checkpoint.save(detector, path)
        network = _load_network(path, teacher, device)
    parts = []
    with torch.no_grad():
        for start in range(0, len(pixels), 64):
            x = images.to_tensor(pixels[np.arange(start, min(start + 64, len(pixels)))]).to(device)
            parts.append(network(x).features.float().cpu())
    return torch.cat(parts)


# ---- trained runs ------------------------------------------------------------------------------------------------------
def load_run(folder, config, device="cpu") -> nn.Module:
    """The trained detector of a run, in the form it takes at inference.

    Parameters
    ----------
    folder : path-like
        Of a run.
    config : anl.config.Config
        Of its variant: tells where the frozen models of a baseline are.
    device : torch.device or str

    Returns
    -------
    nn.Module
        (B, 3, H, W) in [-1, 1] -> `anl.models.detector.Output`.
    """
    return _load_network(Path(folder) / WEIGHTS, config, device)


def load_trained(folder, config, device="cpu"):
    """Like `load_run`, with the parts that only training needs: the noise head, for pictures of the predicted noise."""
    return _load_network(Path(folder) / WEIGHTS, config, device, inference=False)


def _load_network(path, config, device, inference=True):
    cache = Path(config.run.cache) / "representations"
    builders = {"detector": Detector, "baseline": baselines.builder(lambda needs, options: _frozen(config, needs, device), cache)}
    network = checkpoint.load(path, builders, device)
    return network.for_inference() if inference and hasattr(network, "for_inference") else network
