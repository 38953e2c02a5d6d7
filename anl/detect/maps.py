"""What the detector saw, as a picture: where it looked, its attention there, and the noise that it predicted there.

Three panels side by side. A large picture is looked at in crops that would be specks in it, so the crops are drawn enlarged,
in the order in which they lie.
"""

import hashlib
from pathlib import Path

import numpy as np
import torch
from matplotlib import colormaps
from PIL import Image, ImageDraw, ImageFont

from anl.data.patches import to_tensor
from anl.errors import UserError
from anl.files import whole_file

DIM = 0.35  # brightness of what was not looked at
BLEND = 0.5  # share of the attention's colour over a crop
CLIP = 3  # times the average attention: the brightest colour
LEVELS = 32  # grey levels to a standard deviation of the noise
SIDE = 544  # most pixels on a side of a panel, unless its crops need more
GAP = 4  # pixels between crops
HEAD = 24  # pixels above a panel, for its words
WORDS = ("the picture; bright: what was looked at", "attention there; bright: weighs more", "predicted noise there")


def overview(pixels):
    """uint8 RGB (H, W, 3) shrunk to SIDE, or enlarged by a whole number to it: what `draw` needs of a whole picture."""
    height, width = pixels.shape[:2]
    scale = SIDE / max(height, width)
    scale = max(1, int(scale)) if scale >= 1 else scale
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.BOX))


@torch.inference_mode()
def draw(detector, tiled, small):
    """uint8 (H, W, 3): the three panels of WORDS.

    detector: ImageDetector. tiled: its cut of a picture. small: `overview` of that picture, mirrored to a crop's size where
    smaller. The noise is shown with four standard deviations to the range of grey levels. Raises UserError if the detector
    predicts no noise.
    """
    outputs = [detector.detector(to_tensor(tiled.crops[i:i + 32]).to(detector.device)) for i in range(0, len(tiled.crops), 32)]
    if outputs[0].noise is None or outputs[0].noise.shape[1] != 3:
        raise UserError("this detector predicts no noise to draw; take one trained with noise learning, or leave out --map")
    noise = torch.cat([output.noise.float().cpu() for output in outputs])
    weights = torch.cat([output.map.float().cpu() for output in outputs])
    size = tiled.crops.shape[1]
    seen, heard = [], []
    relative = weights * weights[0].numel()  # 1: as much as every other place of its crop
    for crop, grain, share in zip(tiled.crops, noise, relative, strict=True):
        heat = colormaps["magma"]((share / CLIP).clamp(0, 1).numpy())[..., :3]
        heat = np.asarray(Image.fromarray((heat * 255).astype(np.uint8)).resize((size, size), Image.Resampling.NEAREST))
        seen.append(((1 - BLEND) * crop + BLEND * heat).astype(np.uint8))
        heard.append((128 + grain.permute(1, 2, 0).numpy() * LEVELS).clip(0, 255).astype(np.uint8))
    panels = [_looked_at(small, tiled, size), _grid(seen, tiled.places), _grid(heard, tiled.places)]
    return _side_by_side(panels)


def _looked_at(small, tiled, size):
    """The picture dimmed but for the crops, which are framed."""
    scale = small.shape[1] / max(tiled.width, size)
    panel = Image.fromarray((small * DIM).astype(np.uint8))
    frames = ImageDraw.Draw(panel)
    for top, left in tiled.places.tolist():
        box = [round(value * scale) for value in (left, top, left + size, top + size)]
        panel.paste(Image.fromarray(small[box[1]:box[3], box[0]:box[2]]), box[:2])
        frames.rectangle((box[0], box[1], box[2] - 1, box[3] - 1), outline="white")
    return np.asarray(panel)


def _grid(crops, places):
    """Crops in rows and columns as they lie in the picture, enlarged by a whole number."""
    tops, lefts = (np.unique(places[:, axis]) for axis in (0, 1))
    size = len(crops[0])
    times = max(1, SIDE // (max(len(tops), len(lefts)) * (size + GAP)))
    step = size * times + GAP
    panel = np.full((step * len(tops) - GAP, step * len(lefts) - GAP, 3), 255, np.uint8)
    for crop, (top, left) in zip(crops, places, strict=True):
        y, x = step * int(np.searchsorted(tops, top)), step * int(np.searchsorted(lefts, left))
        panel[y:y + size * times, x:x + size * times] = crop.repeat(times, 0).repeat(times, 1)
    return panel


def _side_by_side(panels):
    font = ImageFont.load_default(15)
    widths = [max(panel.shape[1], int(font.getlength(words)) + 1) + 2 * GAP for panel, words in zip(panels, WORDS)]
    sheet = Image.new("RGB", (sum(widths) + 2 * GAP, HEAD + max(len(panel) for panel in panels) + 2 * GAP), "white")
    pen, left = ImageDraw.Draw(sheet), 2 * GAP
    for panel, words, width in zip(panels, WORDS, widths):
        pen.text((left, 3), words, "black", font)
        sheet.paste(Image.fromarray(panel), (left, HEAD))
        left += width
    return np.asarray(sheet)


def write(folder, path, picture):
    """Write the drawing of the picture at `path` into `folder`; returns the file, whose name no other path shares."""
    name = "".join(c if c.isalnum() or c in "-_." else "_" for c in Path(path).name)[:60]
    mark = hashlib.sha256(str(path).encode("utf-8", "surrogateescape")).hexdigest()[:8]
    target = Path(folder) / f"{name}-{mark}.png"
    with whole_file(target) as temporary:
        Image.fromarray(picture).save(temporary)
    return target
