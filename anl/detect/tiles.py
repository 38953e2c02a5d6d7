"""Cut an image of any size into the small crops that a detector scores.

Nothing is resized: resampling would remove the highest frequencies, which the detector reads. The logit of an image is
the mean over its crops.
"""

import numpy as np

from anl.data.images import pad

MAX_CROPS = 16  # of one image


def tile(pixels, size, most=MAX_CROPS):
    """Cut an image into crops on an even grid from edge to edge.

    Parameters
    ----------
    pixels : ndarray
        uint8 (H, W, 3). A side shorter than `size` is padded with its mirror image.
    size, most : int
        Side of a crop in pixels, and largest number of crops. If an image needs more, its crops leave gaps.

    Returns
    -------
    (ndarray, ndarray)
        uint8 (N, size, size, 3), and the corners (N, 2), top and left in pixels of the padded image.
    """
    pixels = pad(pixels, size)
    places = np.array(grid(*pixels.shape[:2], size, most))
    return np.stack([pixels[top:top + size, left:left + size] for top, left in places]), places


def grid(height, width, size, most=MAX_CROPS):
    """Corners (top, left) of the crops of an image whose sides are at least `size`."""
    rows, columns = (-(-side // size) for side in (height, width))
    while rows * columns > most:  # drop one from the axis with more crops
        rows, columns = (rows - 1, columns) if rows >= columns else (rows, columns - 1)
    tops, lefts = (np.linspace(0, side - size, count).round().astype(int).tolist()
                   for side, count in ((height, rows), (width, columns)))
    return [(top, left) for top in tops for left in lefts]
