"""Evidence maps as PNG: which parts of a picture are evidence for `generated` (red) and which for `real` (blue).

A map has two panels. The left one shows the picture and marks the crops that were scored. The right one shows the evidence
in these crops, arranged as in the picture and enlarged, because they are tiny in a large picture.
"""

import hashlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from anl.io import atomic_file

DIM = 0.35  # brightness of the picture outside the crops
BLEND = 0.6  # highest opacity of the evidence's colour over a crop
CLIP = 4.0  # absolute log-odds at which the opacity is highest
GENERATED, REAL = (178, 24, 43), (33, 102, 172)  # red and blue that colour-blind readers tell apart
SIDE = 544  # largest side of a panel in pixels, unless its crops need more
GAP, HEAD = 4, 24  # pixels between crops, and above a panel for its title


def overview(pixels):
    """Shrink uint8 RGB (H, W, 3) to a longer side of SIDE; smaller pictures are enlarged by a whole factor to at most SIDE."""
    height, width = pixels.shape[:2]
    scale = SIDE / max(height, width)
    scale = max(1, int(scale)) if scale >= 1 else scale
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.BOX))


def draw(detector, tiled, small):
    """Draw the two panels side by side, uint8 (H, W, 3).

    Parameters
    ----------
    detector : ImageDetector
    tiled : Tiled
        The picture's crops.
    small : ndarray
        `overview` of the picture, padded to a crop's size where it is smaller.
    """
    size = tiled.crops.shape[1]
    evidence = detector.evidence(tiled.crops)
    words = ("the picture; bright: what was looked at", "evidence; red: generated, blue: real")
    coloured = [colour(crop, cells) for crop, cells in zip(tiled.crops, evidence, strict=True)]
    return _side_by_side([_looked_at(small, tiled, size), _grid(coloured, tiled.places)], words)


def colour(crop, cells):
    """Overlay a crop (size, size, 3) with the log-odds of its cells (h, w)."""
    size = len(crop)
    large = np.asarray(Image.fromarray(cells.astype(np.float32)).resize((size, size), Image.Resampling.NEAREST))
    share = BLEND * np.minimum(1, np.abs(large) / CLIP)[..., None]
    return ((1 - share) * crop + share * np.where(large[..., None] > 0, GENERATED, REAL)).astype(np.uint8)


def _looked_at(small, tiled, size):
    """The picture dimmed except for the crops, which are framed."""
    scale = small.shape[1] / max(tiled.width, size)
    panel = Image.fromarray((small * DIM).astype(np.uint8))
    frames = ImageDraw.Draw(panel)
    for top, left in tiled.places.tolist():
        x0, y0, x1, y1 = (round(value * scale) for value in (left, top, left + size, top + size))
        x1, y1 = max(x1, x0 + 1), max(y1, y0 + 1)
        panel.paste(Image.fromarray(small[y0:y1, x0:x1]), (x0, y0))
        frames.rectangle((x0, y0, x1 - 1, y1 - 1), outline="white")
    return np.asarray(panel)


def _grid(crops, places):
    """Crops in rows and columns, arranged as in the picture and enlarged by a whole factor."""
    tops, lefts = (np.unique(places[:, axis]) for axis in (0, 1))
    size = len(crops[0])
    times = max(1, SIDE // (max(len(tops), len(lefts)) * (size + GAP)))
    step = size * times + GAP
    panel = np.full((step * len(tops) - GAP, step * len(lefts) - GAP, 3), 255, np.uint8)
    for crop, (top, left) in zip(crops, places, strict=True):
        y, x = step * int(np.searchsorted(tops, top)), step * int(np.searchsorted(lefts, left))
        panel[y:y + size * times, x:x + size * times] = crop.repeat(times, 0).repeat(times, 1)
    return panel


def _side_by_side(panels, words):
    font = ImageFont.load_default(15)
    widths = [max(panel.shape[1], int(font.getlength(text)) + 1) + 2 * GAP for panel, text in zip(panels, words, strict=True)]
    sheet = Image.new("RGB", (sum(widths) + 2 * GAP, HEAD + max(len(panel) for panel in panels) + 2 * GAP), "white")
    pen, left = ImageDraw.Draw(sheet), 2 * GAP
    for panel, text, width in zip(panels, words, widths, strict=True):
        pen.text((left, 3), text, "black", font)
        sheet.paste(Image.fromarray(panel), (left, HEAD))
        left += width
    return np.asarray(sheet)


def save(folder, path, sheet):
    """Write the sheet of the picture at `path` into `folder`; returns the file, whose name is unique to `path`."""
    name = "".join(c if c.isalnum() or c in "-_." else "_" for c in Path(path).name)[:60]
    mark = hashlib.sha256(str(path).encode("utf-8", "surrogateescape")).hexdigest()[:8]
    target = Path(folder) / f"{name}-{mark}.png"
    with atomic_file(target) as temporary:
        Image.fromarray(sheet).save(temporary)
    return target
