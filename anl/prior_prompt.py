"""The empty prompt of a text-conditioned prior: computed once, or read from a file, so that no text encoder stays."""

from pathlib import Path

import torch
from safetensors import safe_open

from anl.errors import UserError

FILE = "empty_prompt.safetensors"
MEND = f"or put the embedding of the empty prompt into {FILE} (tensor `embedding`, shape (1, L, D))"


def empty_prompt(folder, name, width):
    """Embedding of the empty prompt, float32 (1, L, D) with D = `width`.

    Read from `empty_prompt.safetensors` in `folder` where there is one (so that no text encoder need be fetched), else
    computed with the folder's CLIP tokenizer and text encoder, which are dropped afterwards.
    name: what messages call the folder. Raises UserError if neither can be had or the width is another.
    """
    folder = Path(folder)
    embedding = _stored(folder / FILE, f"{name}/{FILE}") if (folder / FILE).is_file() else _computed(folder, name)
    if embedding.ndim != 3 or len(embedding) != 1 or embedding.shape[2] != width:
        raise UserError(f"{name}: the empty prompt's embedding has shape {tuple(embedding.shape)}, but the unet's "
                        f"cross_attention_dim asks for (1, L, {width}); get both from one place")
    if not torch.isfinite(embedding).all():
        raise UserError(f"{name}: the empty prompt's embedding holds NaN or infinite numbers; get the files again")
    return embedding.float().contiguous()


def _stored(path, name):
    try:
        with safe_open(path, framework="pt") as file:
            return file.get_tensor("embedding")
    except Exception as problem:  # damaged, or no tensor of that name
        raise UserError(f"{name} holds no tensor `embedding` ({str(problem).splitlines()[0]}); write it again") from None


def _computed(folder, name):
    for part in ("text_encoder", "tokenizer"):
        if not (folder / part).is_dir():
            raise UserError(f"{name}: {part}/ is missing; get the whole folder, {MEND}")
    if not list((folder / "text_encoder").glob("model*.safetensors")):
        raise UserError(f"{name}/text_encoder holds no model.safetensors; convert a copy you trust with transformers' "
                        f"save_pretrained(..., safe_serialization=True), {MEND}")
    from transformers import CLIPTextModel, CLIPTokenizer  # not above: only latent priors need it

    try:
        tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
        encoder, info = CLIPTextModel.from_pretrained(folder / "text_encoder", use_safetensors=True,
                                                      local_files_only=True, output_loading_info=True)
    except Exception as problem:  # transformers reads many files, each with errors of its own
        raise UserError(f"{name}: the tokenizer or the text encoder is no CLIP that transformers can read "
                        f"({type(problem).__name__}: {(str(problem).splitlines() or [''])[0][:160]}); get them again, "
                        f"{MEND}") from None
    if missing := sorted(info["missing_keys"]):
        raise UserError(f"{name}/text_encoder: the weights lack {missing[0]}; get it again, {MEND}")
    tokens = tokenizer("", padding="max_length", max_length=tokenizer.model_max_length, truncation=True,
                       return_tensors="pt").input_ids
    with torch.no_grad():
        return encoder.eval().float()(tokens)[0]  # (1, L) -> (1, L, D)
