"""The typed view of profiles/paper.yaml, checked."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from anl.data import registry
from anl.data.fetch import RECORD
from anl.errors import UserError
from anl.files import read_json
from anl.paper.store import STORAGES
from anl.params import ATTENTIONS, BRANCHES, PRECISIONS, VIEWS
from anl.params_parts import Learning
from anl.typed import build

METHODS = ("plain", "anl")
LIMITED_STEPS = 2  # of training, where only a handful of images is used


@dataclass(frozen=True)
class Folders:
    data: str
    manifests: str
    runs: str
    results: str


@dataclass(frozen=True)
class Set:
    """assumed: number of test images before the set is indexed. layout: instead of the guess."""

    assumed: int
    layout: str | None = None


@dataclass(frozen=True)
class Protocol:
    """train: id of a set. source: photographs (manifest's source_real) that training keeps to, None for all."""

    train: str
    generators: list[str]
    source: str | None = None


@dataclass(frozen=True)
class Validation:
    share: float
    most: int


@dataclass(frozen=True)
class Prior:
    """scale_images: training crops over which the noise's standard deviation is measured."""

    source: str
    step: int
    precision: str
    batch_size: int
    scale_images: int
    revision: str | None = None


@dataclass(frozen=True)
class Detector:
    """branch: `stem`, or `shallow`: the backbone, with its pretrained weights as they are, reads the image itself."""

    stem_width: int
    patch: int
    attention: str
    attention_dim: int
    loss_weight: float
    branch: str = "stem"


@dataclass(frozen=True)
class Backbone:
    model: str
    stride: int
    pretrained: bool


@dataclass(frozen=True)
class Training(Learning):
    """workers: processes that decode, of each training process."""

    workers: int


@dataclass(frozen=True)
class Launch:
    """processes: of this machine that share targets, trainings and scores; None for one a GPU, or one without a GPU. Not part
    of a run's identity."""

    processes: int | None = None


@dataclass(frozen=True)
class Evaluation:
    views: list[str]
    headline: str
    target_fpr: float
    batch_size: int
    bootstrap: int


@dataclass(frozen=True, kw_only=True)
class Settings:
    profile: str
    pipeline: str
    seed: int
    limit: int | None
    folders: Folders
    sets: dict[str, Set]
    protocols: dict[str, Protocol]
    tested: list[str]
    validation: Validation
    prior: Prior
    crop: int
    detector: Detector
    backbones: dict[str, Backbone]
    methods: list[str]
    seeds: list[int]
    training: Training
    evaluation: Evaluation
    launch: Launch = field(default_factory=Launch)
    storage: str = "files"

    def manifest(self, name):
        """Where the manifest of a set lies."""
        return Path(self.folders.manifests) / f"{name}.parquet"

    def root(self, name):
        """Where the images of a set lie: in <data>/<id>, or where `anl fetch ID --from FOLDER` was told that they are."""
        folder = Path(self.folders.data) / name
        return Path((read_json(folder / RECORD)["folder"] if (folder / RECORD).is_file() else None) or folder)

    def run(self, protocol, backbone, method, seed):
        """The folder of a run."""
        return Path(self.folders.runs) / protocol / f"{backbone}-{method}-s{seed}"

    def runs(self):
        """(protocol, backbone, method, seed) of every run, in order."""
        return [(protocol, backbone, method, seed) for protocol in self.protocols for backbone in self.backbones
                for method in self.methods for seed in self.seeds]

    def limited(self, limit):
        """The same experiment on `limit` images of each class, generator and split: two steps, one seed, folders of its own."""
        if limit < 2:
            raise UserError(f"--limit {limit}: at least 2 images of each class are needed, one to train and one to validate")
        folders = dataclasses.replace(self.folders, **{name: f"{getattr(self.folders, name)}-limit{limit}"
                                                       for name in ("manifests", "runs", "results")})
        training = dataclasses.replace(self.training, steps=LIMITED_STEPS, batch_size=min(self.training.batch_size, 4),
                                       workers=min(self.training.workers, 2))
        evaluation = dataclasses.replace(self.evaluation, bootstrap=20)
        return dataclasses.replace(self, limit=limit, seeds=self.seeds[:1], folders=folders, training=training,
                                   evaluation=evaluation, prior=dataclasses.replace(
                                       self.prior, scale_images=min(self.prior.scale_images, 2 * limit)))


def load(path="profiles/paper.yaml", limit=None):
    """Read and check the profile. Raises UserError naming file, key and mend."""
    try:
        value = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing; restore it with `git checkout {path}`") from None
    except yaml.YAMLError as problem:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(problem).split())}") from None
    settings = build(Settings, value, str(path))
    check(settings, str(path))
    limit = settings.limit if limit is None else limit
    return settings if limit is None else settings.limited(limit)


def check(settings, origin):
    """Raise UserError on a value that cannot work, naming its key."""
    def need(condition, key, mend):
        if not condition:
            raise UserError(f"{origin}: '{key}' cannot work: {mend}")

    known = registry.load()
    for name in settings.sets:
        need(name in known, f"sets.{name}", f"choose ids of the registry: {', '.join(known)}")
    for name, protocol in settings.protocols.items():
        need(protocol.train in settings.sets, f"protocols.{name}.train", f"choose one of {', '.join(settings.sets)}")
    for name in settings.tested:
        need(name in settings.sets, "tested", f"'{name}' is not one of {', '.join(settings.sets)}")
    need(set(settings.methods) <= set(METHODS), "methods", f"any of {', '.join(METHODS)}")
    need(settings.crop >= 16 and settings.crop % 16 == 0, "crop", "a multiple of 16 pixels")
    need(settings.detector.attention in ATTENTIONS, "detector.attention", f"choose one of {', '.join(ATTENTIONS)}")
    need(settings.detector.branch in BRANCHES, "detector.branch", f"choose one of {', '.join(BRANCHES)}")
    need(settings.detector.branch == "stem" or settings.detector.attention != "none", "detector.branch",
         "without an attention, nothing of the shallow branch would reach the score")
    need(settings.prior.precision in PRECISIONS, "prior.precision", f"choose one of {', '.join(PRECISIONS)}")
    need(settings.training.precision in PRECISIONS, "training.precision", f"choose one of {', '.join(PRECISIONS)}")
    need(settings.training.batch_size >= 2 and settings.training.batch_size % 2 == 0, "training.batch_size",
         "an even number: each real image stands beside a generated one")
    need(settings.training.steps >= 1, "training.steps", "at least 1")
    need(settings.training.workers >= 0, "training.workers", "0, to decode in the training process, or more")
    need(0 < settings.validation.share < 1, "validation.share", "a share between 0 and 1")
    need(settings.storage in STORAGES, "storage", f"choose one of {', '.join(STORAGES)}")
    need(settings.launch.processes is None or settings.launch.processes >= 1, "launch.processes", "at least 1, or null for one a GPU")
    need(settings.prior.scale_images >= 2, "prior.scale_images", "at least 2")
    need("raw" in settings.evaluation.views and set(settings.evaluation.views) <= set(VIEWS), "evaluation.views",
         f"raw and any of {', '.join(VIEWS)}")
    need(settings.evaluation.headline in settings.evaluation.views, "evaluation.headline", "one of evaluation.views")
    need(settings.evaluation.bootstrap >= 20, "evaluation.bootstrap", "at least 20")
