"""The configuration: a typed profile with bases, overrides, variants of experiments, and the identity of a run."""

import copy
import functools
import itertools
import re
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import Field, ValidationError, model_validator

from anl.config.sections import (
    AUGMENTATIONS,
    BASELINE_SETTINGS,
    NETWORK_TARGETS,
    PERTURBATIONS,
    PRIORLESS_BASELINES,
    STEPLESS_TARGETS,
    TARGETS,
    TOKEN_ATTENTIONS,
    TRAINING_ATTENTIONS,
    BaselinesConfig,
    BenchmarkConfig,
    DataConfig,
    DetectorConfig,
    EvaluationConfig,
    ExperimentConfig,
    FamilyConfig,
    GeneratorConfig,
    MethodConfig,
    PriorConfig,
    RunConfig,
    Section,
    Seed,
    TrainingConfig,
    distinct,
    in_order,
    need,
    one_of,
)
from anl.io import UserError, identity, pick, reason, suggestion, write_text

__all__ = ["AUGMENTATIONS", "BASELINE_SETTINGS", "NETWORK_TARGETS", "PERTURBATIONS", "PRIORLESS_BASELINES", "PROFILES", "STEPLESS_TARGETS",
           "Config", "EvaluationConfig", "MethodConfig", "PriorConfig", "TrainingConfig", "activate", "load_config", "profiles"]

PROFILES = Path(__file__).parents[1] / "profiles"
FAMILY_SETTINGS = {  # kind of model -> settings that its families must have
    "pixel": ("strength", "inference_steps", "sampler"), "flow": ("strength", "inference_steps"),
    "latent": ("strength", "inference_steps", "sampler", "decoder"), "unconditional": ("inference_steps", "sampler")}
NO_IDENTITY = ("profile", "seeds", "experiments", "run", "training.checkpoint_seconds", "evaluation.headline",
               "evaluation.target_fpr", "evaluation.bootstrap", "evaluation.perturbations", "evaluation.conditions",
               "evaluation.pictures", "evaluation.most_pictures", "benchmark.test_sets")  # without effect on weights and scores
SHORT_NAMES = {"method.step": "t", "method.loss_weight": "lambda"}  # other settings: the last part of their key


class Config(Section):
    """A whole profile."""

    profile: str
    seed: Seed
    seeds: Annotated[list[Seed], Field(min_length=1)]
    data: DataConfig
    prior: PriorConfig
    other_priors: dict[str, PriorConfig] = Field({})
    models: dict[str, GeneratorConfig] = Field({})
    families: dict[str, FamilyConfig] = Field({})
    benchmark: BenchmarkConfig
    detector: DetectorConfig
    method: MethodConfig
    training: TrainingConfig
    baselines: BaselinesConfig
    experiments: dict[str, ExperimentConfig] = Field({})
    evaluation: EvaluationConfig
    run: RunConfig = RunConfig()

    @model_validator(mode="after")
    def _cross_checks(self):
        benchmark, method = self.benchmark, self.method
        need(re.fullmatch(r"[A-Za-z0-9][\w.-]{0,99}", self.profile), "profile", "names a folder: at most 100 letters, digits, _, - and .")
        distinct("seeds", self.seeds)
        for name in self.other_priors:
            kind = "other_priors." + name
            need(re.fullmatch(r"[a-z0-9_]+", name), kind, "its name must be lower case letters, digits and _")
            need(name not in {*TARGETS, "prior", *self.models} - set(NETWORK_TARGETS), kind,
                  "is the name of a target or model; choose another one")
            need(name not in NETWORK_TARGETS or self.other_priors[name].objective == name, f"{kind}.objective", f"must be {name}")
        need(self.prior.objective == "diffusion", "prior.objective", "must be diffusion")
        for name, family in self.families.items():
            self._check_family(f"families.{name}", name, family)
        for key in ("seen", "held_out") if benchmark.kind == "embedded" else ():
            for name in getattr(benchmark, key):
                one_of(f"benchmark.{key}", name, self.families, "in families")
        if benchmark.kind == "embedded" and benchmark.manifest is None:
            need(benchmark.cut <= self.data.source_side, "benchmark.size",
                  f"its patches of {benchmark.cut} pixels must fit into data.source_side ({self.data.source_side}); lower it")
        need(self.detector.patch >= 2 and benchmark.size % self.detector.patch == 0, "detector.patch",
              f"must be at least 2 and divide benchmark.size ({benchmark.size})")
        known = [*TARGETS, *self.other_priors]
        one_of("method.target", method.target, known, "a target")
        needed = {"ensemble": method.second_prior, **{name: name for name in NETWORK_TARGETS}}.get(method.target)
        need(needed is None or needed in self.other_priors, "method.target",
              f"'{method.target}' needs other_priors.{needed}; add it")
        return self

    def _check_family(self, key, name, family):
        if family.model == "published":
            need(self.benchmark.kind == "manifest", f"{key}.model", "'published' needs a benchmark of kind manifest")
            return
        one_of(f"{key}.model", family.model, self.models, "in models")
        one_of(f"{key}.decoder", family.decoder, [*self.models, None], "in models")
        need(self.benchmark.kind == "embedded" or name not in self.benchmark.seen, f"{key}.model",
              "must be published: the data set holds its images")
        model = self.models[family.model]
        kind = model.kind or family.model
        for setting in FAMILY_SETTINGS.get(kind, ()):
            need(getattr(family, setting) is not None, f"{key}.{setting}", f"is missing; a model of kind {kind} needs it")
        need((family.strength or 0) <= model.max_strength, f"{key}.strength",
              f"must be at most the model's max_strength ({model.max_strength:g})")
        if kind == "unconditional":
            need(not family.paired, f"{key}.paired", "must be false: no real image is regenerated")
            need(model.max_strength == 1, f"models.{family.model}.max_strength", "must be 1: it starts from noise")
        if kind == "superres":
            given = None not in (model.blocks, model.scale, model.texture_weight)
            need(given, f"models.{family.model}", "needs blocks, scale and texture_weight")
            divides = model.crop % model.scale == 0 == self.benchmark.cut % model.scale
            need(divides, f"models.{family.model}.scale", f"must divide its crop and the patches' side ({self.benchmark.cut})")
        in_order(f"{key}.region", family.region, optional=True)
        need(not family.region or kind == "pixel", f"{key}.region", "needs a model of kind `pixel`")

    def override(self, **sections):
        """A validated copy with some settings changed, for example `method={"step": 10}`. A mapping set to None is removed.

        A change to `method.target: none`, or to a baseline, resets the attention, the front end `noise` and the target,
        unless the change states them.
        """
        return _build(self._changed(sections), f"profile {self.profile}")

    def _changed(self, sections):
        method = sections.get("method")
        if isinstance(method, dict):
            if method.get("baseline"):
                method = {"target": "none", "front_end": "image", **method}
            if method.get("target") == "none":
                reset = {"front_end": "image"} if self.method.front_end == "noise" else {}
                method = {"attention": "none", **reset, **method}
            sections = sections | {"method": method}
        return _merge(self.model_dump(), sections)

    def variants(self, experiment):
        """The variants of an experiment in the order of the profile: dict of str to Config, each with its seeds.

        A combination of `vary` is named by its settings, `t=1` or `t=1,lambda=0.3`; the plain detector is `plain`, and
        a baseline is named by the baseline. Settings without effect are not part of a name, so no run of a grid is trained twice.

        Raises
        ------
        UserError
            If the experiment is unknown, a variant is invalid, or two variants are the same detector.
        """
        pick("experiment", experiment, self.experiments)
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

    def identity(self):
        """Hash of the settings that determine a run's weights and scores, without its seed.

        Settings that have no effect on this variant are left out: a plain detector has the same identity at every step.
        Settings at their default are left out, too, so that runs stay valid when a later version adds a setting whose
        default changes nothing.
        """
        value = self.model_dump(mode="json", exclude_defaults=True)
        for key in (*NO_IDENTITY, *self._without_effect()):
            *parents, last = key.split(".")
            functools.reduce(lambda place, name: place.get(name, {}), parents, value).pop(last, None)
        return identity(value)

    @property
    def priors(self):
        """Names of the priors and denoisers that this variant uses: `prior`, and keys of `other_priors`."""
        method, target = self.method, self.method.target
        needed = method.baseline not in ("", *PRIORLESS_BASELINES) or target not in ("none", *STEPLESS_TARGETS, *self.other_priors)
        other = method.second_prior if target == "ensemble" else target
        return [*(["prior"] if needed else []), *([other] if other in self.other_priors else [])]

    def is_denoiser(self, name):
        """Whether `other_priors` has a denoiser of that name, which is used at the noise level it was trained for."""
        return name in self.other_priors and self.other_priors[name].objective != "diffusion"

    def _without_effect(self):
        """Dotted keys of the settings that do not affect this variant."""
        method, target, baseline, training = self.method, self.method.target, self.method.baseline, self.training
        used = BASELINE_SETTINGS.get(baseline, ())
        unused = [
            (True, [f"other_priors.{name}" for name in self.other_priors if name not in self.priors]),
            (True, [f"baselines.{name}" for name in BaselinesConfig.model_fields if name not in used]),
            ("prior" not in self.priors, ["prior"]),
            (self.benchmark.kind == "manifest", ["data"]),
            (target == "none", ["method.loss_weight", "method.detach", "method.scale_images"]),
            (target == "none" and baseline != "distildire", ["method.noise_on", "method.consistent"]),
            (target in ("none", *STEPLESS_TARGETS) or self.is_denoiser(target), ["method.step"]),
            (target != "multistep", ["method.multistep"]),
            (target != "ensemble", ["method.second_prior"]),
            (target != "error", ["method.error_draws"]),
            (target != "ffdnet", ["method.noise_level", "method.denoiser_weights"]),
            (target != "wavelet", ["method.wavelet_levels", "method.wavelet_threshold"]),
            (baseline, ["method.front_end", "method.ranking", "detector.frozen"]),
            (baseline == "univfd" or method.front_end == "backbone", ["detector.stem_width"]),
            (method.attention not in TRAINING_ATTENTIONS, ["method.attention_weight"]),
            (method.attention not in TOKEN_ATTENTIONS, ["detector.attention_dim", "detector.patch"]),
            (method.attention != "gate", ["detector.gate_width"]),
            (method.attention != "erase", ["detector.erase_share"]),
            (training.augment_probability == 0, ["method.consistent", "training.augmentations", "training.augment_most"]),
            *((training.augment_probability == 0 or kind not in training.augmentations, [f"training.{key}"])
              for kind, key in AUGMENTATIONS.items())]
        return {key for condition, keys in unused if condition for key in keys}


def load_config(path="params.yaml", profile=None, overrides=()):
    """Read and validate a `Config`, with all variants of its experiments.

    Parameters
    ----------
    path : path-like
        A YAML file. Its key `base` may name a packaged profile, or a file in the same folder without the suffix `.yaml`.
    profile : str, optional
        The packaged profile to read instead of `path`.
    overrides : sequence of str
        Settings to change, such as `"method.step=10"`; values are YAML.

    Raises
    ------
    UserError
        If the file is missing or not YAML, or a setting is unknown or invalid. The message names file, dotted key and fix.
    """
    path = _profile_path(profile) if profile else Path(path)
    config = _build(_read(path), str(path))
    if changes := parse_settings(overrides):
        config = _build(config._changed(_nested(changes, "overrides")), f"{path} with overrides")
    for name in config.experiments:
        config.variants(name)
    return config


def parse_settings(pairs):
    """["steps=[1, 10]"] -> {"steps": [1, 10]}; values are YAML. Raises UserError if one is not KEY=VALUE or a key repeats."""
    found = {}
    for pair in pairs:
        key, equals, text = (part.strip() for part in pair.partition("="))
        if not equals or not key:
            raise UserError(f"'{pair}' is not a setting; write KEY=VALUE, for example method.step=10")
        if key in found:
            raise UserError(f"'{key}' is set twice; keep one of its values")
        try:
            found[key] = yaml.load(text, _Loader)
        except (yaml.YAMLError, ValueError) as problem:  # ValueError: a date that does not exist
            raise UserError(f"the value of '{pair}' is not valid YAML ({reason(problem)}); quote it, as in steps='[1, 10]'") from None
    return found


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
    """YAML loader that reads 1e-3 as a number and refuses duplicate keys."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        if twice := [key for index, key in enumerate(keys) if key in keys[:index]]:
            raise yaml.YAMLError(f"the key '{twice[0]}' occurs twice")
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"),
                              list("-+0123456789"))


def _profile_path(name, folder=None):
    """File of a profile: from `folder` if it is there, else packaged."""
    for place in (folder, PROFILES):
        if place and (path := Path(place) / f"{name}.yaml").is_file():
            return path
    raise UserError(f"unknown profile '{name}'; {suggestion(name, profiles())}")


def _read(path, seen=()):
    """The mapping in a YAML file, merged into those of its bases."""
    try:
        value = yaml.load(Path(path).read_text(encoding="utf-8"), _Loader)
    except OSError:
        raise UserError(f"{path} cannot be read; write it with `anl profile small`") from None
    except (yaml.YAMLError, ValueError, TypeError) as problem:
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


def _merge(base, change, deep=True):
    """`change` merged into `base`. A mapping that `change` sets to null is removed; an experiment is replaced as a whole."""
    merged = dict(base)
    for key, value in change.items():
        if value is None and isinstance(base.get(key), dict):
            del merged[key]
        elif deep and isinstance(value, dict) and isinstance(base.get(key), dict):
            merged[key] = _merge(base[key], value, deep=key != "experiments")
        else:
            merged[key] = value
    return merged


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
        here[last] = copy.deepcopy(value)  # a later key may be stored inside the value
    return whole


def _build(value, origin):
    """A Config. Raises UserError with one readable line for the first error of pydantic."""
    try:
        return Config.model_validate(value)
    except ValidationError as problem:
        error = problem.errors(include_url=False)[0]
    # pydantic names the alternative of a type, such as literal['raw'], after the key
    key, given = ".".join(str(part) for part in error["loc"] if "[" not in str(part)), error["input"]
    if error["type"] == "missing":
        raise UserError(f"{origin}: the key '{key}' is missing; add it")
    if error["type"] == "value_error":  # of a section: "key|problem"
        inner, _, text = str(error["ctx"]["error"]).rpartition("|")
        key = ".".join(part for part in (key, inner) if part)
    else:
        text = error["msg"].replace("Input should", "must").replace("a valid integer", "a whole number")
        text = f"{text[0].lower()}{text[1:]}, not {reason(repr(given), 60)}"
    if error["type"] == "literal_error" and isinstance(given, str):
        text += "; " + suggestion(given, re.findall(r"'([^']*)'", error["ctx"]["expected"]))
    raise UserError(f"{origin}: '{key}' {text}" if key else f"{origin}: {text}")


def _variant_name(config, changes):
    """Name of a variant from the changes that have an effect, such as `t=1`, `plain` or `plain,pairs=60`."""
    settings, without, parts = config.model_dump(), config._without_effect(), []
    for key in changes:  # an entry that a variant removes is None
        value = functools.reduce(lambda place, name: place.get(name) if isinstance(place, dict) else None, key.split("."), settings)
        if isinstance(value, dict):
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
    """A value as text in a variant's name, without rounding: 0.3, 1 (also for 1.0), ddpm+flow."""
    if isinstance(value, list):
        return "+".join(_text(item) for item in value)
    if isinstance(value, float):
        return repr(value).removesuffix(".0")
    return str(value).lower() if isinstance(value, bool) else str(value).replace("/", "_")
