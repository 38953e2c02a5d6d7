"""The typed view of a profile. The command line reads params.yaml here, once; no other module reads it."""

import dataclasses
import types
import typing
from dataclasses import dataclass
from pathlib import Path

import yaml

from anl.errors import UserError
from anl.files import write_text

TARGETS = ("prior", "highpass", "random", "shuffled", "none")
ATTENTIONS = ("none", "energy", "gate", "affinity")
VIEWS = ("raw", "matched", "jpeg96")
CONTROLS = ("resize75", "blur", "jpeg96", "denoise")
PRECISIONS = ("fp32", "bf16")
DIFFUSION_STEPS = 1000


@dataclass(frozen=True)
class Split:
    train: float
    val: float
    test: float


@dataclass(frozen=True)
class Counts:
    train: int
    val: int
    test: int


@dataclass(frozen=True)
class Data:
    card: str
    folder: str
    least_factor: float
    source_side: int
    split: Split


@dataclass(frozen=True)
class Model:
    channels: list[int]
    crop: int
    batch_size: int
    steps: int
    learning_rate: float
    ema: float
    layers_per_block: int = 1
    max_strength: float = 1.0
    latent_channels: int | None = None
    codes: int | None = None
    quantise_from: float | None = None
    adversarial_from: float | None = None


@dataclass(frozen=True)
class Prior:
    channels: list[int]
    layers_per_block: int
    crop: int
    batch_size: int
    steps: int
    learning_rate: float
    ema: float


@dataclass(frozen=True)
class Family:
    model: str
    sampler: str | None = None
    strength: float | None = None
    inference_steps: int | None = None


@dataclass(frozen=True)
class Benchmark:
    folder: str
    size: int
    least_std: float
    patches: Counts
    seen: str


@dataclass(frozen=True)
class Detector:
    backbone: str
    stride: int
    stem_width: int
    patch: int


@dataclass(frozen=True)
class Method:
    target: str
    step: int
    attention: str
    loss_weight: float


@dataclass(frozen=True)
class Training:
    steps: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    precision: str
    augment_probability: float
    jpeg_quality: list[int]
    resize_scale: list[float]
    blur_radius: list[float]


@dataclass(frozen=True)
class Runs:
    seeds: list[int]
    steps: list[int]
    attentions: list[str]
    targets: list[str]


@dataclass(frozen=True)
class Evaluation:
    views: list[str]
    headline: str
    controls: list[str]
    target_fpr: float
    bootstrap: int


@dataclass(frozen=True)
class Params:
    """A whole profile. `load` and `resolve` return one that has passed `check`."""

    profile: str
    seed: int
    data: Data
    models: dict[str, Model]
    prior: Prior
    families: dict[str, Family]
    benchmark: Benchmark
    use: Counts
    detector: Detector
    method: Method
    training: Training
    runs: Runs
    evaluation: Evaluation


def load(path="params.yaml"):
    """Read and validate a resolved profile. Raises UserError naming the file, the key and the mend."""
    return from_dict(_read_yaml(path), str(path))


def resolve(name, folder="profiles"):
    """The plain dict of profile `name`, its bases merged in. Raises UserError on an unknown profile."""
    path = Path(folder) / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(item.stem for item in Path(folder).glob("*.yaml")))
        raise UserError(f"there is no profile '{name}'; choose one of {known}")
    value = _read_yaml(path)
    base = value.pop("base", None)
    value = _merge(resolve(base, folder), value, str(path)) if base else value
    from_dict(value, str(path))
    return value


def activate(name, folder="profiles", path="params.yaml"):
    """Write profile `name` to params.yaml. The file is left alone if it says so already; returns whether it changed."""
    value = resolve(name, folder)
    text = (f"# Written by `anl profile {name}` from {folder}/{name}.yaml; edit to try other values, or edit the "
            "profile and run it again.\n" + yaml.safe_dump(value, sort_keys=False, width=120))
    if Path(path).is_file() and Path(path).read_text(encoding="utf-8") == text:
        return False
    write_text(path, text)
    return True


def from_dict(value, origin):
    """Build and check Params from a plain dict; `origin` names the file in error messages."""
    params = _build(Params, value, origin, "")
    check(params, origin)
    return params


def _read_yaml(path):
    try:
        value = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing; write it with `anl profile small`") from None
    except yaml.YAMLError as problem:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(problem).split())}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} holds no mapping; write it with `anl profile small`")
    return value


def _merge(base, change, origin, place=""):
    merged = dict(base)
    for key, value in change.items():
        if key not in base:
            raise UserError(f"{origin}: unknown key '{place}{key}'; known here: {', '.join(map(str, base))}")
        both = isinstance(value, dict) and isinstance(base[key], dict)
        merged[key] = _merge(base[key], value, origin, f"{place}{key}.") if both else value
    return merged


def _build(kind, value, origin, place):
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, dict):
            raise UserError(f"{origin}: '{place.rstrip('.')}' must be a mapping, not {value!r}")
        hints = typing.get_type_hints(kind)
        unknown = [key for key in value if key not in hints]
        if unknown:
            raise UserError(f"{origin}: unknown key '{place}{unknown[0]}'; known here: {', '.join(hints)}")
        needed = [f.name for f in dataclasses.fields(kind) if f.default is dataclasses.MISSING]
        missing = [key for key in needed if key not in value]
        if missing:
            raise UserError(f"{origin}: the key '{place}{missing[0]}' is missing")
        return kind(**{key: _build(hints[key], item, origin, f"{place}{key}.") for key, item in value.items()})
    here = place.rstrip(".")
    if typing.get_origin(kind) is dict:
        if not isinstance(value, dict) or not value:
            raise UserError(f"{origin}: '{here}' must be a mapping with at least one entry")
        inner = typing.get_args(kind)[1]
        return {key: _build(inner, item, origin, f"{place}{key}.") for key, item in value.items()}
    if typing.get_origin(kind) is list:
        if not isinstance(value, list) or not value:
            raise UserError(f"{origin}: '{here}' must be a list with at least one entry, not {value!r}")
        inner = typing.get_args(kind)[0]
        return [_build(inner, item, origin, f"{place}{index}.") for index, item in enumerate(value)]
    if isinstance(kind, types.UnionType):
        kind = next(item for item in typing.get_args(kind) if item is not type(None))
        if value is None:
            return None
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not kind:
        words = {int: "a whole number", float: "a number", str: "a word"}
        raise UserError(f"{origin}: '{here}' must be {words[kind]}, not {value!r}")
    return value


def check(params, origin):
    """Raise UserError on a value that cannot work, naming its key."""
    def need(condition, key, mend):
        if not condition:
            raise UserError(f"{origin}: '{key}' cannot work: {mend}")

    split = params.data.split
    need(abs(split.train + split.val + split.test - 1) < 1e-6 and min(split.train, split.val, split.test) > 0,
         "data.split", "its three shares must be positive and sum to 1")
    need(params.data.least_factor >= 2, "data.least_factor", "below 2 the photographs' old compression survives")
    need(0 <= params.seed < 2**32, "seed", "it must be from 0 to 2^32 - 1")
    size, patch = params.benchmark.size, params.detector.patch
    need(size >= 16 and size % 16 == 0, "benchmark.size", "a crop must be a multiple of 16 pixels and at least 16")
    need(2 * size <= params.data.source_side, "benchmark.size",
         f"twice the crop must fit into data.source_side ({params.data.source_side})")
    need(patch >= 2 and size % patch == 0, "detector.patch", "it must be at least 2 and divide benchmark.size")
    need(params.benchmark.seen in params.families, "benchmark.seen", f"choose one of {', '.join(params.families)}")
    for name, family in params.families.items():
        need(family.model in params.models, f"families.{name}.model", f"choose one of {', '.join(params.models)}")
        diffusion = family.model in ("pixel", "flow", "latent")
        if diffusion:
            limit = params.models[family.model].max_strength
            need(family.strength is not None and 0 < family.strength <= limit, f"families.{name}.strength",
                 f"it must be above 0 and at most the model's max_strength, {limit}")
            need(family.inference_steps is not None and family.inference_steps >= 1,
                 f"families.{name}.inference_steps", "it must be at least 1")
        if family.model in ("pixel", "latent"):
            need(family.sampler in ("ddim", "ddpm"), f"families.{name}.sampler", "choose ddim or ddpm")
    need(params.method.target in TARGETS, "method.target", f"choose one of {', '.join(TARGETS)}")
    for key, step in [("method.step", params.method.step)] + [("runs.steps", step) for step in params.runs.steps]:
        need(1 <= step <= DIFFUSION_STEPS, key, f"{step} is not a step from 1 to {DIFFUSION_STEPS}")
    for key, attention in [("method.attention", params.method.attention)] + [
            ("runs.attentions", attention) for attention in params.runs.attentions]:
        need(attention in ATTENTIONS, key, f"'{attention}' is not one of {', '.join(ATTENTIONS)}")
    need(params.method.loss_weight >= 0, "method.loss_weight", "it must not be negative")
    need(all(0 <= seed < 2**32 for seed in params.runs.seeds), "runs.seeds", "seeds must be from 0 to 2^32 - 1")
    for key in ("seeds", "steps", "attentions", "targets"):
        values = getattr(params.runs, key)
        need(len(set(values)) == len(values), f"runs.{key}", "an entry stands twice")
    need(params.method.step not in params.runs.steps, "runs.steps", "method.step is run anyway; leave it out")
    need(params.method.attention not in params.runs.attentions, "runs.attentions",
         "method.attention is run anyway; leave it out")
    for target in params.runs.targets:
        need(target in TARGETS and target != "none", "runs.targets", f"'{target}' is not one of {', '.join(TARGETS[:-1])}")
    need(params.method.target not in params.runs.targets, "runs.targets", "method.target is run anyway; leave it out")
    need(params.training.precision in PRECISIONS, "training.precision", f"choose one of {', '.join(PRECISIONS)}")
    need(0 <= params.training.augment_probability <= 1, "training.augment_probability", "it must be from 0 to 1")
    for key, least, most in (("jpeg_quality", 1, 100), ("resize_scale", 0.1, 1), ("blur_radius", 0, 10)):
        bounds = getattr(params.training, key)
        need(len(bounds) == 2 and least <= bounds[0] <= bounds[1] <= most, f"training.{key}",
             f"two numbers from {least} to {most}, the lower first")
    for key in ("steps", "batch_size"):
        need(getattr(params.training, key) >= 2, f"training.{key}", "it must be at least 2")
    need(params.training.learning_rate > 0, "training.learning_rate", "it must be positive")
    need("raw" in params.evaluation.views and set(params.evaluation.views) <= set(VIEWS), "evaluation.views",
         f"raw and any of {', '.join(VIEWS)}")
    need(params.evaluation.headline in params.evaluation.views and params.evaluation.headline != "raw",
         "evaluation.headline", "choose matched or jpeg96, and list it in evaluation.views")
    need(set(params.evaluation.controls) <= set(CONTROLS), "evaluation.controls", f"any of {', '.join(CONTROLS)}")
    need(0 < params.evaluation.target_fpr < 0.5, "evaluation.target_fpr", "it must be between 0 and 0.5")
    need(params.evaluation.bootstrap >= 20, "evaluation.bootstrap", "at least 20 replicates make an interval")
    for key in ("train", "val", "test"):
        need(getattr(params.use, key) >= 2, f"use.{key}", "it must be at least 2")
        need(getattr(params.benchmark.patches, key) >= 1, f"benchmark.patches.{key}", "it must be at least 1")
