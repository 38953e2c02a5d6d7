"""The parts of a diffusers folder, read and checked before anything is computed with them.

diffusers itself fills a tensor that is missing in the file with random numbers and goes on; here that is an error. Only
safetensors are read: a pickle can run code when it is loaded.
"""

import contextlib
import json
from pathlib import Path

import diffusers
import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL, SchedulerMixin, UNet2DConditionModel, UNet2DModel
from safetensors import safe_open

from anl.errors import UserError
from anl.prior_prompt import empty_prompt

UNETS = {"UNet2DModel": UNet2DModel, "UNet2DConditionModel": UNet2DConditionModel}
PREDICTIONS = ("epsilon", "v_prediction", "sample")
STEM = "diffusion_pytorch_model"
PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")
CONVERT = "convert a copy you trust: load it with diffusers, save_pretrained(..., safe_serialization=True)"
CONDITIONS = ("class_embed_type", "num_class_embeds", "addition_embed_type", "encoder_hid_dim_type")


def read(folder, name):
    """(unet, scheduler, vae or None, empty prompt's embedding or None) of the diffusers folder `folder`.

    name: what messages call the folder. The models are float32 on the CPU; the embedding is float32 (1, L, D). Older
    repositories keep the UNet and the scheduler's config at the top instead of in `unet/` and `scheduler/`.
    Raises UserError, one line, at the first thing that is missing, damaged, unsupported or does not fit.
    """
    folder = Path(folder)
    flat = not (folder / "unet").is_dir() and (folder / "config.json").is_file()
    at = {part: (folder, name) if flat and not (folder / part).is_dir() else (folder / part, f"{name}/{part}")
          for part in ("unet", "scheduler")}
    for part, (path, _) in at.items():
        if not path.is_dir():
            raise UserError(f"{name} holds no diffusion prior: {part}/ is missing; get the default one with `dvc pull prior` "
                            "or make it with `anl prior`, or name a folder that diffusers saved")
    config = _config(at["unet"][0] / "config.json", f"{at['unet'][1]}/config.json")
    found = config.get("_class_name")
    if found not in UNETS:
        raise UserError(f"{at['unet'][1]}/config.json is of class {found}; a prior is one of {', '.join(UNETS)}")
    latent = found == "UNet2DConditionModel"
    scheduler = _scheduler(*at["scheduler"])
    vae = _vae(folder, name, latent)
    _check_unet(config, at["unet"][1], vae)
    prompt = empty_prompt(folder, name, config["cross_attention_dim"]) if latent else None
    return _model(UNETS[found], *at["unet"], config), scheduler, vae, prompt


def _config(path, name):
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{name} is missing; get the whole folder, as diffusers' save_pretrained writes it") from None
    except (ValueError, OSError) as problem:
        raise UserError(f"{name} cannot be read as JSON ({problem}); get it again") from None
    if not isinstance(value, dict):
        raise UserError(f"{name} is no JSON mapping; get it again")
    return value


def _scheduler(folder, name):
    name = f"{name}/scheduler_config.json"
    config = _config(folder / "scheduler_config.json", name)
    made = getattr(diffusers, str(config.get("_class_name")), None)
    if not (isinstance(made, type) and issubclass(made, SchedulerMixin)):
        raise UserError(f"{name} names {config.get('_class_name')}, which is no scheduler of diffusers "
                        f"{diffusers.__version__}; name one that has the same schedule")
    try:
        with _quiet():
            scheduler = made.from_config(config)
    except Exception as problem:  # each scheduler checks its own settings in its own way
        raise UserError(f"{name} does not make a {made.__name__} ({_short(problem)}); mend it") from None
    if not hasattr(scheduler, "alphas_cumprod") or getattr(scheduler.config, "use_flow_sigmas", False):
        raise UserError(f"{name}: {made.__name__} has no alphas_cumprod, as flow matching and sigma-only models; the steps "
                        "t of this project need a DDPM-like schedule")
    prediction = getattr(scheduler.config, "prediction_type", "epsilon")
    if prediction not in PREDICTIONS:
        raise UserError(f"{name}: prediction_type '{prediction}' is unknown; it must be one of {', '.join(PREDICTIONS)}")
    alphas = torch.as_tensor(scheduler.alphas_cumprod).double()
    lowest_fits = (alphas > 0) if prediction == "epsilon" else (alphas >= 0)
    if len(alphas) != scheduler.config.num_train_timesteps or not bool((lowest_fits & (alphas < 1)).all()):
        raise UserError(f"{name}: the schedule's alphas_cumprod are not {scheduler.config.num_train_timesteps} numbers "
                        "between 0 and 1; mend its betas")
    return scheduler


def _vae(folder, name, latent):
    strange = [part for part in ("vae", "vqvae") if (folder / part).is_dir()]
    if not latent:
        if strange:
            raise UserError(f"{name} has {strange[0]}/ beside a UNet2DModel: it denoises latents without a prompt, which is "
                            "not supported; a latent prior is AutoencoderKL with UNet2DConditionModel")
        return None
    if "vae" not in strange:
        raise UserError(f"{name}: vae/ is missing, and UNet2DConditionModel is supported on the latents of an AutoencoderKL "
                        "only; get the whole folder")
    path, name = folder / "vae", f"{name}/vae"
    config = _config(path / "config.json", f"{name}/config.json")
    if config.get("_class_name") != "AutoencoderKL":
        raise UserError(f"{name}/config.json is of class {config.get('_class_name')}; a latent prior needs AutoencoderKL")
    if config.get("latents_mean") is not None or config.get("latents_std") is not None:
        raise UserError(f"{name}/config.json standardises its latents (latents_mean, latents_std), which is not supported")
    if config.get("in_channels", 3) != 3:
        raise UserError(f"{name}/config.json: in_channels is {config['in_channels']}; images have 3")
    return _model(AutoencoderKL, path, name, config)


def _check_unet(config, name, vae):
    """Raise UserError if the UNet of `config` asks for more than a noised image (or latent), a step and a prompt."""
    name = f"{name}/config.json"
    for key in CONDITIONS:
        if config.get(key) is not None:
            raise UserError(f"{name}: {key} is {config[key]}; only unconditional models and the empty prompt are supported")
    wanted, whose = (3, "an image has") if vae is None else (vae.config.latent_channels, "its vae's latents have")
    inside = config.get("in_channels", 3 if vae is None else 4)
    outside = config.get("out_channels", 3 if vae is None else 4)
    if inside != wanted:
        raise UserError(f"{name}: in_channels is {inside}, but {whose} {wanted} channels; another kind of model "
                        "(inpainting, depth, super-resolution) cannot be the prior")
    if outside not in (inside, 2 * inside):
        raise UserError(f"{name}: out_channels is {outside}; it must be {inside}, or {2 * inside} with learned variances")
    if vae is not None and not isinstance(config.setdefault("cross_attention_dim", 1280), int):
        raise UserError(f"{name}: cross_attention_dim is {config['cross_attention_dim']}; one number is supported")


def _model(made, folder, name, config):
    """The model of class `made` in `folder`, float32, every tensor of it from the file. Raises UserError otherwise."""
    _check_weights(folder, name)
    with _quiet():
        try:
            with init_empty_weights():
                made.from_config(config)
        except Exception as problem:  # whatever an unknown block or a wrong type raises inside diffusers
            raise UserError(f"{name}/config.json does not make a {made.__name__} ({_short(problem)}); mend it") from None
        try:
            model, info = made.from_pretrained(folder, use_safetensors=True, local_files_only=True,
                                               output_loading_info=True)
        except Exception as problem:
            raise UserError(f"{name}: the weights do not fit config.json ({_short(problem)}); get both from one "
                            "place") from None
    for kind, what in (("missing", "lack"), ("unexpected", "hold, beyond the config,"), ("mismatched", "misfit in")):
        if keys := sorted(str(key) for key in info[f"{kind}_keys"]):
            raise UserError(f"{name}: the weights do not fit config.json: they {what} {keys[0]}"
                            f"{f' and {len(keys) - 1} more' if keys[1:] else ''}; get both from one place")
    for key, value in model.state_dict().items():
        if not torch.isfinite(value).all():
            raise UserError(f"{name}: the weight {key} holds NaN or infinite numbers; get the file again")
    return model.float()


def _check_weights(folder, name):
    """Raise UserError unless `folder` has readable safetensors, whole or as the shards that an index lists."""
    index = folder / f"{STEM}.safetensors.index.json"
    files = [f"{STEM}.safetensors"]
    if index.is_file():
        shards = _config(index, f"{name}/{index.name}").get("weight_map")
        if not isinstance(shards, dict) or not shards:
            raise UserError(f"{name}/{index.name} lists no weights; get it again")
        files = sorted({str(shard) for shard in shards.values()})
    for file in files:
        if not (folder / file).is_file():
            pickles = [path.name for path in sorted(folder.glob("*")) if path.suffix in PICKLES]
            if pickles:
                raise UserError(f"{name} holds its weights as a pickle ({pickles[0]}), which can run code when it is read; "
                                f"{CONVERT}")
            raise UserError(f"{name}/{file} is missing: no weights to load; get the whole folder, and if its source has a "
                            f"pickle only (none is downloaded here), {CONVERT}")
        try:
            with safe_open(folder / file, framework="pt") as stream:
                stream.keys()
        except Exception as problem:  # safetensors has errors of its own
            raise UserError(f"{name}/{file} cannot be read ({_short(problem)}); it is damaged or cut off: get it "
                            "again") from None


@contextlib.contextmanager
def _quiet():
    """diffusers' warnings off: what they warn of is an error here, and a user reads one line, not two."""
    before = diffusers.logging.get_verbosity()
    diffusers.logging.set_verbosity(diffusers.logging.CRITICAL)
    try:
        yield
    finally:
        diffusers.logging.set_verbosity(before)


def _short(problem):
    """The first line of an exception, without diffusers' advice to load mismatched weights anyhow."""
    lines = str(problem).strip().splitlines() or [""]
    text = lines[1].strip() if lines[0].startswith("Error(s) in loading") and lines[1:] else lines[0]
    return f"{type(problem).__name__}: {text.split('. If you')[0][:200]}"
