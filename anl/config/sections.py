"""The sections of a profile: which settings there are, and which values each may have."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from anl.io import suggestion

DIFFUSION_STEPS = 1000
NETWORK_TARGETS = ("denoiser", "blind_denoiser")  # their networks are the entries of `other_priors` with these names
STEPLESS_TARGETS = ("highpass", "random", "wavelet", "ffdnet", *NETWORK_TARGETS)
TARGETS = ("none", "prior", "multistep", "ensemble", "noised", "error", "shuffled", *STEPLESS_TARGETS)
TRAINING_ATTENTIONS = ("transfer", "erase", "spread")  # not used at inference
TOKEN_ATTENTIONS = ("affinity", "relation", "relation_self", "relation_other")
# baseline -> the settings of `baselines` that it reads; baselines that need no diffusion prior, then all
PRIORLESS_BASELINES = {
    "blur_jpeg": ("strong_probability", "strong_blur", "strong_jpeg"), "find": ("noise_deviation",), "npr": (), "srm": (), "spectrum": (),
    "univfd": ("encoder",)}
BASELINE_SETTINGS = PRIORLESS_BASELINES | {
    "dnf": ("noise_step",), "lare": ("error_step", "error_draws"), "dire": ("inversion_steps",),
    "distildire": ("noise_step", "inversion_steps", "distillation_weight"),
    "drct": ("reconstruction_strength", "reconstruction_steps", "contrastive_weight", "margin"),
    "diffusionfake": ("guide_weight",), "aeroblade": ()}

# kind of perturbation: lowest and highest strength (JPEG and WebP quality, pixels, scale, share of a side, grey levels)
PERTURBATIONS = {"jpeg": (1, 100), "webp": (1, 100), "blur": (0.1, 10), "resize": (0.1, 4), "crop": (0.6, 1),
                 "noise": (0.1, 64)}

# kind of augmentation -> the setting of `training` that holds its lowest and highest strength
AUGMENTATIONS = {"jpeg": "jpeg_quality", "webp": "webp_quality", "resize": "resize_scale", "scale": "scale_factor", "blur": "blur_radius",
                 "sharpen": "sharpen_amount", "noise": "noise_deviation"}

Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Step = Annotated[int, Field(ge=1, le=DIFFUSION_STEPS)]
Share = Annotated[float, Field(ge=0, le=1)]
PositiveShare = Annotated[float, Field(gt=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
PositiveFloat = Annotated[float, Field(gt=0)]
Weight = Annotated[float, Field(ge=0)]
Precision = Literal["fp32", "bf16", "fp16"]


class Section(BaseModel):
    """A frozen mapping of known keys. Values are not converted: `"3"` is not a number, `true` is not 1."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, value):
        unknown = [key for key in value if key not in cls.model_fields] if isinstance(value, dict) else []
        if unknown:
            raise ValueError(f"unknown key '{unknown[0]}'; {suggestion(unknown[0], cls.model_fields)}")
        return value


class Split(Section):
    train: PositiveShare
    val: PositiveShare
    test: PositiveShare

    @model_validator(mode="after")
    def _whole(self):
        need(abs(self.train + self.val + self.test - 1) < 1e-6, "", "the three shares must sum to 1")
        return self


class Counts(Section):
    train: Positive
    val: Positive
    test: Positive


class DataConfig(Section):
    """The photographs that the prior and the generators are trained on."""

    card: str
    folder: str
    least_factor: Annotated[float, Field(ge=2)]  # below 2, the photographs' earlier compression survives
    source_side: Positive
    split: Split


class FittingConfig(Section):
    """Training of a generative model. A model without `source` is trained; 0 steps leave it at its initial weights."""

    source: str | None = None                   # a diffusers folder, a preset or a hub id
    revision: str | None = None                 # the commit of a hub id
    channels: list[Positive] = []
    layers_per_block: Positive = 1
    crop: Positive = 64
    batch_size: Positive = 8
    steps: Count = 0
    learning_rate: PositiveFloat = 0.001
    weight_decay: Weight = 1e-4
    warmup_steps: Count = 50
    final_learning_rate: Share = 0.02           # share of the peak at the end of the cosine
    clip_norm: PositiveFloat = 1.0
    ema: Decay = 0.0

    @model_validator(mode="after")
    def _source_or_training(self):
        need(self.source or self.channels, "channels", "is missing; state the widths to train, or a `source` to load")
        need(self.source or not self.revision, "revision", "is the commit of a `source`; state the source too")
        return self


class PriorConfig(FittingConfig):
    """A diffusion prior or, as `objective` says, a denoiser of the same architecture for comparison."""

    precision: Precision = "bf16"               # of the prior's forward pass; part of a run's identity
    seed_offset: Count = 1
    objective: Literal["diffusion", "denoiser", "blind_denoiser"] = "diffusion"
    noise_step: Step = 100                      # denoiser: the only noise level; blind_denoiser: the highest one


class GeneratorConfig(FittingConfig):
    kind: str | None = None                     # of `anl.models.generators.MODELS`; null = the model's own name
    max_strength: PositiveShare = 1.0
    latent_channels: Positive | None = None
    codes: Positive | None = None
    quantise_from: Share | None = None
    adversarial_from: Share | None = None
    blocks: Positive | None = None
    scale: Annotated[int, Field(ge=2)] | None = None
    texture_weight: Weight | None = None


class FamilyConfig(Section):
    """How a model regenerates images. Families that share a model or a decoder are not disjoint."""

    model: str                                  # of `models`; `published`: the data set holds its images
    decoder: str | None = None                  # of `models`: the autoencoder that a latent model works in
    sampler: Literal["ddim", "ddpm", "dpm"] | None = None
    strength: PositiveShare | None = None
    inference_steps: Positive | None = None
    region: list[PositiveShare] = []            # lowest and highest share of the image that is regenerated; [] = all
    paired: bool = True                         # false: samples that correspond to no real image

    @property
    def networks(self):
        """Names of the trained models that its images pass through."""
        return frozenset(name for name in (self.model, self.decoder) if name)


class BenchmarkConfig(Section):
    """kind `embedded`: patches of photographs and their regenerations; `manifest`: images as they were published."""

    kind: Literal["embedded", "manifest"]
    folder: str
    manifest: str | None = None                 # index of the images; embedded: photographs, instead of data.card
    size: Annotated[int, Field(ge=16, multiple_of=16)]
    seen: Annotated[list[str], Field(min_length=1)]   # generators trained on
    held_out: list[str] = []                    # embedded: generators used for validation, but not for training
    source: str | None = None                   # manifest: train on reals of this source only
    test_sets: dict[str, str] = {}              # name -> manifest of other data sets to score
    use: Counts                                 # real images of each split, at most
    patches: Counts = Counts(train=1, val=1, test=1)  # per photograph, at most
    least_std: Weight = 0.0                     # grey levels; flatter patches are left out
    halve: bool = True                          # generators work at twice the size; images of both classes are then halved
    shrink: list[PositiveShare] = []            # range of a random scale factor of both classes, applied before regeneration
    encode: Annotated[list[Literal["png", "jpeg", "webp"]], Field(min_length=1)] = ["png"]  # one is drawn per pair
    encode_quality: list[Annotated[int, Field(ge=1, le=100)]] = [90, 90]
    val_share: Decay = 0.0                      # manifest without a validation split: share of the training images
    val_most: Count = 0                         # ... at most this many per class; 0 = no limit
    samples: Count = 0                          # test images of each of our own generators; 0 = as many as reals
    limit: Count = 0                            # images per class, generator and split; 0 = all

    @property
    def other_sets(self):
        """The test sets that are not the benchmark's own index."""
        return {name: path for name, path in self.test_sets.items() if Path(path) != Path(self.manifest or "")}

    @property
    def cut(self):
        """Pixels on a side of a patch that generators work on."""
        return 2 * self.size if self.halve else self.size

    @property
    def most(self):
        """Maximum number of real images of each split."""
        return {split: min(count, self.limit or count) for split, count in self.use.model_dump().items()}

    @model_validator(mode="after")
    def _consistent(self):
        distinct("seen", self.seen)
        distinct("held_out", self.held_out)
        need(not set(self.held_out) & set(self.seen), "held_out", "must not name a generator of `seen`")
        in_order("shrink", self.shrink, optional=True)
        in_order("encode_quality", self.encode_quality)
        need(self.kind == "embedded" or self.manifest, "manifest", "is missing; write one with `anl data index`")
        return self


class DetectorConfig(Section):
    backbone: str
    pretrained: bool = False
    frozen: bool = False                        # the backbone keeps its pretrained weights; only the rest is trained
    stride: Positive                            # pixels per feature; the deepest stage with at most this stride is used
    stem_width: Positive
    patch: Positive                             # pixels on a side of a noise patch of the attention
    attention_dim: Positive
    gate_width: Positive = 16
    erase_share: Annotated[float, Field(gt=0, lt=1)] = 0.25

    @model_validator(mode="after")
    def _frozen_weights_are_pretrained(self):
        need(self.pretrained or not self.frozen, "pretrained", "must be true for a frozen backbone; else set detector.frozen to false")
        return self


class MethodConfig(Section):
    """What is learned. Each of the last seven fields is a parameter of one target."""

    target: str                                 # of TARGETS or other_priors; none = plain detector
    step: Step
    attention: Literal["none", "energy", "gate", *TOKEN_ATTENTIONS, *TRAINING_ATTENTIONS]
    attention_weight: Weight = 0.1              # of the loss of attentions that act in training only
    loss_weight: Weight
    ranking: Share = 0.0                        # share of the ranking loss in the classification loss; the rest is cross-entropy
    noise_on: Literal["both", "real", "generated"] = "both"
    detach: bool = False
    front_end: Literal["image", "backbone", "residual", "noise"] = "image"
    consistent: bool = False                    # augmented images keep the noise target of the image without augmentation
    scale_images: Count = 0                     # training images that the target's scale is computed from; 0 = all
    baseline: Literal["", *BASELINE_SETTINGS] = ""
    multistep: Annotated[list[Positive], Field(min_length=1)] = [1, 2, 5]  # multiples of step
    second_prior: str = "other_prior"           # ensemble: the other member
    error_draws: Positive = 8
    noise_level: PositiveFloat = 15.0           # ffdnet: standard deviation in grey levels
    denoiser_weights: str | None = None         # ffdnet: a safetensors file
    wavelet_levels: Positive = 3
    wavelet_threshold: Weight = 3.0             # in robust standard deviations of the finest level

    @model_validator(mode="after")
    def _needs_a_target(self):
        if self.target == "none":
            need(self.attention == "none", "attention", f"'{self.attention}' needs predicted noise; set "
                  "method.target, or attention to none")
            need(self.front_end != "noise", "front_end", "'noise' reads predicted noise; set method.target")
        need(not self.baseline or self.target == "none", "target", "must be none for a baseline")
        need(self.target != "ffdnet" or self.denoiser_weights, "denoiser_weights", "is missing; name ffdnet's file")
        distinct("multistep", self.multistep)
        need(self.target != "multistep" or max(self.multistep) * self.step <= DIFFUSION_STEPS, "multistep",
              f"exceeds the {DIFFUSION_STEPS} diffusion steps; lower method.step")
        return self


class TrainingConfig(Section):
    steps: Annotated[int, Field(ge=2)]
    batch_size: Annotated[int, Field(ge=2)]
    learning_rate: PositiveFloat
    weight_decay: Weight
    warmup_steps: Count
    final_learning_rate: Share                  # share of the peak at the end of the cosine
    clip_norm: PositiveFloat
    precision: Precision
    augment_probability: Share
    augmentations: Annotated[list[Literal[*AUGMENTATIONS]], Field(min_length=1)] = ["jpeg", "jpeg", "resize", "blur"]  # uniform
    augment_most: Positive = 1                  # most operations per image; each further one has the same probability
    jpeg_quality: list[Annotated[int, Field(ge=1, le=100)]]
    webp_quality: list[Annotated[int, Field(ge=1, le=100)]] = [60, 100]
    scale_factor: list[Annotated[float, Field(ge=0.25, le=4)]] = [0.5, 1.5]   # then cropped or padded to the original size
    sharpen_amount: list[Annotated[float, Field(ge=0, le=5)]] = [0.0, 1.0]
    noise_deviation: list[Annotated[float, Field(ge=0, le=64)]] = [0.0, 4.0]  # grey levels
    resize_scale: list[Annotated[float, Field(ge=0.1, le=1)]]
    blur_radius: list[Annotated[float, Field(ge=0, le=10)]]
    compile: bool = False                       # use torch.compile; needs a C++ compiler on a CPU
    accumulate: Positive = 1                    # micro-batches per batch
    ema: Decay = 0.0                            # decay of the exponential moving average of the weights; 0 = none
    flip: bool = False
    pairs: Count = 0                            # training pairs used; 0 = all
    validate_every: Count = 0                   # steps between validations; 0 = at the end only
    checkpoint_seconds: Positive = 45

    @model_validator(mode="after")
    def _consistent(self):
        for key in AUGMENTATIONS.values():
            in_order(key, getattr(self, key))
        need(self.warmup_steps < self.steps, "warmup_steps", f"must be below training.steps ({self.steps})")
        return self


class BaselinesConfig(Section):
    """Settings of published methods."""

    noise_step: Step
    error_step: Step
    error_draws: Positive
    inversion_steps: Positive
    strong_probability: Share
    strong_blur: Weight
    strong_jpeg: Annotated[int, Field(ge=1, le=100)]
    noise_deviation: PositiveFloat
    distillation_weight: Weight
    reconstruction_strength: PositiveShare
    reconstruction_steps: Positive
    contrastive_weight: Weight
    margin: PositiveFloat
    guide_weight: Weight = 1.0
    encoder: Annotated[str, Field(pattern=r"^(timm|untrained):[\w.-]+$")] = "timm:tf_efficientnet_lite0"


class ExperimentConfig(Section):
    """Variants of the profile: all combinations of `vary`, then `variants`. Both name settings by dotted keys."""

    vary: dict[str, Annotated[list[Any], Field(min_length=1)]] = {}
    variants: dict[str, dict[str, Any]] = {}
    seeds: list[Seed] = []                      # [] = the profile's

    @model_validator(mode="after")
    def _not_empty(self):
        need(self.vary or self.variants, "vary", "is missing; state settings to vary, or `variants`")
        distinct("seeds", self.seeds)
        return self


# names of `anl.data.processing`: kind and strength, such as jpeg_90; `+` joins a sequence, such as scale_0.5+jpeg_90
Treatment = Annotated[str, Field(pattern=r"^[a-z]+_[0-9.]+(\+[a-z]+_[0-9.]+)*$")]

Control = Literal["resize75", "blur", "jpeg96", "denoise"]


class EvaluationConfig(Section):
    views: list[Literal["raw", "matched", "jpeg96"] | Treatment]
    headline: str                               # one of the views
    controls: list[Control]
    conditions: list[Control | Treatment] = [
        "jpeg_90", "jpeg_75", "webp_80", "scale_0.5+jpeg_90"]  # treatments in which packaged detectors are evaluated
    target_fpr: Annotated[float, Field(gt=0, lt=0.5)]
    bootstrap: Annotated[int, Field(ge=20)]
    perturbations: dict[str, Annotated[list[float], Field(min_length=1)]] = {}
    mirrored: bool = False                      # a score is the mean over an image and its mirror image
    pictures: dict[str, str] = {}               # name -> manifest of uncropped images, on which packaged detectors are compared
    most_pictures: Positive = 100               # per generator of a manifest, and of photographs

    @model_validator(mode="after")
    def _consistent(self):
        distinct("views", self.views)
        need("raw" in self.views, "views", "must contain raw; add it")
        need(self.headline in self.views, "headline", f"must be one of the views ({', '.join(self.views)})")
        for kind, strengths in self.perturbations.items():
            key = f"perturbations.{kind}"
            one_of(key, kind, PERTURBATIONS, "a kind of perturbation")
            low, high = PERTURBATIONS[kind]
            need(all(low <= strength <= high for strength in strengths), key, f"must be from {low} to {high}")
            distinct(key, strengths)
        return self


class RunConfig(Section):
    """How and where the work is done. These settings affect no result and are not part of an identity."""

    models: str = "models"
    runs: str = "runs"
    targets: str = "targets"
    results: str = "results"
    cache: str = ".cache/anl"
    jobs: Count = 0                             # trainings at a time; 0 = one per core
    processes: Count = 1                        # processes that share one training; 0 = one per GPU
    workers: Count = 0                          # threads that read images, and augment the next batch of a training
    batch_size: Positive = 64                   # of scoring and targets; scores do not depend on it
    target_gigabytes: PositiveFloat = 200.0     # largest target cache; for larger targets the prior is called for each batch


def need(condition, key, problem):
    """Raise ValueError unless the condition holds. `anl.config` prepends the key of the section to `key`."""
    if not condition:
        raise ValueError(f"{key}|{problem}")


def one_of(key, value, known, what):
    if value not in known:
        raise ValueError(f"{key}|'{value}' is not {what}; {suggestion(value, known)}")


def distinct(key, values):
    need(len(set(values)) == len(values), key, f"contains an entry twice ({', '.join(map(str, values))}); remove one")


def in_order(key, values, optional=False):
    need((optional and not values) or (len(values) == 2 and values[0] <= values[1]), key,
          f"must be two numbers, the lower first, not {values}")
