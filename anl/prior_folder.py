"""Where a prior comes from: a diffusers folder, or a hub id with a pinned commit, checked before anything uses it.

A pixel prior is `unet/` (UNet2DModel) and `scheduler/`; a latent one is `unet/` (UNet2DConditionModel), `scheduler/`,
`vae/` (AutoencoderKL) and the empty prompt: `empty_prompt.safetensors` (tensor `embedding`, (1, L, D)), or `tokenizer/`
and `text_encoder/` where transformers is installed. Weights are safetensors; a pickle is never opened.
"""

import importlib.util
import json
import re
from pathlib import Path

import diffusers
import torch
from safetensors.torch import load_file

from anl import prior_presets
from anl.errors import UserError

UNETS = ("UNet2DModel", "UNet2DConditionModel")
PARTS = ("unet", "scheduler", "vae", "tokenizer", "text_encoder")
PROMPT = "empty_prompt.safetensors"
MEND = "get it with `dvc pull prior` or make it with `anl prior`"


def find(source):
    """The folder of a prior: `source` itself, or what a preset's name or `owner/name@commit` fetches from the hub."""
    folder = Path(source)
    if folder.is_dir():
        return folder
    name = str(source)
    if name in prior_presets.PRESETS:
        preset = prior_presets.PRESETS[name]
        if preset.revision is None:
            raise UserError(f"preset {name}: its commit could not be looked up when this was written; look it up at the "
                            f"hub and ask for {preset.hub_id}@<40 hex digits>")
        name = f"{preset.hub_id}@{preset.revision}"
    hub_id, at, revision = name.partition("@")
    if at and re.fullmatch(r"[\w.-]+/[\w.-]+", hub_id):
        if not re.fullmatch(r"[0-9a-f]{40}", revision):
            raise UserError(f"{name}: '{revision}' is no commit of 40 hex digits, and a branch may change under a result")
        return fetch(hub_id, revision)
    raise UserError(f"{name} holds no diffusion prior (there is no such folder); {MEND}. From the hub, ask for "
                    "owner/name@<commit of 40 hex digits>")


def fetch(hub_id, revision):
    """Download the parts of a prior from the hub into its cache; returns the folder. Never fetches a pickle."""
    from huggingface_hub import snapshot_download

    patterns = [f"{part}/*.{ending}" for part in PARTS for ending in ("json", "txt", "safetensors")]
    try:
        return Path(snapshot_download(hub_id, revision=revision, allow_patterns=[*patterns, PROMPT]))
    except Exception as problem:  # the hub's client raises its own kinds, its transport's and the system's
        reason = str(problem).strip().splitlines()[0] if str(problem).strip() else type(problem).__name__
        raise UserError(f"{hub_id} at {revision[:12]} cannot be fetched from the hub ({reason}); check the name, the commit "
                        "and the connection (HF_HUB_OFFLINE must not be 1), or download its folder elsewhere and give its "
                        "path") from None


def read_folder(folder):
    """What NoisePrior is made of: dict of unet, scheduler, vae and prompt (both None for a pixel prior).

    Raises UserError, naming the part and the mend, on what is missing, of another class, not finite, not fitting its
    configuration, or not usable without a condition.
    """
    folder = Path(folder)
    config = _config(folder, "unet")
    kind = config.get("_class_name")
    if kind not in UNETS:
        raise UserError(f"{folder}/unet is a {kind}; a prior must be one of {', '.join(UNETS)}")
    for key in ("num_class_embeds", "class_embed_type", "addition_embed_type"):
        if config.get(key) is not None:
            raise UserError(f"{folder}/unet needs a condition beside the image ({key} is {config[key]!r}); a prior must do "
                            "without one")
    scheduler = _scheduler(folder)
    unet = _weights(folder, "unet", getattr(diffusers, kind))
    channels, outputs = unet.config.in_channels, unet.config.out_channels
    if outputs not in (channels, 2 * channels):
        raise UserError(f"{folder}/unet has {outputs} outputs for {channels} inputs; a prior predicts one noise per input, "
                        "with or without its variance")
    if kind == "UNet2DModel":
        if channels != 3:
            raise UserError(f"{folder}/unet takes {channels} channels; a prior of this class works on the 3 of an RGB image")
        return {"unet": unet, "scheduler": scheduler, "vae": None, "prompt": None}
    vae = _weights(folder, "vae", diffusers.AutoencoderKL)
    if vae.config.latent_channels != channels:
        raise UserError(f"{folder}/unet takes {channels} channels and {folder}/vae makes {vae.config.latent_channels}; they "
                        "do not belong together, or the prior needs more than the image")
    prompt = _empty_prompt(folder)
    wanted = unet.config.cross_attention_dim
    if prompt.ndim != 3 or prompt.shape[-1] != wanted:
        raise UserError(f"{folder}: the empty prompt has the shape {tuple(prompt.shape)}, and unet/ reads (1, L, {wanted})")
    return {"unet": unet, "scheduler": scheduler, "vae": vae, "prompt": prompt.float()}


def _config(folder, part, name="config.json"):
    path = folder / part / name
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{folder} holds no diffusion prior ({part}/{name} is missing); {MEND}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as problem:
        raise UserError(f"{path} is not JSON ({problem}); fetch it again") from None


def _scheduler(folder):
    name = _config(folder, "scheduler", "scheduler_config.json").get("_class_name")
    kind = getattr(diffusers, str(name), None)
    if kind is None or not hasattr(kind, "from_pretrained"):
        raise UserError(f"{folder}/scheduler is a {name}, which diffusers {diffusers.__version__} does not know")
    scheduler = kind.from_pretrained(folder / "scheduler", local_files_only=True)
    if not isinstance(getattr(scheduler, "alphas_cumprod", None), torch.Tensor):
        raise UserError(f"{folder}/scheduler is a {name}, which has no alphas_cumprod; a prior needs a schedule of "
                        "discrete steps (flow matching has none)")
    return scheduler


def _weights(folder, part, kind):
    found = _config(folder, part).get("_class_name")
    if found != kind.__name__:
        raise UserError(f"{folder}/{part} is a {found}, not a {kind.__name__}")
    files = [path.name for path in (folder / part).iterdir()]
    if not any(name.endswith(".safetensors") for name in files):
        pickles = [name for name in files if name.endswith((".bin", ".pt", ".ckpt"))]
        what = f"only {pickles[0]}, a pickle, which can run code" if pickles else "no weights"
        raise UserError(f"{folder}/{part} holds {what}; save it as safetensors (save_pretrained in diffusers, where you "
                        "trust the file)")
    try:
        model, report = kind.from_pretrained(folder / part, use_safetensors=True, local_files_only=True,
                                             output_loading_info=True)
    except Exception as problem:  # diffusers, safetensors and torch each raise kinds of their own
        reason = " ".join(str(problem).split())[:200]
        raise UserError(f"{folder}/{part} cannot be read ({reason}); fetch it again") from None
    # diffusers fills what it does not find with random numbers
    wrong = [key for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") for key in report.get(kind, [])]
    if wrong:
        raise UserError(f"{folder}/{part}: the weights do not fit its config.json ({len(wrong)} of them, {wrong[0]} first); "
                        "fetch both again")
    for name, value in model.state_dict().items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise UserError(f"{folder}/{part}: the weight {name} holds numbers that are not finite; fetch it again")
    return model


def _empty_prompt(folder):
    path = folder / PROMPT
    if path.is_file():
        try:
            return load_file(path)["embedding"]
        except Exception as problem:
            raise UserError(f"{path} holds no tensor `embedding` ({problem}); make it again from the text encoder") from None
    missing = [part for part in ("tokenizer", "text_encoder") if not (folder / part).is_dir()]
    if missing:
        raise UserError(f"{folder} holds neither {PROMPT} nor {missing[0]}/, and a latent prior is asked with the empty "
                        "prompt")
    if importlib.util.find_spec("transformers") is None:
        raise UserError(f"{folder}: the empty prompt is read by text_encoder/, and that needs `pip install transformers`; "
                        f"or put its embedding into {PROMPT} (tensor `embedding`, (1, L, D))")
    from transformers import CLIPTextModel, CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    encoder = CLIPTextModel.from_pretrained(folder / "text_encoder", use_safetensors=True, local_files_only=True).eval()
    tokens = tokenizer("", padding="max_length", max_length=tokenizer.model_max_length, return_tensors="pt")
    with torch.no_grad():
        return encoder(tokens.input_ids)[0]
