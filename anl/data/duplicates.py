"""Perceptual hashes of images, and the search for pairs of similar ones."""

import functools

import numpy as np
import pandas as pd
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

SIDE = 32  # pixels that an image is reduced to before its frequencies are computed
LOW = 8  # frequencies kept along each axis
NEAR = 3  # bits in which hashes of near-duplicates differ at most
BANDS = 4  # bands of 16 bits: two hashes that differ in at most 3 bits agree in at least one band
CROWD = 2000  # most comparisons of one hash with hashes that agree in a band


@functools.cache
def _cosines():
    """Rows of the orthonormal DCT-II, (LOW, SIDE)."""
    place = (np.arange(SIDE) + 0.5) * np.pi / SIDE
    return np.cos(np.arange(LOW)[:, None] * place) * np.sqrt(2 / SIDE)


def perceptual_hash(pixels):
    """Perceptual hash (pHash) of an image: 64 bits that compression and resizing hardly change.

    The image is reduced to 32 x 32 grey pixels. Each bit states whether one of the 8 x 8 lowest DCT coefficients is
    above the median of these coefficients (computed without the constant one).

    Parameters
    ----------
    pixels : ndarray
        uint8 (H, W, 3).

    Returns
    -------
    int

    References
    ----------
    Zauner. "Implementation and benchmarking of perceptual image hash functions." 2010.
    """
    grey = np.asarray(Image.fromarray(pixels).convert("L").resize((SIDE, SIDE), Image.Resampling.BOX), np.float64)
    low = (_cosines() @ grey @ _cosines().T).ravel()
    return int.from_bytes(np.packbits(low > np.median(low[1:])).tobytes(), "big")


def near_pairs(hashes):
    """Pairs of different hashes that differ in at most NEAR bits.

    Only hashes that agree in one of four 16-bit bands are compared, so the time grows with the number of similar images,
    not with N squared.

    Parameters
    ----------
    hashes : ndarray
        uint64 (N,), without repetitions.

    Returns
    -------
    first, second, bits : ndarray
        Positions of the two hashes, and number of bits in which they differ.
    left_out : int
        Comparisons skipped because more than CROWD hashes share a band.
    """
    hashes = np.asarray(hashes, np.uint64)
    pairs, left_out = set(), 0
    for band in range(BANDS):
        key = (hashes >> np.uint64(16 * band)).astype(np.uint16)
        order = np.argsort(key, kind="stable")
        crowd = np.bincount(key, minlength=1 << 16).astype(np.int64)
        excess = np.maximum(crowd - 1 - CROWD, 0)
        left_out += int((excess * (excess + 1) // 2).sum())
        for step in range(1, min(int(crowd.max(initial=0)), CROWD + 1)):
            here, there = order[:-step], order[step:]
            same = key[here] == key[there]
            here, there = here[same], there[same]
            close = np.bitwise_count(hashes[here] ^ hashes[there]) <= NEAR
            pairs.update(zip(np.minimum(here, there)[close].tolist(), np.maximum(here, there)[close].tolist()))
    first, second = np.array(sorted(pairs), np.int64).reshape(-1, 2).T
    return first, second, np.bitwise_count(hashes[first] ^ hashes[second]).astype(int), left_out


def near_groups(hashes):
    """Group near-duplicate images: connected components of the pairs that `near_pairs` finds.

    Parameters
    ----------
    hashes : Series of uint64
        `perceptual_hash` of each image. An image without a hash (null) forms its own group.

    Returns
    -------
    ndarray
        int (N,): for each image the position of the first image of its group.
    """
    known = pd.Series(hashes).reset_index(drop=True).dropna()
    looks, member = np.unique(known.to_numpy(np.uint64), return_inverse=True)
    one, other = near_pairs(looks)[:2]
    graph = coo_array((np.ones(len(one), bool), (one, other)), (len(looks), len(looks)))
    group = pd.Series(connected_components(graph, directed=False)[1][member], known.index)
    first = np.arange(len(hashes))
    first[known.index] = group.groupby(group).transform(lambda part: part.index[0])
    return first
