"""How a picture of any size is shown to a detector of small crops, and how the crops' scores become one.

Nothing is resized: resampling would wipe out the finest grain, which is what the detector reads.
"""

import numpy as np

MOST = 16  # crops of one picture

RULES = {"mean": lambda logit: logit.mean(),
         "median": np.median,
         "max": lambda logit: logit.max(),
         "top_quarter": lambda logit: np.sort(logit)[-max(1, len(logit) // 4):].mean()}


def tile(pixels, size, most=MOST):
    """Crops of a picture and where they lie: uint8 (N, size, size, 3), int (N, 2) of top and left, 1 <= N <= most.

    pixels: uint8 (H, W, 3). The crops form an even grid from edge to edge, no more along a side than cover it. A side
    shorter than `size` is first continued by its mirror image.
    """
    pixels = mirrored(pixels, size)
    height, width = pixels.shape[:2]
    rows, columns = (-(-side // size) for side in (height, width))
    while rows * columns > most:  # thin out the longer line first
        rows, columns = (rows - 1, columns) if rows >= columns else (rows, columns - 1)
    tops, lefts = (np.linspace(0, side - size, count).round().astype(int) for side, count in
                   ((height, rows), (width, columns)))
    places = np.array([(top, left) for top in tops for left in lefts])
    return np.stack([pixels[top:top + size, left:left + size] for top, left in places]), places


def mirrored(pixels, size):
    """The picture, each side shorter than `size` continued to it by mirroring at the edge, as often as needed."""
    missing = [max(0, size - side) for side in pixels.shape[:2]]
    if not any(missing):
        return pixels
    return np.pad(pixels, [(0, missing[0]), (0, missing[1]), (0, 0)], mode="symmetric")


def aggregate(logit, rule):
    """One logit from those of a picture's crops, (N,) with N >= 1; rule: a name of RULES."""
    return float(RULES[rule](np.asarray(logit, float)))
