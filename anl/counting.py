"""Operations, parameters and memory of large models, counted without a weight being loaded or a multiplication done.

Models are built on torch's `meta` device, where tensors have shapes and no values.
"""

from pathlib import Path
from typing import NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from anl import detector as detectors
from anl.errors import UserError

# of published priors, as their own config.json has it: the UNet and the autoencoder of Stable Diffusion 1.x
SD1 = ({"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8, "block_out_channels": (320, 640, 1280, 1280),
        "layers_per_block": 2},
       {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "latent_channels": 4,
        "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4})
PRIOR_SHAPES = {"stable-diffusion-1.5": SD1}
TOKENS = 77  # of the empty prompt


class Cost(NamedTuple):
    """Of one image. flops: floating-point operations of a forward pass, a multiply-add being two. parameters: of the model.
    kept: elements that a forward pass keeps for the backward one."""

    flops: int
    parameters: int
    kept: int = 0


def detector_cost(backbone, shape, crop, noise, channels=3, cell=1):
    """Cost of a Detector on crops of `crop` pixels. backbone, shape: anl.paper.settings.Backbone and Detector."""
    with torch.device("meta"):
        model = detectors.Detector(backbone.model, backbone.stride, shape.stem_width, shape.patch, crop, noise=noise,
                                   attention=shape.attention if noise else "none", attention_dim=shape.attention_dim,
                                   noise_channels=channels, noise_factor=cell, branch=shape.branch)
        x = torch.zeros(1, 3, crop, crop)
    kept = {}
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.setdefault(id(tensor), tensor), lambda tensor: tensor):
        model.train()(x)
    own = {id(parameter) for parameter in model.parameters()}
    elements = sum(tensor.numel() for key, tensor in kept.items() if key not in own)
    return Cost(flops_of(lambda: model.eval()(x)), _parameters(model), elements)


def prior_cost(source, crop):
    """(Cost of one call of the prior, its channels, image pixels on a side of one of its cells).

    source: a name of PRIOR_SHAPES, or a diffusers folder. Raises UserError where the model's shape is not known here.
    """
    from diffusers import AutoencoderKL, UNet2DConditionModel, UNet2DModel

    unet_config, vae_config, kind = _shape_of(source)
    with torch.device("meta"):
        unet = (UNet2DConditionModel if kind == "latent" else UNet2DModel).from_config(unet_config)
        vae = AutoencoderKL.from_config(vae_config) if kind == "latent" else None
        cell = 1 if vae is None else 2 ** (len(vae.config.block_out_channels) - 1)
        z = torch.zeros(1, unet.config.in_channels, crop // cell, crop // cell)
        x, time = torch.zeros(1, 3, crop, crop), torch.zeros((), dtype=torch.long)
        prompt = (torch.zeros(1, TOKENS, unet.config.cross_attention_dim),) if vae is not None else ()
    flops = flops_of(lambda: unet.eval()(z, time, *prompt))
    parameters = _parameters(unet)
    if vae is not None:
        encoder = vae.encoder.eval()
        flops += flops_of(lambda: encoder(x))
        parameters += _parameters(encoder)
    return Cost(flops, parameters), unet.config.in_channels, cell


def _shape_of(source):
    from diffusers import UNet2DModel

    if source in PRIOR_SHAPES:
        return *PRIOR_SHAPES[source], "latent"
    folder = Path(source)
    if (folder / "unet/config.json").is_file():
        latent = (folder / "vae/config.json").is_file()
        return (UNet2DModel.load_config(folder / "unet"), UNet2DModel.load_config(folder / "vae") if latent else None,
                "latent" if latent else "pixel")
    raise UserError(f"the shape of prior {source} is not known before it is here; download it, and give its folder as "
                    f"prior.source, or take one of {', '.join(PRIOR_SHAPES)}")


def _parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


@torch.no_grad()
def flops_of(call):
    """Floating-point operations of `call()`."""
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()
