"""`anl bench`: measure what the method, its baselines and the pipeline cost on this machine, as one JSON file.

Every section measures the functions that the pipeline runs, with synthetic images and untrained networks, because times do
not depend on weights. Calls that are compared take turns in one run. Their ratios are reported with quartiles over the rounds.
"""

import contextlib
import functools
import io
import multiprocessing
import os
import platform
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from anl.config import Config
from anl.data import images, manifest
from anl.evaluation import cost, scoring
from anl.io import UserError, cores, read_json, sha256_of, write_json
from anl.models import baselines
from anl.models.baselines.univfd import Encoder
from anl.models.detector import Detector, anl_loss
from anl.models.generators.diffusion import noise_scheduler
from anl.models.prior import NoisePrior, build_prior
from anl.training.detector import TrainingData, train_detector
from anl.training.device import keep_freed_memory, make_accelerator, processor_name
from anl.training.experiments import train_experiment
from anl.training.targets import compute_targets, make_target

__all__ = ["SECTIONS", "bench", "operations", "plan", "read_bench", "stable_diffusion_operations", "untrained"]

LARGE, LARGE_BATCH = 64, 8  # above LARGE pixels on a side, the training batch size is LARGE_BATCH
# not aeroblade, which runs every autoencoder; the others run the plain detector at inference
PEERS = ("npr", "srm", "spectrum", "dnf", "lare", "dire", "distildire", "univfd")
TARGETS = ("highpass", "wavelet", "random", "noised", "multistep", "error")
MANIFEST_ROWS = 1_000_000
GENERATORS = np.array(["real", "adm", "sd14", "biggan", "midjourney"])
BACKWARD = 3  # ratio of operations, training step to forward pass: gradients of inputs and of weights cost a forward pass each


def bench(config, out="results/bench.json", *, sections=None, repeats=None, backbone=None, size=None, quick=False):
    """Measure, print and write the costs.

    Parameters
    ----------
    config : anl.config.Config
    out : path-like
        The JSON file. Its other sections are kept.
    sections : list of str, optional
        Some of `SECTIONS`; default: all, or those of `OF_BACKBONE` if `backbone` or `size` is given.
    repeats : int, optional
        Timed rounds, at least 2; default: each section's own number.
    backbone : str, optional
        Another timm model, with a stride of 32 pixels.
    size : int, optional
        Another image size. The section is then stored under a name such as `training@resnet50-224`.
    quick : bool
        Measure on tiny inputs, to check that everything runs.

    Returns
    -------
    dict
        Section measured now -> rows (a list of dicts), machine, seconds and settings.

    Raises
    ------
    UserError
        If a section is unknown, `repeats` is below 2, or the backbone or size does not fit.
    """
    changed = backbone is not None or size is not None
    chosen = list(sections or (OF_BACKBONE if changed else SECTIONS))
    for name in chosen:
        if name not in SECTIONS:
            raise UserError(f"--only {name} is no section; choose some of {', '.join(SECTIONS)}")
        if changed and name not in OF_BACKBONE:
            raise UserError(f"--only {name} is measured for the profile's own backbone and size; leave out --backbone and --size")
    if repeats is not None and repeats < 2:
        raise UserError(f"--repeats {repeats} is too few; at least 2 rounds make a median")
    if changed:
        config = config.override(benchmark={"size": size or config.benchmark.size},
                                 detector={"backbone": backbone, "stride": 32} if backbone else {})
    if quick or config.benchmark.size > LARGE:
        config = config.override(training={"batch_size": LARGE_BATCH})
    suffix = f"@{config.detector.backbone}-{config.benchmark.size}" if changed else ""
    deterministic, measured = torch.are_deterministic_algorithms_enabled(), {}
    keep_freed_memory()
    accelerator = make_accelerator(config.training.precision)
    try:
        for name in chosen:
            started, machine = time.perf_counter(), _machine(accelerator.device)
            table = SECTIONS[name](Settings(config, accelerator, quick, repeats))
            print(f"\n{name}{suffix}\n{table.to_string(index=False, float_format='{:.4g}'.format)}", flush=True)
            measured[name + suffix] = {
                "rows": table.to_dict("records"), "machine": machine, "quick": quick, "profile": config.profile,
                "backbone": config.detector.backbone, "size": config.benchmark.size, "batch_size": config.training.batch_size,
                "precision": accelerator.mixed_precision, "seconds": time.perf_counter() - started}
            write_json(out, (read_json(out) if Path(out).is_file() else {}) | measured)  # kept if a later section fails
    finally:
        torch.use_deterministic_algorithms(deterministic)
    return measured


def read_bench(path="results/bench.json"):
    """Read measurements: dict section -> DataFrame, whose `attrs` hold the machine and the settings; {} if there is no file."""
    found = {}
    for name, section in (read_json(path) if Path(path).is_file() else {}).items():
        found[name] = pd.DataFrame(section.pop("rows"))
        found[name].attrs = section
    return found


def operations(config):
    """Count parameters and multiply-adds of the networks of section `inference`; see `anl.evaluation.cost.count_table`."""
    with torch.device("meta"):  # nothing is computed
        return cost.count_table(cost.inference_forms(_forms(config)), config.benchmark.size, baselines=("bare", "plain"))


def stable_diffusion_operations(size):
    """Multiply-adds of the noise prediction of Stable Diffusion 1.x for one image of `size` pixels: autoencoder's encoder and UNet."""
    with torch.device("meta"), torch.no_grad():
        encoder = AutoencoderKL(block_out_channels=(128, 256, 512, 512), down_block_types=("DownEncoderBlock2D",) * 4,
                                up_block_types=("UpDecoderBlock2D",) * 4, layers_per_block=2)
        unet = UNet2DConditionModel(cross_attention_dim=768)  # all other sizes are diffusers' defaults
        with FlopCounterMode(display=False) as counter:
            latent = encoder.encode(torch.zeros(1, 3, size, size)).latent_dist.mode()
            unet(latent, torch.zeros(1), torch.zeros(1, 77, 768))
    return counter.get_total_flops() // 2


def plan(config, prior_operations, rate):
    """Estimate the cost of training all runs of a profile from counted operations. No time is measured.

    Parameters
    ----------
    config : anl.config.Config
    prior_operations : int
        Multiply-adds of the prior for one image. The prior is assumed to run on every image of every batch (no cache).
    rate : float
        Multiply-adds per second that one GPU sustains.

    Returns
    -------
    DataFrame
        experiment, runs, images (read in training), detector_hours and prior_hours (of one GPU). A run that several
        experiments share counts in the first of them only.
    """
    table, known, forward = [], set(), {}
    for name in config.experiments:
        row = {"experiment": name, "runs": 0, "images": 0, "detector_hours": 0.0, "prior_hours": 0.0}
        for variant in config.variants(name).values():
            if variant.identity() in known:
                continue
            known.add(variant.identity())
            noise = variant.method.target != "none"
            form = (variant.detector.backbone, variant.benchmark.size, noise and variant.method.attention)
            if form not in forward:
                with torch.device("meta"):  # large networks; nothing is computed
                    forward[form] = cost.count(untrained(variant, noise).eval(), variant.benchmark.size)[1]
            images = variant.training.steps * variant.training.batch_size * len(variant.seeds)
            row["runs"] += len(variant.seeds)
            row["images"] += images
            row["detector_hours"] += BACKWARD * images * forward[form] / rate / 3600
            row["prior_hours"] += images * prior_operations / rate / 3600 if variant.priors else 0
        table.append(row)
    return pd.DataFrame(table)


@dataclass(frozen=True)
class Settings:
    """Inputs of a section."""

    config: Config
    accelerator: object
    quick: bool = False
    repeats: int | None = None

    @property
    def device(self):
        return self.accelerator.device

    def few(self, usual, quick):
        """`usual`, or in a quick run `quick`."""
        return quick if self.quick else usual

    def timing(self, rounds, *bases):
        """Arguments of `cost.time_table` and `cost.inference_table`."""
        return {"baselines": bases, "device": self.device, "repeats": self.repeats or self.few(rounds, 2), "warmup": self.few(2, 1)}


# ---- the method --------------------------------------------------------------------------------------------------------
def untrained(config, noise=True, attention=None):
    """The untrained detector of a configuration, for noise targets of a prior that works on pixels."""
    method = config.method
    return Detector(**config.detector.model_dump(exclude={"pretrained", "frozen"}), size=config.benchmark.size, noise=noise,
                    attention=(attention or method.attention) if noise else "none", detach=noise and method.detach,
                    front_end=method.front_end if noise or method.front_end != "noise" else "image")


def _forms(config):
    """The bare backbone, the plain detector, and the method with every attention of the experiments main and attention."""
    variants = [variant for name in ("main", "attention") if name in config.experiments for variant in config.variants(name).values()]
    attentions = dict.fromkeys(variant.method.attention for variant in variants if variant.method.target != "none")
    return {"bare": cost.BareBackbone(config.detector.backbone, config.detector.stride, config.benchmark.size),
            "plain": untrained(config, noise=False), **{name: untrained(config, attention=name) for name in attentions}}


def _inference(settings):
    """A forward pass of each network in its inference form, relative to the bare backbone and to the plain detector."""
    forms = cost.inference_forms(_forms(settings.config))
    return cost.inference_table(forms, settings.config.benchmark.size, batch_sizes=settings.few((1, 64), (1,)),
                                **settings.timing(20, "bare", "plain"))


def _training(settings):
    """One training step on a batch in device memory: forward pass, losses, backward pass, AdamW."""
    calls = {name: _stepper(model, settings) for name, model in _forms(settings.config).items()}
    return cost.time_table(calls, **settings.timing(15, "bare", "plain"), images=settings.config.training.batch_size)


def _stepper(model, settings):
    """A function that does one training step of a detector."""
    batch, size, device = settings.config.training.batch_size, settings.config.benchmark.size, settings.device
    generator, method = torch.Generator().manual_seed(0), settings.config.method
    model = model.train().to(device, memory_format=torch.channels_last)
    x = (torch.rand(batch, 3, size, size, generator=generator) * 2 - 1).to(device, memory_format=torch.channels_last)
    target, label = torch.randn(x.shape, generator=generator).half().to(device), (torch.arange(batch, device=device) % 2).float()
    optimiser = torch.optim.AdamW(model.parameters(), fused=True)

    def step():
        optimiser.zero_grad(set_to_none=True)
        with settings.accelerator.autocast():
            output = model(x)
            losses = anl_loss(output, label, None if output.noise is None else target, loss_weight=method.loss_weight,
                              attention_weight=method.attention_weight)
        losses["loss"].backward()
        optimiser.step()

    return step


def _throughput(settings):
    """`train_detector`, which includes loading and augmentation, and its step alone on a batch in device memory (`step`)."""
    config, steps = settings.config, settings.few(24, 2)
    step = _stepper(untrained(config), settings)
    calls = {"plain": lambda: _train(config, steps, settings.accelerator, noise=False),
             "anl": lambda: _train(config, steps, settings.accelerator), "step": lambda: [step() for _ in range(steps)]}
    return cost.time_table(calls, **settings.timing(6, "plain", "step"), images=steps * config.training.batch_size)


def _train(config, steps, accelerator, noise=True, seed=0):
    """Train the configuration's detector for some steps on synthetic pairs."""
    data = _pairs(config.training.batch_size, config.benchmark.size, noise)
    training = config.training.model_copy(update={"steps": steps, "warmup_steps": 1, "pairs": 0})
    with contextlib.redirect_stderr(io.StringIO()):  # the progress bar
        train_detector(untrained(config, noise), data, training, config.method, seed=seed, accelerator=accelerator)


@functools.cache
def _pairs(count, size, noise):
    target = torch.randn(2 * count, 3, size, size, generator=torch.Generator().manual_seed(0)).half() if noise else None
    return TrainingData(_pictures(2 * count, size), np.repeat(np.float32([0, 1]), count), list(map(str, range(2 * count))),
                        np.arange(count), np.arange(count, 2 * count)[:, None], target)


def _pictures(count, size):
    """Smooth random images with grain, uint8 (count, size, size, 3). Their compressed size is similar to that of photographs."""
    rng, found = np.random.default_rng(0), np.empty((count, size, size, 3), np.uint8)
    for picture in found:
        coarse = Image.fromarray(rng.integers(40, 216, (8, 8, 3), np.uint8)).resize((size, size), Image.Resampling.BICUBIC)
        picture[:] = np.clip(np.asarray(coarse) + rng.normal(0, 6, picture.shape), 0, 255)
    return found


# ---- frozen models -----------------------------------------------------------------------------------------------------
def _prior(config, device):
    """The prior; untrained if the profile trains it."""
    section = config.prior
    if section.source:
        return NoisePrior.load(section.source, device, section.precision, section.revision)
    return NoisePrior(build_prior(section.channels, section.layers_per_block), noise_scheduler(), device, section.precision)


def _targets(settings):
    """Computing noise targets of each kind, relative to calling the prior in a loop (`bare`) and to the method's target."""
    config, count, batch = settings.config, settings.few(128, 4), settings.config.run.batch_size
    prior, x = _prior(config, settings.device), images.to_tensor(_pictures(count, config.benchmark.size), settings.device)
    names = [str(row) for row in range(count)]

    def computed(kind):
        target = make_target(kind, prior, config.method.step, config.method, seed=0)
        return lambda: compute_targets(target, x.__getitem__, names, seed=0, batch_size=batch)

    calls = {"bare": lambda: [prior.noise(part, config.method.step) for part in x.split(batch)],
             **{kind: computed(kind) for kind in ("prior", *settings.few(TARGETS, TARGETS[:2]))}}
    return cost.time_table(calls, **settings.timing(4, "bare", "prior"), images=count)


def _peers(settings):
    """Published methods at inference, with the frozen models that they call, relative to the bare backbone and the method."""
    config, size, device = settings.config, settings.config.benchmark.size, settings.device
    forms, detector = _forms(config), config.detector.model_dump() | {"pretrained": False}
    models = cost.inference_forms({"bare": forms["bare"], "plain": forms["plain"], "anl": untrained(config)})
    prior, frozen_parameters = _prior(config, device), {}
    for name in settings.few(PEERS, ("npr", "dnf")):
        needs = baselines.get(name).needs
        encoder = "untrained:" + config.baselines.encoder.partition(":")[2]
        frozen = Encoder(encoder, device) if needs == "encoder" else prior if needs == "prior" else None
        models[name] = baselines.build(name, detector, size, config.baselines.model_dump(), frozen).eval()
        networks = [frozen.model] if needs == "encoder" else [prior.unet] if frozen else []
        frozen_parameters[name] = sum(parameter.numel() for network in networks for parameter in network.parameters())
    table = cost.inference_table(models, size, batch_sizes=settings.few((1, 16), (1,)), **settings.timing(4, "bare", "anl"))
    table["frozen_parameters"] = table["variant"].map(frozen_parameters).fillna(0).astype(int)
    return table.assign(prior_calls=table["variant"].map({name: _calls(model, prior.unet, size, device) for name, model in models.items()}))


@torch.no_grad()
def _calls(model, unet, size, device):
    """Number of calls of the prior by a model, for one image."""
    calls = []
    hook = unet.register_forward_hook(lambda *_: calls.append(1))
    model(torch.zeros(1, 3, size, size, device=device))
    hook.remove()
    return len(calls)


# ---- the pipeline ------------------------------------------------------------------------------------------------------
def _scoring(settings):
    """Scoring image files, relative to the slower one of decoding the files and running the network on tensors."""
    size, batch = settings.config.benchmark.size, settings.config.run.batch_size
    network = untrained(settings.config).for_inference().to(settings.device, memory_format=torch.channels_last)
    pictures = _pictures(settings.few(512 if size <= LARGE else 64, 8), size)
    with tempfile.TemporaryDirectory() as folder:
        rows = pd.DataFrame({"path": [f"{index}.png" for index in range(len(pictures))]})
        for name, pixels in zip(rows["path"], pictures, strict=True):
            Image.fromarray(pixels).save(Path(folder, name))
        rows["sha256"] = [sha256_of(Path(folder, name)) for name in rows["path"]]
        ready = [x.to(settings.device, memory_format=torch.channels_last) for x in images.to_tensor(pictures).split(batch)]

        def forward():
            with scoring.full_precision(network, settings.device):
                return [network(x).logit.cpu() for x in ready]

        calls = {"decode": lambda: images.load_pixels(rows, folder), "forward": forward,
                 "score": lambda: scoring.score(network, images.load_pixels(rows, folder), settings.device, batch)}
        seconds = cost.side_by_side(calls, settings.timing(8)["repeats"], settings.device, warmup=1)
    return cost.ratios(seconds | {"slower": np.maximum(seconds["decode"], seconds["forward"])}, ["slower"], len(rows))


def _jobs(settings):
    """Training two runs with one job and with two jobs of one thread each, including the start of Python."""
    steps = settings.few(120, 2)
    config = settings.config.override(training={"steps": steps, "warmup_steps": 1}, experiments={"bench": {"variants": {"anl": {}}}})

    def seconds(jobs):
        started = time.perf_counter()
        with tempfile.TemporaryDirectory() as root:
            train_experiment(config, "bench", train_run=_train_only, jobs=jobs, root=root, seeds=[0, 1])
        return time.perf_counter() - started

    calls = {"one": lambda: seconds(1), "two": lambda: seconds(2)}
    return _in_turns(calls, settings, 2 * steps * config.training.batch_size)


def _train_only(config, seed, folder):
    """One training of `_jobs`; its weights are not saved."""
    _train(config, config.training.steps, make_accelerator(config.training.precision), seed=seed)


def _processes(settings):
    """`train_detector` in one process with one thread, in two processes that share it (gloo), and in one with two threads."""
    steps = settings.few(40, 2)

    def seconds(count, threads):
        with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(count, multiprocessing.get_context("spawn")) as pool:
            shares = [pool.submit(_share, settings.config, steps, rank, count, threads, folder) for rank in range(count)]
            return max(share.result() for share in shares)

    calls = {"one": lambda: seconds(1, 1), "two": lambda: seconds(2, 1)}
    calls |= settings.few({"one of two threads": lambda: seconds(1, 2)}, {})
    return _in_turns(calls, settings, steps * settings.config.training.batch_size)


def _share(config, steps, rank, count, threads, folder):
    """Body of one of `count` CPU processes that share a training. Returns its seconds, without those of its start."""
    torch.set_num_threads(threads)
    if count > 1:  # the environment that `accelerate launch` sets
        os.environ.update({"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count),
                           "OMP_NUM_THREADS": str(threads), "ACCELERATE_USE_CPU": "true"})
        torch.distributed.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=count)
    accelerator = make_accelerator(config.training.precision)
    _train(config, 2, accelerator)
    accelerator.wait_for_everyone()
    started = time.perf_counter()
    _train(config, steps, accelerator)
    seconds = time.perf_counter() - started
    if count > 1:
        torch.distributed.destroy_process_group()
    return seconds


def _in_turns(calls, settings, count):
    """The table of `cost.ratios` for calls that return their seconds; the calls take turns."""
    rounds = [{name: call() for name, call in calls.items()} for _ in range(settings.repeats or settings.few(3, 1))]
    return cost.ratios({name: np.array([seconds[name] for seconds in rounds]) for name in calls}, ["one"], count)


def _manifest(settings):
    """Reading and filtering a manifest of a million rows: seconds, and peak of the additional memory."""
    count = settings.few(MANIFEST_ROWS, 2000)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "manifest.parquet"
        with manifest.writer(path, folder) as append:
            for start in range(0, count, manifest.ROW_GROUP):
                append(_manifest_rows(start, min(manifest.ROW_GROUP, count - start)))
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:  # in a new process, to measure its memory
            return pd.DataFrame(pool.submit(_use_manifest, path, settings.timing(3)["repeats"]).result())


def _manifest_rows(start, count):
    """Synthetic rows, half of them real."""
    rng = np.random.default_rng(start)
    label, side, digests = rng.integers(0, 2, count), rng.choice([128, 256, 512], count), rng.bytes(32 * count).hex()
    generator = GENERATORS[np.where(label == 1, rng.integers(1, len(GENERATORS), count), 0)]
    columns = {"path": [f"{name}/{start + row:07d}.png" for row, name in enumerate(generator)],
               "sha256": [digests[64 * row:64 * row + 64] for row in range(count)], "label": label, "generator": generator,
               "split": np.where(rng.random(count) < 0.3, "test", "train"), "width": side, "height": side, "format": ["PNG"] * count,
               "bytes": rng.integers(1000, 900_000, count), "phash": rng.integers(0, 2**64, count, np.uint64)}
    return pa.table({name: columns.get(name, pa.nulls(count)) for name in manifest.SCHEMA.names}).cast(manifest.SCHEMA)


def _use_manifest(path, repeats):
    """Rows of the section `manifest`, measured in this process."""
    count = len(manifest.read(path, ["label"]))
    calls = {"read all": lambda: manifest.read(path), "filter": lambda: manifest.read(path, split="test", generator=["adm", "real"])}
    found = []
    for name, call in calls.items():
        seconds, added = [], []
        for _ in range(repeats):
            before, started = _memory_mb(reset=True), time.perf_counter()
            table = call()
            seconds.append(time.perf_counter() - started)
            added.append(_memory_mb() - before)
        low, middle, high = np.quantile(seconds, [0.25, 0.5, 0.75]).tolist()
        found.append({"variant": name, "manifest_rows": count, "rows": len(table), "seconds": middle, "seconds_low": low, "seconds_high": high,
                      "added_memory_mb": max(added), "file_mb": path.stat().st_size / 2**20})
    return found


def _memory_mb(reset=False):
    """Peak resident memory since the last reset, MiB; NaN if the system does not report it (Linux does)."""
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return float("nan")


# ---- the machine -------------------------------------------------------------------------------------------------------
def _machine(device):
    """Properties of the machine that times depend on. `load` is the load average of the last minute, per core."""
    return {"processor": processor_name(), "cores": cores(), "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
            "threads": torch.get_num_threads(), "torch": torch.__version__, "python": platform.python_version(),
            "load": os.getloadavg()[0] / cores() if hasattr(os, "getloadavg") else None}


SECTIONS = {"inference": _inference, "training": _training, "throughput": _throughput, "targets": _targets, "peers": _peers,
            "scoring": _scoring, "jobs": _jobs, "processes": _processes, "manifest": _manifest}
OF_BACKBONE = ("inference", "training", "throughput", "scoring")
