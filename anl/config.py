"""The configuration: a typed profile with bases, overrides, variants of experiments, and the identity of a run."""

import copy
import difflib
import itertools
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from anl.io import UserError, identity, reason, write_text

PROFILES = Path(__file__).with_name("profiles")
DIFFUSION_STEPS = 1000
NETWORK_TARGETS = ("denoiser", "blind_denoiser")  # networks trained for it: entries of `other_priors` with these names
STEPLESS_TARGETS = ("highpass", "random", "wavelet", "ffdnet", *NETWORK_TARGETS)
TARGETS = ("none", "prior", "multistep", "ensemble", "noised", "error", "shuffled", *STEPLESS_TARGETS)
TRAINING_ATTENTIONS = ("transfer", "erase", "spread")  # no part of the detector at inference
TOKEN_ATTENTIONS = ("affinity", "relation", "relation_self", "relation_other")
PRIORLESS_BASELINES = ("blur_jpeg", "npr", "srm", "spectrum", "univfd")
BASELINE_SETTINGS = {  # the settings of `baselines` that a method reads
    "blur_jpeg": ("strong_probability", "strong_blur", "strong_jpeg"), "npr": (), "srm": (), "spectrum": (),
    "dnf": ("noise_step",), "lare": ("error_step", "error_draws"), "dire": ("inversion_steps",),
    "distildire": ("noise_step", "inversion_steps", "distillation_weight"),
    "drct": ("reconstruction_strength", "reconstruction_steps", "contrastive_weight", "margin"),
    "aeroblade": (), "univfd": ("encoder",)}
# kind of perturbation: lowest and highest strength (JPEG and WebP quality, pixels, scale, share of a side, grey levels)
PERTURBATIONS = {"jpeg": (1, 100), "webp": (1, 100), "blur": (0.1, 10), "resize": (0.1, 4), "crop": (0.6, 1),
                 "noise": (0.1, 64)}
SHORT_NAMES = {"method.step": "t", "method.loss_weight": "lambda"}  # other settings: the last part of their key

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
View = Literal["raw", "matched", "jpeg96"]
Baseline = Literal["", "blur_jpeg", "npr", "srm", "spectrum", "dnf", "lare", "dire", "distildire", "drct", "aeroblade",
                   "univfd"]


class Section(BaseModel):
    """A frozen mapping of known keys; values are not converted (`"3"` is not a number, `true` is not 1)."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, value):
        unknown = [key for key in value if key not in cls.model_fields] if isinstance(value, dict) else []
        if unknown:
            raise ValueError(f"unknown key '{unknown[0]}'; {_suggestion(str(unknown[0]), cls.model_fields)}")
        return value


class Split(Section):
    train: PositiveShare
    val: PositiveShare
    test: PositiveShare

    @model_validator(mode="after")
    def _whole(self):
        _need(abs(self.train + self.val + self.test - 1) < 1e-6, "", "the three shares must sum to 1")
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
    """Training of a generative model. Without `source` it is trained; 0 steps leave it at its initial weights."""

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
        _need(self.source or self.channels, "channels", "is missing; state the widths to train, or a `source` to load")
        _need(self.source or not self.revision, "revision", "is the commit of a `source`; state the source too")
        return self


class PriorConfig(FittingConfig):
    """A diffusion prior, or (objective) a denoiser of the same architecture for comparison."""

    precision: Precision = "bf16"               # of the prior's forward pass: part of a run's identity
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
    """How a model regenerates an image. Families that share a model or a decoder are not disjoint."""

    model: str                                  # of `models`; `published`: the data set holds its images
    decoder: str | None = None                  # of `models`: the autoencoder that a latent model works in
    sampler: Literal["ddim", "ddpm", "dpm"] | None = None
    strength: PositiveShare | None = None
    inference_steps: Positive | None = None
    region: list[PositiveShare] = []            # lowest and highest share of the image that is regenerated; [] = all
    paired: bool = True                         # false: a sample that no real image corresponds to
    val_patches: Count = 0                      # validation patches per photograph; 0 = as many as the benchmark's

    @property
    def networks(self):
        """Names of the trained models its images pass through."""
        return frozenset(name for name in (self.model, self.decoder) if name)


class BenchmarkConfig(Section):
    """kind `embedded`: patches of photographs and their regenerations; `manifest`: images as they were published."""

    kind: Literal["embedded", "manifest"]
    folder: str
    manifest: str | None = None                 # index of the images; embedded: photographs, instead of data.card
    size: Annotated[int, Field(ge=16, multiple_of=16)]
    seen: Annotated[list[str], Field(min_length=1)]   # generators trained on
    source: str | None = None                   # manifest: train on reals of this source only
    test_sets: dict[str, str] = {}              # name -> manifest of other data sets to score
    use: Counts                                 # real images of each split, at most
    patches: Counts = Counts(train=1, val=1, test=1)  # per photograph, at most
    least_std: Weight = 0.0                     # grey levels; flatter patches are left out
    formats: Literal["lossless", "leaky"] = "lossless"  # leaky: reals went through JPEG, to show what that does
    shrink: list[PositiveShare] = []            # range of a random scale of both classes, before regeneration
    encode: Annotated[list[Literal["png", "jpeg", "webp"]], Field(min_length=1)] = ["png"]  # one per pair, drawn
    encode_quality: list[Annotated[int, Field(ge=1, le=100)]] = [90, 90]
    val_share: Decay = 0.0                      # manifest without a validation split: share of the training images
    val_most: Count = 0                         # ... at most this many per class; 0 = no limit
    samples: Count = 0                          # test images of each of our own generators; 0 = as many as reals
    limit: Count = 0                            # images per class, generator and split; 0 = all

    @model_validator(mode="after")
    def _consistent(self):
        _distinct("seen", self.seen)
        _range("shrink", self.shrink, optional=True)
        _range("encode_quality", self.encode_quality)
        _need(self.kind == "embedded" or self.manifest, "manifest", "is missing; write one with `anl data index`")
        return self


class DetectorConfig(Section):
    backbone: str
    pretrained: bool = False
    stride: Positive                            # pixels per feature: the deepest stage at most this coarse
    stem_width: Positive
    patch: Positive                             # pixels on a side of a noise patch of the attention
    attention_dim: Positive
    gate_width: Positive = 16
    erase_share: Annotated[float, Field(gt=0, lt=1)] = 0.25


class MethodConfig(Section):
    """What is learned. The last eight fields are parameters of single targets."""

    target: str                                 # of TARGETS or other_priors; none = plain detector
    step: Step
    attention: Literal["none", "energy", "gate", "affinity", "relation", "relation_self", "relation_other", "transfer",
                       "erase", "spread"]
    attention_weight: Weight = 0.1              # of the loss of attentions that act in training only
    loss_weight: Weight
    noise_on: Literal["both", "real", "generated"] = "both"
    detach: bool = False
    front_end: Literal["image", "residual", "noise"] = "image"
    consistent: bool = False                    # augmented images keep the noise target of the untouched image
    baseline: Baseline = ""
    multistep: Annotated[list[Positive], Field(min_length=1)] = [1, 2, 5]  # multiples of step
    second_prior: str = "other_prior"           # ensemble: the other member
    error_draws: Positive = 8
    noise_level: PositiveFloat = 15.0           # ffdnet: standard deviation in grey levels
    denoiser_weights: str | None = None         # ffdnet: a safetensors file
    wavelet_levels: Positive = 3
    wavelet_threshold: Weight = 3.0             # in robust standard deviations of the finest level
    scale_images: Count = 0                     # training images that the scale is computed from; 0 = all

    @model_validator(mode="after")
    def _needs_a_target(self):
        if self.target == "none":
            _need(self.attention == "none", "attention", f"'{self.attention}' needs predicted noise; set "
                  "method.target, or attention to none")
            _need(self.front_end != "noise", "front_end", "'noise' reads predicted noise; set method.target")
        _need(not self.baseline or self.target == "none", "target", "must be none for a baseline")
        _need(self.target != "ffdnet" or self.denoiser_weights, "denoiser_weights", "is missing; name ffdnet's file")
        _distinct("multistep", self.multistep)
        _need(self.target != "multistep" or max(self.multistep) * self.step <= DIFFUSION_STEPS, "multistep",
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
    jpeg_quality: list[Annotated[int, Field(ge=1, le=100)]]
    resize_scale: list[Annotated[float, Field(ge=0.1, le=1)]]
    blur_radius: list[Annotated[float, Field(ge=0, le=10)]]
    accumulate: Positive = 1                    # parts that a batch is computed in
    ema: Decay = 0.0                            # decay of the weights' exponential average; 0 = none
    flip: bool = False
    pairs: Count = 0                            # training pairs used; 0 = all
    validate_every: Count = 0                   # steps between validations; 0 = at the end only
    checkpoint_seconds: Positive = 45

    @model_validator(mode="after")
    def _consistent(self):
        for key in ("jpeg_quality", "resize_scale", "blur_radius"):
            _range(key, getattr(self, key))
        _need(self.warmup_steps < self.steps, "warmup_steps", f"must be below training.steps ({self.steps})")
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
    distillation_weight: Weight
    reconstruction_strength: PositiveShare
    reconstruction_steps: Positive
    contrastive_weight: Weight
    margin: PositiveFloat
    encoder: Annotated[str, Field(pattern=r"^(timm|untrained):[\w.-]+$")] = "timm:tf_efficientnet_lite0"


class ExperimentConfig(Section):
    """Variants of the profile: all combinations of `vary`, then `variants`; both name settings by dotted keys."""

    vary: dict[str, Annotated[list[Any], Field(min_length=1)]] = {}
    variants: dict[str, dict[str, Any]] = {}
    seeds: list[Seed] = []                      # [] = the profile's

    @model_validator(mode="after")
    def _not_empty(self):
        _need(self.vary or self.variants, "vary", "is missing; state settings to vary, or `variants`")
        _distinct("seeds", self.seeds)
        return self


class EvaluationConfig(Section):
    views: list[View]
    headline: Literal["matched", "jpeg96"]
    controls: list[Literal["resize75", "blur", "jpeg96", "denoise"]]
    target_fpr: Annotated[float, Field(gt=0, lt=0.5)]
    bootstrap: Annotated[int, Field(ge=20)]
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    perturbations: dict[str, Annotated[list[float], Field(min_length=1)]] = {}
    mirrored: bool = False                      # a score is the mean over an image and its mirror image

    @model_validator(mode="after")
    def _consistent(self):
        _distinct("views", self.views)
        _need("raw" in self.views, "views", "must contain raw; add it")
        _need(self.headline in self.views, "headline", f"must be one of the views ({', '.join(self.views)})")
        for kind, strengths in self.perturbations.items():
            key = f"perturbations.{kind}"
            _one_of(key, kind, PERTURBATIONS, "a kind of perturbation")
            low, high = PERTURBATIONS[kind]
            _need(all(low <= strength <= high for strength in strengths), key, f"must be from {low} to {high}")
            _distinct(key, strengths)
        return self


class RunConfig(Section):
    """How and where the work is done; decides no result and is no part of an identity."""

    models: str = "models"
    runs: str = "runs"
    targets: str = "targets"
    results: str = "results"
    cache: str = ".cache/anl"
    jobs: Count = 0                             # trainings at a time; 0 = one per core
    processes: Count = 1                        # that share one training; 0 = one per GPU
    workers: Count = 0                          # of a data loader
    batch_size: Positive = 64                   # of scoring and targets; scores do not depend on it
    target_gigabytes: PositiveFloat = 200.0     # largest target cache; above, the prior is called for each batch
    storage: Literal["files", "arrow"] = "files"


class Config(Section):
    """A whole profile."""

    profile: str
    seed: Seed
    seeds: Annotated[list[Seed], Field(min_length=1)]
    data: DataConfig
    prior: PriorConfig
    other_priors: dict[str, PriorConfig] = {}
    models: dict[str, GeneratorConfig] = {}
    families: dict[str, FamilyConfig] = {}
    benchmark: BenchmarkConfig
    detector: DetectorConfig
    method: MethodConfig
    training: TrainingConfig
    baselines: BaselinesConfig
    experiments: dict[str, ExperimentConfig] = {}
    evaluation: EvaluationConfig
    run: RunConfig = RunConfig()

    @model_validator(mode="after")
    def _cross_checks(self):
        benchmark, method = self.benchmark, self.method
        _distinct("seeds", self.seeds)
        for name in self.other_priors:
            kind = "other_priors." + name
            _need(re.fullmatch(r"[a-z0-9_]+", name), kind, "its name must be lower case letters, digits and _")
            _need(name not in {*TARGETS, "prior", *self.models} - set(NETWORK_TARGETS), kind,
                  "is the name of a target or model; choose another one")
            objective = name if name in NETWORK_TARGETS else "diffusion"
            _need(self.other_priors[name].objective == objective, f"{kind}.objective", f"must be {objective}")
        _need(self.prior.objective == "diffusion", "prior.objective", "must be diffusion")
        for name, family in self.families.items():
            self._check_family(f"families.{name}", name, family)
        for name in benchmark.seen:
            if benchmark.kind == "embedded":
                _one_of("benchmark.seen", name, self.families, "in families")
        if benchmark.kind == "embedded" and benchmark.manifest is None:
            _need(2 * benchmark.size <= self.data.source_side, "benchmark.size",
                  f"twice the crop must fit into data.source_side ({self.data.source_side}); lower it")
        _need(self.detector.patch >= 2 and benchmark.size % self.detector.patch == 0, "detector.patch",
              f"must be at least 2 and divide benchmark.size ({benchmark.size})")
        known = [*TARGETS, *self.other_priors]
        _one_of("method.target", method.target, known, "a target")
        needed = {"ensemble": method.second_prior, **{name: name for name in NETWORK_TARGETS}}.get(method.target)
        _need(needed is None or needed in self.other_priors, "method.target",
              f"'{method.target}' needs other_priors.{needed}; add it")
        return self

    def _check_family(self, key, name, family):
        if family.model == "published":
            _need(self.benchmark.kind == "manifest", f"{key}.model", "'published' needs a benchmark of kind manifest")
            return
        for part in ("model", "decoder"):
            value = getattr(family, part)
            _one_of(f"{key}.{part}", value, [*self.models, None] if part == "decoder" else self.models, "in models")
        _need(self.benchmark.kind == "embedded" or name not in self.benchmark.seen, f"{key}.model",
              "must be published: the data set holds its images")
        model = self.models[family.model]
        if family.model in ("pixel", "flow", "latent"):
            _need(family.strength is not None and family.strength <= model.max_strength, f"{key}.strength",
                  f"must be above 0 and at most the model's max_strength ({model.max_strength:g})")
        if family.model in ("pixel", "flow", "latent", "unconditional", "ddpm"):
            _need(family.inference_steps is not None, f"{key}.inference_steps", "is missing; state at least 1")
        if family.model in ("pixel", "latent", "unconditional"):
            _need(family.sampler is not None, f"{key}.sampler", "is missing; choose ddim, ddpm or dpm")
        if family.model == "latent":
            _need(family.decoder is not None, f"{key}.decoder", "is missing; name the autoencoder, for example vae")
        if family.model == "unconditional":
            _need(not family.paired, f"{key}.paired", "must be false: no real image is regenerated")
            _need(model.max_strength == 1, f"models.{family.model}.max_strength", "must be 1: it starts from noise")
        if family.model == "superres":
            given = None not in (model.blocks, model.scale, model.texture_weight)
            _need(given, f"models.{family.model}", "needs blocks, scale and texture_weight")
            divides = model.crop % model.scale == 0 == 2 * self.benchmark.size % model.scale
            _need(divides, f"models.{family.model}.scale", "must divide its crop and twice benchmark.size")
        _range(f"{key}.region", family.region, optional=True)
        _need(not family.region or family.model == "pixel", f"{key}.region", "needs the model `pixel`")

    def override(self, **sections):
        """Return a copy with some settings changed, validated again.

        A change to `method.target: none`, or to a baseline, resets the attention, the front end `noise` and the target,
        unless the change states them.

        Parameters
        ----------
        **sections
            Nested mappings that are merged, for example `method={"step": 10}`. A mapping set to None is removed.

        Raises
        ------
        UserError
            If the result is not a valid configuration.
        """
        return _build(self._changed(sections), f"profile {self.profile}")

    def _changed(self, sections):
        method = sections.get("method")
        if isinstance(method, dict) and method.get("baseline"):
            method = {"target": "none", "front_end": "image", **method}
        if isinstance(method, dict) and method.get("target") == "none":
            reset = {} if self.method.front_end != "noise" else {"front_end": "image"}
            method = {"attention": "none", **reset, **method}
        return _merge(self.model_dump(), sections | ({"method": method} if method is not None else {}))

    def variants(self, experiment):
        """The variants of an experiment, in the order of the profile.

        A combination of `vary` is named by its settings, `t=1` or `t=1,lambda=0.3`; the plain detector is `plain`, and
        a baseline has its own name. Settings without effect are not part of a name: a grid trains nothing twice.

        Parameters
        ----------
        experiment : str
            A key of `experiments`.

        Returns
        -------
        dict of str to Config
            Each with the experiment's seeds.

        Raises
        ------
        UserError
            If the experiment is unknown, a variant is invalid, or two variants are the same detector.
        """
        if experiment not in self.experiments:
            raise UserError(f"profile {self.profile} has no experiment '{experiment}'; "
                            f"{_suggestion(experiment, self.experiments)}")
        chosen, place = self.experiments[experiment], f"profile {self.profile}: experiments.{experiment}"
        seeds = chosen.seeds or self.seeds
        grid = [dict(zip(chosen.vary, values, strict=True)) for values in itertools.product(*chosen.vary.values())]
        found, names = {}, {}
        for name, changes in [*((None, changes) for changes in grid if changes), *chosen.variants.items()]:
            config = _build(self._changed({**_nested(changes, place), "seeds": seeds}), place)
            label = name or _variant_name(config, changes)
            key = config.identity()
            if key in names and (name or names[key] != label):
                raise UserError(f"{place}: '{names[key]}' and '{label}' are the same detector; remove one")
            if label in found and names.get(key) != label:
                raise UserError(f"{place}: two variants are named '{label}'; rename one")
            found[label], names[key] = config, label
        return found

    def identity(self, *sections):
        """Hash of the settings that decide a run's weights and scores (without its seed), or of some sections.

        Settings that have no effect on this variant are left out: a plain detector has the same identity at every step.

        Parameters
        ----------
        *sections : str
            Sections to hash instead, as they are, for example `"data", "prior"`.
        """
        value = self.model_dump(mode="json")
        if sections:
            return identity({name: value[name] for name in sections})
        for key in [*_ALWAYS_IGNORED, *self._without_effect()]:
            *parents, last = key.split(".")
            place = value
            for parent in parents:
                place = place.get(parent, {})
            place.pop(last, None)
        return identity(value)

    def _without_effect(self):
        """Dotted keys of the settings that do not affect this variant."""
        method, found = self.method, set()
        members = {"ensemble": {method.second_prior}}.get(method.target, {method.target})
        found |= {f"other_priors.{name}" for name in self.other_priors if name not in members}
        used = BASELINE_SETTINGS[method.baseline] if method.baseline else ()
        found |= {f"baselines.{name}" for name in BaselinesConfig.model_fields if name not in used}
        parameters = {"multistep": ["multistep"], "ensemble": ["second_prior"], "error": ["error_draws"],
                      "wavelet": ["wavelet_levels", "wavelet_threshold"], "ffdnet": ["noise_level", "denoiser_weights"]}
        found |= {f"method.{key}" for kind, keys in parameters.items() if kind != method.target for key in keys}
        if method.target == "none":
            found |= {f"method.{key}" for key in ("step", "loss_weight", "noise_on", "detach", "consistent",
                                                  "scale_images")}
        if method.target in STEPLESS_TARGETS:
            found.add("method.step")
        no_prior = method.target in ("none", *STEPLESS_TARGETS, *self.other_priors)
        if no_prior and method.baseline in ("", *PRIORLESS_BASELINES):
            found.add("prior")
        if method.baseline:
            found |= {"method.front_end"} | ({"detector.stem_width"} if method.baseline == "univfd" else set())
        if method.attention not in TRAINING_ATTENTIONS:
            found.add("method.attention_weight")
        if method.attention not in TOKEN_ATTENTIONS:
            found |= {"detector.attention_dim", "detector.patch"}
        own = {"gate": "detector.gate_width", "erase": "detector.erase_share"}
        found |= {key for form, key in own.items() if method.attention != form}
        if self.training.augment_probability == 0:
            found |= {"method.consistent", "training.jpeg_quality", "training.resize_scale", "training.blur_radius"}
        if self.benchmark.kind == "manifest":
            found.add("data")
        return found


_ALWAYS_IGNORED = ("profile", "seeds", "experiments", "run", "training.checkpoint_seconds", "evaluation.headline",
                   "evaluation.target_fpr", "evaluation.bootstrap", "evaluation.confidence", "evaluation.perturbations",
                   "benchmark.test_sets")


def load_config(path="params.yaml", profile=None, overrides=()):
    """Read and validate a configuration, with all variants of its experiments.

    Parameters
    ----------
    path : path-like
        A YAML file. It may name a `base`: a packaged profile, or a file in the same folder without its `.yaml`.
    profile : str, optional
        The packaged profile to read instead of `path`.
    overrides : sequence of str
        Settings to change, `"method.step=10"`; values are YAML.

    Returns
    -------
    Config

    Raises
    ------
    UserError
        If the file is missing or not YAML, or a setting is unknown or invalid: one line with file, dotted key and fix.
    """
    path = _profile_path(profile) if profile else Path(path)
    config = _build(_read(path), str(path))
    changes = {}
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise UserError(f"override '{text}' is not a setting; write it as method.step=10")
        try:
            changes[key.strip()] = yaml.load(value, _Loader)
        except yaml.YAMLError as problem:
            raise UserError(f"override '{text}' is not valid YAML ({reason(problem)}); write it as "
                            "method.step=10") from None
    if changes:
        config = _build(config._changed(_nested(changes, "overrides")), f"{path} with overrides")
    for name in config.experiments:
        config.variants(name)
    return config


def profiles():
    """Names of the packaged profiles."""
    return sorted(path.stem for path in PROFILES.glob("*.yaml"))


def activate(profile, path="params.yaml"):
    """Write a packaged profile, complete and with all defaults, to `path`; return whether the file changed."""
    config = load_config(profile=profile)
    text = (f"# Written by `anl profile {profile}`; edit it to try other values.\n"
            + yaml.safe_dump(config.model_dump(mode="json", exclude_none=True), sort_keys=False, width=120))
    if Path(path).is_file() and Path(path).read_text(encoding="utf-8") == text:
        return False
    write_text(path, text)
    return True


class _Loader(yaml.SafeLoader):
    """YAML in which 1e-3 is a number, and no key may occur twice."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        if twice := [key for index, key in enumerate(keys) if key in keys[:index]]:
            raise yaml.YAMLError(f"the key '{twice[0]}' occurs twice")
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"),
                              list("-+0123456789"))


def _profile_path(name, folder=None):
    """The file of a profile: in `folder`, or packaged."""
    for place in (folder, PROFILES):
        if place and (path := Path(place) / f"{name}.yaml").is_file():
            return path
    raise UserError(f"unknown profile '{name}'; {_suggestion(str(name), profiles())}")


def _read(path, seen=()):
    """The plain mapping of a file, merged into its bases."""
    try:
        value = yaml.load(Path(path).read_text(encoding="utf-8"), _Loader)
    except OSError:
        raise UserError(f"{path} cannot be read; write it with `anl profile small`") from None
    except (yaml.YAMLError, UnicodeDecodeError, TypeError) as problem:
        raise UserError(f"{path} is not valid YAML ({reason(problem)}); correct it") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} is not a mapping; write it with `anl profile small`")
    base = value.pop("base", None)
    if base is None:
        return value
    source = _profile_path(base, Path(path).parent)
    if source.resolve() in (Path(path).resolve(), *seen):
        raise UserError(f"{path}: base '{base}' is its own base; name another profile")
    return _merge(_read(source, (*seen, Path(path).resolve())), value)


def _merge(base, change):
    """`change` merged into `base`; a mapping that it sets to null is removed, and an experiment replaced as a whole."""
    merged = dict(base)
    for key, value in change.items():
        if value is None and isinstance(base.get(key), dict):
            del merged[key]
        elif isinstance(value, dict) and isinstance(base.get(key), dict):
            merged[key] = _merge(base[key], value) if key != "experiments" else _merge_experiments(base[key], value)
        else:
            merged[key] = value
    return merged


def _merge_experiments(base, change):
    return {name: value for name, value in {**base, **change}.items() if value is not None}


def _nested(changes, place):
    """{"a.b": 1} -> {"a": {"b": 1}}."""
    whole = {}
    for key, value in changes.items():
        *parents, last = str(key).split(".")
        here = whole
        for parent in parents:
            here = here.setdefault(parent, {})
            if not isinstance(here, dict):
                raise UserError(f"{place}: '{key}' contradicts another setting; state one of them")
        here[last] = copy.deepcopy(value)  # a later key may be stored inside it
    return whole


def _build(value, origin):
    """A Config, or one readable line for pydantic's first error."""
    try:
        return Config.model_validate(value)
    except ValidationError as problem:
        error = problem.errors(include_url=False)[0]
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] == "value_error":  # raised by this module: "key|problem" below the section
        inner, _, text = str(error["ctx"]["error"]).rpartition("|")
        key = ".".join(part for part in (key, inner) if part)
        raise UserError(f"{origin}: {_quoted(key)}{text}")
    if error["type"] == "missing":
        raise UserError(f"{origin}: the key '{key}' is missing; add it")
    given = error["input"]
    text = error["msg"].replace("Input should", "must").replace("a valid integer", "a whole number")
    text = f"{text[0].lower()}{text[1:]}, not {reason(repr(given), 60)}"
    if error["type"] == "literal_error" and isinstance(given, str):
        expected = re.findall(r"'([^']*)'", error["ctx"]["expected"])
        text += f"; {_suggestion(given, expected)}"
    raise UserError(f"{origin}: {_quoted(key)}{text}")


def _quoted(key):
    return f"'{key}' " if key else ""


def _need(condition, key, problem):
    if not condition:
        raise ValueError(f"{key}|{problem}")


def _one_of(key, value, known, what):
    if value not in known:
        raise ValueError(f"{key}|'{value}' is not {what}; {_suggestion(str(value), [name for name in known if name])}")


def _distinct(key, values):
    _need(len(set(values)) == len(values), key, f"contains an entry twice ({', '.join(map(str, values))}); remove one")


def _range(key, values, optional=False):
    _need((optional and not values) or (len(values) == 2 and values[0] <= values[1]), key,
          f"must be two numbers, the lower first, not {values}")


def _suggestion(word, known):
    close = difflib.get_close_matches(word, list(known), 1)
    return f"did you mean '{close[0]}'?" if close else f"known: {', '.join(map(str, known)) or 'none'}"


def _variant_name(config, changes):
    """`t=1`, `plain`, `plain,pairs=60`: the settings of a variant that have an effect."""
    without, parts = config._without_effect(), []
    for key in changes:
        value = config
        for part in key.split("."):  # an entry that a variant removes is None
            value = value.get(part) if isinstance(value, dict) else getattr(value, part, None)
        if isinstance(value, (dict, BaseModel)):
            raise UserError(f"profile {config.profile}: '{key}' under vary holds several settings; use `variants` with "
                            "names")
        if key == "method.target" and value == "none":
            parts.append("plain")
        elif key == "method.baseline" and value:
            parts.append(value)
        elif not any(key == item or key.startswith(f"{item}.") for item in without):
            parts.append(f"{SHORT_NAMES.get(key, key.rpartition('.')[2])}={_text(value)}")
    return ",".join(parts) or "plain"


def _text(value):
    """Without loss: 0.3, 1 (also of 1.0), ddpm+flow."""
    if isinstance(value, list):
        return "+".join(_text(item) for item in value)
    if isinstance(value, float):
        return repr(value).removesuffix(".0")
    return str(value).lower() if isinstance(value, bool) else str(value).replace("/", "_")
