"""Tiny diffusion models, saved by diffusers itself, for the tests of the prior."""

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDPMPipeline, DDPMScheduler, PNDMScheduler, UNet2DConditionModel, UNet2DModel
from safetensors.torch import save_file

PROMPT = (5, 8)  # tokens and width of the empty prompt's embedding


def unet(channels=3, **config):
    torch.manual_seed(0)
    return UNet2DModel(**{"sample_size": 16, "in_channels": channels, "out_channels": channels, "layers_per_block": 1,
                          "block_out_channels": (8, 8), "norm_num_groups": 4, "add_attention": False,
                          "down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2, **config})


def conditional_unet(**config):
    torch.manual_seed(1)
    return UNet2DConditionModel(**{"sample_size": 8, "in_channels": 4, "out_channels": 4, "layers_per_block": 1,
                                   "block_out_channels": (8, 8), "norm_num_groups": 4, "attention_head_dim": 4,
                                   "cross_attention_dim": PROMPT[1],
                                   "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
                                   "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"), **config})


def vae(**config):
    torch.manual_seed(2)
    return AutoencoderKL(**{"block_out_channels": (8, 8), "norm_num_groups": 4, "latent_channels": 4,
                            "down_block_types": ("DownEncoderBlock2D",) * 2,
                            "up_block_types": ("UpDecoderBlock2D",) * 2, **config})


def pixel_folder(folder, prediction_type="epsilon", **config):
    """The layout of DDPMPipeline.save_pretrained; returns the folder."""
    DDPMPipeline(unet(**config), DDPMScheduler(prediction_type=prediction_type)).save_pretrained(folder)
    return Path(folder)


def latent_folder(folder, prediction_type="epsilon", vae_config=None, prompt=True, **config):
    """The layout of Stable Diffusion, whose scheduler has `steps_offset: 1`; `prompt`: with the stored embedding."""
    folder = Path(folder)
    conditional_unet(**config).save_pretrained(folder / "unet")
    vae(**vae_config or {}).save_pretrained(folder / "vae")
    PNDMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1,
                  prediction_type=prediction_type).save_pretrained(folder / "scheduler")
    if prompt:
        save_file({"embedding": torch.randn((1, *PROMPT), generator=torch.Generator().manual_seed(3))},
                  folder / "empty_prompt.safetensors")
    return folder


def text_encoder(folder):
    """A CLIP text encoder and tokenizer of a dozen tokens."""
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(4)
    config = CLIPTextConfig(vocab_size=12, hidden_size=PROMPT[1], intermediate_size=16, num_hidden_layers=1,
                            num_attention_heads=2, max_position_embeddings=PROMPT[0], bos_token_id=10, eos_token_id=11)
    CLIPTextModel(config).save_pretrained(folder / "text_encoder")
    tokens = ["a", "b", "n", "o", "i", "s", "a</w>", "b</w>", "n</w>", "ab</w>", "<|startoftext|>", "<|endoftext|>"]
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer/vocab.json").write_text(json.dumps({token: index for index, token in enumerate(tokens)}))
    (folder / "tokenizer/merges.txt").write_text("#version: 0.2\na b</w>\n")
    (folder / "tokenizer/tokenizer_config.json").write_text(json.dumps(
        {"tokenizer_class": "CLIPTokenizer", "model_max_length": PROMPT[0], "bos_token": "<|startoftext|>",
         "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}))


def edit(path, **changes):
    """Change keys of a JSON file; None removes a key."""
    value = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: item for key, item in value.items() if item is not None}))
