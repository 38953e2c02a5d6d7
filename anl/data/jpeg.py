"""The quality at which a JPEG was written, read off its quantisation tables."""

import functools

import numpy as np

# Tables K.1 (luminance) and K.2 (chrominance) of ITU-T T.81, row by row: what libjpeg scales by its quality.
LUMINANCE = (16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55, 14, 13, 16, 24, 40, 57, 69, 56, 14, 17, 22, 29,
             51, 87, 80, 62, 18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92, 49, 64, 78, 87, 103, 121,
             120, 101, 72, 92, 95, 98, 112, 100, 103, 99)
CHROMINANCE = (17, 18, 24, 47, 99, 99, 99, 99, 18, 21, 26, 66, 99, 99, 99, 99, 24, 26, 56, 99, 99, 99, 99, 99, 47, 66, 99, 99,
               99, 99, 99, 99) + (99,) * 32


@functools.cache
def standard_tables():
    """libjpeg's tables at every quality, int64 (100, 2, 64): [quality - 1, luminance or chrominance], natural order."""
    quality = np.arange(1, 101)[:, None, None]
    scale = np.where(quality < 50, 5000 // quality, 200 - 2 * quality)
    return np.clip((np.array([LUMINANCE, CHROMINANCE]) * scale + 50) // 100, 1, 255)


def estimate_quality(tables):
    """The quality, 1 to 100, whose standard tables are nearest (mean absolute difference) to an image's.

    tables: {0: 64 numbers} or {0: ..., 1: ...} in natural order, as Pillow's `image.quantization`. Exact for what
    libjpeg wrote, nearest for encoders with tables of their own (Photoshop, cameras). None where there is no table.
    """
    if not tables:
        return None
    return _nearest(tuple(tuple(tables[key]) for key in sorted(tables)[:2]))


@functools.lru_cache(maxsize=4096)  # a data set holds few different tables
def _nearest(tables):
    standard = standard_tables()[:, :len(tables)]
    distance = np.abs(standard - np.array(tables)).mean((1, 2))
    best = np.flatnonzero(distance == distance.min())
    return int(best[-1]) + 1  # where qualities share a table, the higher
