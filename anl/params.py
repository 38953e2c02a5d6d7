"""The typed view of a profile. The command line reads params.yaml here, once; no other module reads it."""

from dataclasses import dataclass, field
from pathlib import Path

import yaml

from anl.errors import UserError
from anl.files import write_text
from anl.params_parts import (
    Baselines,
    Benchmark,
    Cache,
    Counts,
    Data,
    Detector,
    Evaluation,
    Family,
    HeldOut,
    Launch,
    Method,
    Model,
    MoreFamily,
    MoreModel,
    Prior,
    Published,
    Runs,
    Training,
)
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
BRANCHES = ("stem", "shallow")
READS = ("image", "residual", "noise")
NOISE_ON = ("both", "real", "generated")
LOSSLESS = "lossless"
FORMATS = (LOSSLESS, "leaky")
EXPERIMENTS = ("loss_weight", "attention_loss", "sample_size", "leaky", "anl_plus", "peers", "leave_one_out",
               "branch")
BASELINES = ("blur_jpeg", "npr", "srm", "spectrum", "dnf", "lare", "dire", "distildire", "drct", "aeroblade",
             "univfd")
DIFFUSION_STEPS = 1000
PUBLISHED = "published"  # the model of the family whose images a public data set holds


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
    """The plain dict of profile `name`, its bases merged in; a mapping that it sets to null leaves that of its base out. Raises
    UserError on an unknown profile."""
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


def stands_alone(name, folder="profiles"):
    """Whether a profile is of a published set: never the active one, read where it stands."""
    source = Path(folder) / f"{name}.yaml"
    return source.is_file() and "pipeline" not in _read_yaml(source) and bool(resolve(name, folder).get("published"))


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
        if value is None and isinstance(base[key], dict):  # no mapping of a profile may be null: it is left out
            del merged[key]
            continue
        both = isinstance(value, dict) and isinstance(base[key], dict)
        merged[key] = _merge(base[key], value, origin, f"{place}{key}.") if both else value
    return merged
