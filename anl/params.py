"""The typed view of a profile. The command line reads params.yaml here, once; no other module reads it."""

from dataclasses import dataclass, field
from pathlib import Path

import yaml

from anl.errors import UserError
from anl.files import write_text
from anl.typed import build

TARGETS = ("prior", "multistep", "ensemble", "noised", "error", "highpass", "random", "shuffled", "none")
ATTENTIONS = ("none", "energy", "gate", "affinity")
VIEWS = ("raw", "matched", "jpeg96")
CONTROLS = ("resize75", "blur", "jpeg96", "denoise")
# kind: least and largest strength; quality, quality, pixels, times the size, share of a side, grey levels
PERTURBATIONS = {"jpeg": (1, 100), "webp": (1, 100), "blur": (0.1, 10), "resize": (0.1, 4), "crop": (0.6, 1),
                 "noise": (0.1, 64)}
PRECISIONS = ("fp32", "bf16", "fp16")
GRADIENTS = ("joint", "detached")
NOISE_ON = ("both", "real", "generated")
LOSSLESS = "lossless"
FORMATS = (LOSSLESS, "leaky")
EXPERIMENTS = ("loss_weight", "attention_loss", "sample_size", "leaky", "anl_plus", "peers", "leave_one_out")
BASELINES = ("blur_jpeg", "npr", "srm", "spectrum", "dnf", "lare", "dire", "distildire", "drct", "aeroblade")
DIFFUSION_STEPS = 1000
PUBLISHED = "published"  # the model of the family whose images a public data set holds


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
    """seed_offset: added to the profile's seed. source: a diffusers folder, preset or hub id to take instead of training
    one, revision: its commit at the hub. precision: what the prior computes in."""

    channels: list[int]
    layers_per_block: int
    crop: int
    batch_size: int
    steps: int
    learning_rate: float
    ema: float
    seed_offset: int = 1
    source: str | None = None
    revision: str | None = None
    precision: str = "bf16"


@dataclass(frozen=True)
class Family:
    model: str
    sampler: str | None = None
    strength: float | None = None
    inference_steps: int | None = None


@dataclass(frozen=True)
class MoreModel(Model):
    """A model of the further families. Not fields of Model: a run's identity is a hash of that."""

    blocks: int | None = None
    scale: int | None = None
    texture_weight: float | None = None


@dataclass(frozen=True)
class MoreFamily(Family):
    """region: smallest and largest share of the patch that is regenerated, empty for all of it. paired: false where a
    sample has nothing to do with the real patch whose id it carries."""

    region: list[float] = field(default_factory=list)
    paired: bool = True


@dataclass(frozen=True)
class HeldOut:
    """Patches per photograph, at most, that a further family regenerates."""

    val: int = 0
    test: int = 0


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
    attention_dim: int


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
    accumulate: int = 1
    ema: float = 0.0


@dataclass(frozen=True)
class Baselines:
    """Settings of the methods of the field (anl.baselines), each named there."""

    noise_step: int
    error_step: int
    error_draws: int
    inversion_steps: int
    strong_probability: float
    strong_blur: float
    strong_jpeg: int
    distillation_weight: float
    reconstruction_strength: float
    reconstruction_steps: int
    contrastive_weight: float
    margin: float


@dataclass(frozen=True)
class Runs:
    """What each experiment varies, beside the method's own value. Those with a default are left out where it is empty."""

    seeds: list[int]
    steps: list[int]
    attentions: list[str]
    targets: list[str]
    priors: list[str] = field(default_factory=list)
    loss_weights: list[float] = field(default_factory=list)
    quiet_attentions: list[str] = field(default_factory=list)
    noise_on: list[str] = field(default_factory=list)
    gradients: list[str] = field(default_factory=list)
    pairs: list[int] = field(default_factory=list)
    formats: list[str] = field(default_factory=list)
    leaky_steps: list[int] = field(default_factory=list)
    plus_targets: list[str] = field(default_factory=list)
    consistent_targets: list[str] = field(default_factory=list)
    baselines: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    experiments: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Evaluation:
    """perturbations: kind -> strengths, of PERTURBATIONS; no part of a run's identity, they are scored afterwards."""

    views: list[str]
    headline: str
    controls: list[str]
    target_fpr: float
    bootstrap: int
    perturbations: dict[str, list[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Launch:
    """processes: how many share a training, targets or scores on one machine. Not part of a run's identity."""

    processes: int = 1


@dataclass(frozen=True)
class Cache:
    """targets: gigabytes that a file of targets may take; where it would take more, a training asks the prior for each
    batch. Not part of a run's identity: the targets are the same."""

    targets: float = 200.0


@dataclass(frozen=True)
class Published:
    """A public data set in the place of the embedded benchmark (anl.published).

    manifest: of `anl index`. models: the folder of prior and generators trained on its reals. val: training images of each
    class that validate. samples: test images of each generator of `models`. pipeline: its own dvc.yaml.
    reference_accuracy: a published figure to show beside ours.
    """

    pipeline: str
    manifest: str
    models: str
    val: int
    samples: int
    reference_accuracy: float


@dataclass(frozen=True, kw_only=True)
class Params:
    """A whole profile. `load` and `resolve` return one that has passed `check`. published: None for the embedded
    benchmark; not part of a run's identity."""

    profile: str
    seed: int
    data: Data
    models: dict[str, Model]
    prior: Prior
    other_priors: dict[str, Prior] = field(default_factory=dict)
    families: dict[str, Family]
    benchmark: Benchmark
    use: Counts
    detector: Detector
    method: Method
    training: Training
    baselines: Baselines
    runs: Runs
    evaluation: Evaluation
    more_models: dict[str, MoreModel] = field(default_factory=dict)
    more_families: dict[str, MoreFamily] = field(default_factory=dict)
    more_patches: HeldOut = field(default_factory=HeldOut)
    launch: Launch = field(default_factory=Launch)
    cache: Cache = field(default_factory=Cache)
    published: Published | None = None

    @property
    def models_folder(self):
        """Where the frozen models of this profile lie."""
        return self.published.models if self.published else "models"


def load(path="params.yaml"):
    """Read and validate a profile; one with a base finds it in its own folder. Raises UserError naming file, key, mend."""
    value = _read_yaml(path)
    return from_dict(resolve(Path(path).stem, Path(path).parent) if "base" in value else value, str(path))


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
    source = Path(folder) / f"{name}.yaml"
    if source.is_file() and (pipeline := _read_yaml(source).get("pipeline")):
        raise UserError(f"profile {name} is of another kind and has a pipeline of its own, beside the active profile: run "
                        f"`dvc repro {pipeline}`, or one stage of it with `anl {name} STAGE`")
    value = resolve(name, folder)
    if value.get("published"):
        raise UserError(f"profile {name} has a pipeline of its own, beside the active profile: run `dvc repro "
                        f"{value['published']['pipeline']}`, or one command with `anl --params {folder}/{name}.yaml COMMAND`")
    text = (f"# Written by `anl profile {name}` from {folder}/{name}.yaml; edit to try other values, or edit the "
            "profile and run it again.\n" + yaml.safe_dump(value, sort_keys=False, width=120))
    if Path(path).is_file() and Path(path).read_text(encoding="utf-8") == text:
        return False
    write_text(path, text)
    return True


def from_dict(value, origin):
    """Build and check Params from a plain dict; `origin` names the file in error messages."""
    from anl.params_check import check  # it needs the names above

    params = build(Params, value, origin)
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
