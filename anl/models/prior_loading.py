"""Find a diffusion prior (folder, preset or hub id), and load and check its parts, from safetensors files only."""

import contextlib
import json
import re
from pathlib import Path
from typing import NamedTuple

import diffusers
import huggingface_hub
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel, UNet2DModel
from safetensors.torch import load_file
from transformers import CLIPTextModel, CLIPTokenizer

from anl.io import UserError, reason

UNETS = {"UNet2DModel": UNet2DModel, "UNet2DConditionModel": UNet2DConditionModel}
PREDICTIONS = ("epsilon", "v_prediction", "sample")
CONDITIONS = ("class_embed_type", "num_class_embeds", "addition_embed_type", "encoder_hid_dim_type")
PROMPT_FILE = "empty_prompt.safetensors"
SCHEME = "hf://"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
COMMIT = re.compile(r"[0-9a-f]{40}")
WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model-*-of-*.safetensors")
# What is downloaded of a repository: no pickles, no half-precision variants, no single-file checkpoints.
PATTERNS = ("model_index.json", "config.json", "scheduler_config.json", PROMPT_FILE, *WEIGHTS,
            "diffusion_pytorch_model.safetensors.index.json", "scheduler/*.json",
            *(f"{part}/{name}" for part in ("unet", "vae") for name in ("*.json", *WEIGHTS)),
            "text_encoder/*.json", "text_encoder/model.safetensors", "text_encoder/model-*-of-*.safetensors",
            "tokenizer/*.json", "tokenizer/*.txt")


class Preset(NamedTuple):
    """A published diffusion model that can serve as the prior."""

    repo: str                   # hub id
    revision: str | None        # full commit; None if we know of none, then the user has to pass one
    trained_on: str
    overlaps: tuple[str, ...]   # benchmarks whose real images are in the training data


PRESETS = {  # written from the hub's pages; none was downloaded by us
    # 32 pixels, Apache-2.0
    "ddpm-cifar10-32": Preset("google/ddpm-cifar10-32", "267b167dc01f0e4e61923ea244e8b988f84deb80", "CIFAR-10",
                              ("cifake",)),
    # 256 pixels, Apache-2.0; the hub's copies of these two hold a pickle only: convert one and pass its folder
    "ddpm-ema-celebahq-256": Preset("google/ddpm-ema-celebahq-256", None, "CelebA-HQ", ("diffusionforensics-celebahq",)),
    "ddpm-ema-bedroom-256": Preset("google/ddpm-ema-bedroom-256", None, "LSUN bedroom",
                                   ("forensynths", "diffusionforensics-lsun")),
    # 256 pixels, MIT; converted with a fork of diffusers: compare its samples with the original's first
    "adm-imagenet-256": Preset("xutongda/adm_imagenet_256x256_unconditional", None, "ImageNet",
                               ("genimage", "tiny-genimage", "diffusionforensics-imagenet", "univfd-imagenet",
                                "openfake")),
    # 512 pixels, CreativeML Open RAIL-M; latent: its autoencoder smooths an image before the UNet reads it. The UNet
    # was trained at t = 1, but its samplers start at t = 2
    "stable-diffusion-1.5": Preset("stable-diffusion-v1-5/stable-diffusion-v1-5",
                                   "451f4fe16113bff5a5d2269ed5ad43b0592e9a14", "LAION", ("univfd-laion", "openfake")),
}


def overlap_warnings(source):
    """Warnings, one sentence each, about benchmarks whose real images the preset `source` was trained on."""
    preset = PRESETS.get(source)
    return [f"The prior {source} was trained on {preset.trained_on}, the source of the real images of {benchmark}: it "
            "may see less noise in them because it knows them, not because they are real."
            for benchmark in (preset.overlaps if preset else ())]


def locate(source, revision=None):
    """Find the folder of a prior; download it if it is on the hub.

    Parameters
    ----------
    source : str or Path
        A diffusers folder, a name in `PRESETS`, or `hf://owner/name`.
    revision : str, optional
        Full commit (40 hex digits). Required for a hub id, optional for a preset.

    Returns
    -------
    (Path, str)
        The folder, and the name that messages use for it.

    Raises
    ------
    UserError
        If the folder does not exist, the commit is missing, or the hub does not deliver the files.
    """
    text = str(source)
    if Path(text).is_dir():
        if revision is not None:
            raise UserError(f"{text} is a folder, which has no revision; remove `revision`")
        return Path(text), text
    if text in PRESETS:
        repo, revision, name = PRESETS[text].repo, revision or PRESETS[text].revision, f"prior {text}"
    elif text.startswith(SCHEME) and HUB_ID.fullmatch(text.removeprefix(SCHEME)):
        repo, name = text.removeprefix(SCHEME), text
    elif text.startswith(SCHEME):
        raise UserError(f"{text} is not a hub id; write {SCHEME}owner/name")
    else:
        hint = f", or for a model of the hub write {SCHEME}{text} and its revision" if HUB_ID.fullmatch(text) else ""
        raise UserError(f"{text} holds no diffusion prior: there is no such folder; get the default prior with `dvc "
                        f"pull prior` or `anl make prior`{hint}; presets are {', '.join(PRESETS)}")
    if not COMMIT.fullmatch(str(revision)):
        raise UserError(f"{name}: revision '{revision}' is not a full commit of {repo}; set revision=<40-hex commit>, "
                        "because a branch can change its weights later")
    try:
        folder = huggingface_hub.snapshot_download(repo, revision=revision, allow_patterns=list(PATTERNS))
    except Exception as problem:  # the hub, the network or the disk
        raise UserError(f"{repo} at {revision[:12]} cannot be downloaded ({reason(problem, 200)}); check the name, the "
                        "commit and your access, or download it on another machine and pass the folder") from None
    return Path(folder), f"{repo}@{revision[:12]}"


def read_prior(folder, name):
    """Load and check the parts of a prior.

    Parameters
    ----------
    folder : path-like
        A folder in diffusers' layout: `unet/` and `scheduler/` (in older repositories their files are in the top folder),
        and for a latent prior `vae/` and either `empty_prompt.safetensors` (tensor `embedding`, (1, L, D)) or
        `text_encoder/` and `tokenizer/` (CLIP).
    name : str
        The folder's name in error messages.

    Returns
    -------
    (unet, scheduler, vae or None, prompt or None)
        The last two are None for a pixel prior.

    Raises
    ------
    UserError
        At the first part that is missing, damaged or unsupported.
    """
    folder = Path(folder)
    flat = not (folder / "unet").is_dir() and (folder / "config.json").is_file()
    places = {part: (folder, name) if flat and not (folder / part).is_dir() else (folder / part, f"{name}/{part}")
              for part in ("unet", "scheduler")}
    for part, (path, _) in places.items():
        if not path.is_dir():
            raise UserError(f"{name} holds no diffusion prior: {part}/ is missing; get the default prior with "
                            "`dvc pull prior` or `anl make prior`, or name a folder that diffusers saved")
    place, unet_name = places["unet"]
    config = _read_config(place / "config.json", f"{unet_name}/config.json")
    found = config.get("_class_name")
    if found not in UNETS:
        raise UserError(f"{unet_name}/config.json has class {found}; a prior is one of {', '.join(UNETS)}")
    scheduler = _read_scheduler(*places["scheduler"])
    vae = _read_vae(folder, name, found == "UNet2DConditionModel")
    width = _check_unet(config, f"{unet_name}/config.json", vae)
    prompt = None if vae is None else read_prompt(folder, name, width)
    return load_weights(UNETS[found], place, unet_name), scheduler, vae, prompt


def _read_config(path, name):
    """The JSON object in `path`. Raises UserError, naming it `name`, if there is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{name} is missing; get the whole folder, as diffusers' save_pretrained writes it") from None
    except (ValueError, OSError) as problem:
        raise UserError(f"{name} cannot be read as JSON ({reason(problem)}); get it again") from None
    if not isinstance(value, dict):
        raise UserError(f"{name} is not a JSON object; get it again")
    return value


def load_weights(model_class, folder, name):
    """Load a diffusers model in eval mode and float32, all weights from safetensors files.

    diffusers itself initialises missing weights at random, and reads pickles, which can run code. Here both raise
    UserError, and so do files that are missing, damaged, or of another class.
    """
    folder = Path(folder)
    found = _read_config(folder / "config.json", f"{name}/config.json").get("_class_name")
    if found != model_class.__name__:
        raise UserError(f"{name}/config.json has class {found}, not {model_class.__name__}; use the folder of such a "
                        "model")
    if not list(folder.glob("*.safetensors")):
        raise UserError(f"{name}: {WEIGHTS[0]} is missing, and pickles are never opened; get it, or convert a copy you "
                        "trust: load it with diffusers, save_pretrained(..., safe_serialization=True)")
    try:
        with _quiet():
            model, info = model_class.from_pretrained(folder, use_safetensors=True, local_files_only=True,
                                                      torch_dtype=torch.float32, output_loading_info=True)
    except Exception as problem:  # diffusers, safetensors and torch raise many types here
        raise UserError(f"{name}: the weights or config.json are damaged or do not fit each other "
                        f"({reason(problem, 240)}); get both from one place") from None
    for kind in ("missing", "unexpected"):
        if keys := sorted(info[f"{kind}_keys"]):
            raise UserError(f"{name}: the weights do not fit config.json: {len(keys)} {kind}, first {keys[0]}; get "
                            "both from one place")
    for key, value in model.state_dict().items():
        if not torch.isfinite(value).all():
            raise UserError(f"{name}: the weight {key} holds NaN or infinite numbers; get the file again")
    return model.eval()


@contextlib.contextmanager
def _quiet():
    """Silence diffusers' warnings, because the same problems are reported here as errors of one line."""
    before = diffusers.logging.get_verbosity()
    diffusers.logging.set_verbosity(diffusers.logging.CRITICAL)
    try:
        yield
    finally:
        diffusers.logging.set_verbosity(before)


def _read_scheduler(folder, name):
    name = f"{name}/scheduler_config.json"
    config = _read_config(folder / "scheduler_config.json", name)
    try:
        with _quiet():
            scheduler = getattr(diffusers, str(config.get("_class_name"))).from_config(config)
        alphas, steps = scheduler.alphas_cumprod.double(), scheduler.config.num_train_timesteps
    except Exception as problem:  # the class is unknown or has no schedule, or its own checks fail
        raise UserError(f"{name} configures no schedule with alphas_cumprod ({reason(problem)}); correct it, or use a "
                        "model with a DDPM-like schedule") from None
    prediction = getattr(scheduler.config, "prediction_type", "epsilon")
    if prediction not in PREDICTIONS or getattr(scheduler.config, "use_flow_sigmas", False):
        raise UserError(f"{name}: prediction_type '{prediction}' is not supported, nor are flow sigmas; it must be one "
                        f"of {', '.join(PREDICTIONS)}")
    positive = (alphas > 0) if prediction == "epsilon" else (alphas >= 0)
    if len(alphas) != steps or not bool((positive & (alphas < 1)).all()):
        raise UserError(f"{name}: alphas_cumprod are not {steps} numbers between 0 and 1; correct the betas")
    return scheduler


def _read_vae(folder, name, latent):
    if not latent:
        if extra := [part for part in ("vae", "vqvae") if (folder / part).is_dir()]:
            raise UserError(f"{name} has {extra[0]}/ next to a UNet2DModel: unconditional latent diffusion is not "
                            "supported; use UNet2DConditionModel with AutoencoderKL")
        return None
    config = _read_config(folder / "vae/config.json", f"{name}/vae/config.json")
    if config.get("latents_mean") is not None or config.get("latents_std") is not None:
        raise UserError(f"{name}/vae/config.json standardises its latents (latents_mean, latents_std), which is not "
                        "supported; use another model")
    if config.get("in_channels", 3) != 3:
        raise UserError(f"{name}/vae/config.json: in_channels is {config['in_channels']}; images have 3")
    return load_weights(AutoencoderKL, folder / "vae", f"{name}/vae")


def _check_unet(config, name, vae):
    """The width of the prompt's embedding. UserError if the UNet has inputs besides noised z, timestep and prompt."""
    for key in CONDITIONS:
        if config.get(key) is not None:
            raise UserError(f"{name}: {key} is {config[key]}; only unconditional models, and text models with the "
                            "empty prompt, are supported")
    channels, expected = config.get("in_channels"), 3 if vae is None else vae.config.latent_channels
    if channels != expected:
        raise UserError(f"{name}: in_channels is {channels}, but its images or latents have {expected} channels; "
                        "another kind of model (inpainting, depth, super-resolution) cannot be the prior")
    if config.get("out_channels") not in (channels, 2 * channels):
        raise UserError(f"{name}: out_channels is {config.get('out_channels')}; it must be {channels}, or "
                        f"{2 * channels} with learned variances")
    width = config.get("cross_attention_dim", 1280)
    if vae is not None and not isinstance(width, int):
        raise UserError(f"{name}: cross_attention_dim is {width}; one number is supported")
    return width


def read_prompt(folder, name, width):
    """The embedding of the empty prompt, float32 (1, L, `width`), read from its file or computed by the text encoder."""
    path = Path(folder) / PROMPT_FILE
    if path.is_file():
        try:
            embedding = load_file(path)["embedding"]
        except Exception as problem:  # damaged, or no tensor of that name
            raise UserError(f"{name}/{PROMPT_FILE} holds no tensor `embedding` ({reason(problem)}); write it "
                            "again") from None
    else:
        embedding = _encode_empty_prompt(Path(folder), name)
    if embedding.ndim != 3 or len(embedding) != 1 or embedding.shape[2] != width or not embedding.isfinite().all():
        raise UserError(f"{name}: the empty prompt's embedding must be (1, L, {width}), as the UNet's cross_attention_dim "
                        f"says, and finite, and has shape {tuple(embedding.shape)}; get both from one place")
    return embedding.float().contiguous()


@torch.no_grad()
def _encode_empty_prompt(folder, name):
    instead = f"or put the empty prompt's embedding into {PROMPT_FILE} (tensor `embedding`, (1, L, D))"
    for part, files in (("tokenizer", "*.json"), ("text_encoder", "model*.safetensors")):
        if not list((folder / part).glob(files)):
            raise UserError(f"{name}: {part}/{files} is missing; get the whole folder, with weights as safetensors, "
                            f"{instead}")
    try:
        tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
        encoder, info = CLIPTextModel.from_pretrained(folder / "text_encoder", use_safetensors=True,
                                                      local_files_only=True, output_loading_info=True)
    except Exception as problem:  # transformers reads many files, each with its own errors
        raise UserError(f"{name}: tokenizer or text encoder is no CLIP model ({reason(problem)}); get them again, "
                        f"{instead}") from None
    if missing := sorted(info["missing_keys"]):
        raise UserError(f"{name}/text_encoder: the weights lack {missing[0]}; get it again, {instead}")
    tokens = tokenizer("", padding="max_length", max_length=tokenizer.model_max_length, truncation=True,
                       return_tensors="pt")
    return encoder.eval().float()(tokens.input_ids)[0]  # (1, L) -> (1, L, D)
