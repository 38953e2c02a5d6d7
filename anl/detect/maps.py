"""What the detector saw, as a picture: its attention and its predicted noise, where it looked."""

import hashlib
from pathlib import Path

import numpy as np
import torch
from matplotlib import colormaps
from PIL import Image

from anl.data.patches import to_tensor
from anl.errors import UserError
from anl.files import whole_file

DIM = 0.35  # brightness of what was not looked at
BLEND = 0.5  # share of the attention's colour over a crop
CLIP = 3  # times the average attention: the brightest colour
LEVELS = 32  # grey levels to a standard deviation of the noise


@torch.inference_mode()
def draw(detector, tiled, pixels):
    """uint8 (H, W', 3): the picture with the attention over each crop, beside it the predicted noise of each crop.

    detector: ImageDetector. tiled: its cut of `pixels`, which are mirrored to a crop's size where smaller. The noise is shown
    with four standard deviations to the range of grey levels. Raises UserError if the detector predicts no noise.
    """
    outputs = [detector.detector(to_tensor(tiled.crops[i:i + 32]).to(detector.device)) for i in range(0, len(tiled.crops), 32)]
    if outputs[0].noise is None or outputs[0].noise.shape[1] != 3:
        raise UserError("this detector predicts no noise to draw; take one trained with noise learning, or leave out --map")
    noise = torch.cat([output.noise.float().cpu() for output in outputs])
    weights = torch.cat([output.map.float().cpu() for output in outputs])
    size = tiled.crops.shape[1]
    seen = (pixels * DIM).astype(np.uint8)
    heard = np.full_like(pixels, 128)
    relative = weights * weights[0].numel()  # 1: as much as every other place of its crop
    for crop, place, grain, share in zip(tiled.crops, tiled.places, noise, relative, strict=True):
        top, left = place
        heat = colormaps["magma"]((share / CLIP).clamp(0, 1).numpy())[..., :3]
        heat = np.asarray(Image.fromarray((heat * 255).astype(np.uint8)).resize((size, size), Image.Resampling.NEAREST))
        seen[top:top + size, left:left + size] = ((1 - BLEND) * crop + BLEND * heat).astype(np.uint8)
        levels = (128 + grain.permute(1, 2, 0).numpy() * LEVELS).clip(0, 255)
        heard[top:top + size, left:left + size] = levels.astype(np.uint8)
    gap = np.full((len(pixels), 8, 3), 255, np.uint8)
    return np.concatenate([seen, gap, heard], axis=1)


def write(folder, path, picture):
    """Write the drawing of the picture at `path` into `folder`; returns the file, whose name no other path shares."""
    name = "".join(c if c.isalnum() or c in "-_." else "_" for c in Path(path).name)[:60]
    mark = hashlib.sha256(str(path).encode("utf-8", "surrogateescape")).hexdigest()[:8]
    target = Path(folder) / f"{name}-{mark}.png"
    with whole_file(target) as temporary:
        Image.fromarray(picture).save(temporary)
    return target
