"""From photographs to crops: the split by cluster, downsampled sources, the choice of patches, and crops for training.

A photograph is downsampled by a factor of at least 2 to a *source*, which removes its earlier compression. Patches for
a benchmark and training crops for prior and generators are cut from sources.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
import pandas as pd
from PIL import Image

from anl import seeds
from anl.data import REAL, images
from anl.data.decode import decode
from anl.io import UserError

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Patch:
    """A crop of a source: `top`, `left` and `size` in pixels of the source."""

    photo: str
    group: str
    split: str
    top: int
    left: int
    size: int

    @property
    def id(self):
        return f"{self.photo}@{self.top}x{self.left}"


def split_photos(photos, shares, seed):
    """Split photographs by cluster, so that near-duplicates stay together: {photo id: split}.

    `shares` of the clusters for train, val and test sum to 1. The draw depends on the seed and the set of clusters only.
    Raises UserError if a split is empty.
    """
    shares = dict(shares)
    clusters = sorted({photo.cluster for photo in photos})
    order = seeds.generator(seed, "split").permutation(len(clusters))
    bounds = np.rint(np.cumsum([shares[name] for name in SPLITS]) * len(clusters)).astype(int)
    if min(np.diff([0, *bounds])) < 1:
        raise UserError(f"the split {shares} leaves a part of {len(clusters)} photographs empty; change data.split")
    place = {clusters[item]: SPLITS[int(np.searchsorted(bounds, rank, side="right"))] for rank, item in enumerate(order)}
    return {photo.id: place[photo.cluster] for photo in photos}


# ---- sources and patches -----------------------------------------------------------------------------------------------
def load_source(path, least_factor, target_side):
    """Decode a photograph, uint8 (H, W, 3), downsampled to a short side of `target_side`, but at least by `least_factor`."""
    pixels = decode(path)
    height, width = pixels.shape[:2]
    factor = max(least_factor, min(height, width) / target_side)
    return resize(pixels, round(height / factor), round(width / factor))


def shrink(source, factor, least):
    """Downsample by `factor` (0 to 1), but not below `least` pixels on the short side."""
    height, width = source.shape[:2]
    factor = max(factor, min(1.0, least / min(height, width)))
    return source if factor >= 1 else resize(source, max(least, round(height * factor)), max(least, round(width * factor)))


def resize(pixels, height, width):
    """Anti-aliased bicubic resize of uint8 (H, W, 3)."""
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC))


def halve(pixels):
    """Halve uint8 (H, W, 3): the last step that real and generated patches share."""
    height, width = pixels.shape[:2]
    return resize(pixels, height // 2, width // 2)


def choose_patches(source, photo, group, split, *, size, count, least_std, seed):
    """Choose up to `count` patches of a source, uint8 (H, W, 3), at random positions of a grid; sorted by position.

    Training patches may overlap, others do not. Patches with a grey-level standard deviation below `least_std` are left out.
    The draw depends on `seed` and `photo`. Raises UserError if the source is smaller than a patch.
    """
    height, width = source.shape[:2]
    if min(height, width) < size:
        raise UserError(f"{photo}: its downsampled source is {width} x {height} pixels, smaller than the crop of {size}; "
                        "lower benchmark.size, or remove the photograph")
    stride = size // 3 if split == "train" else size
    rng = seeds.generator(seed, "patches", photo)
    offset_y, offset_x = (int(rng.integers(0, (side - size) % stride + 1)) for side in (height, width))
    corners = [(y, x) for y in range(offset_y, height - size + 1, stride) for x in range(offset_x, width - size + 1, stride)]
    chosen = []
    for index in rng.permutation(len(corners)):
        y, x = corners[index]
        if source[y:y + size, x:x + size].mean(axis=2).std() >= least_std:
            chosen.append(Patch(photo, group, split, y, x, size))
        if len(chosen) == count:
            break
    return sorted(chosen, key=lambda patch: (patch.top, patch.left))


class CropSampler:
    """Random square crops with flips for generative training; batch k is a pure function of (seed, name, k).

    Sources, uint8 (H, W, 3), are drawn with a probability proportional to the square root of their area. Sources smaller
    than a crop are left out. Raises UserError if none is left.
    """

    def __init__(self, sources, size, batch_size, seed, name):
        self.sources = [source for source in sources if min(source.shape[:2]) >= size]
        if not self.sources:
            raise UserError(f"no source is as large as the training crop of {size} pixels; lower the model's crop")
        self.weights = np.array([source.shape[0] * source.shape[1] for source in self.sources], float) ** 0.5
        self.weights /= self.weights.sum()
        self.size, self.batch_size, self.seed, self.name = size, batch_size, seed, name

    def batch(self, step):
        """Crops of batch `step`: float (B, 3, size, size) in [-1, 1]."""
        rng = seeds.generator(self.seed, self.name, "crops", step)
        crops = np.empty((self.batch_size, self.size, self.size, 3), np.uint8)
        for row, index in enumerate(rng.choice(len(self.sources), self.batch_size, p=self.weights)):
            source = self.sources[index]
            y, x = (int(rng.integers(0, side - self.size + 1)) for side in source.shape[:2])
            crop = source[y:y + self.size, x:x + self.size]
            crops[row] = crop[:, ::-1] if rng.random() < 0.5 else crop
        return images.to_tensor(crops)


# ---- the rows of a manifest that are used --------------------------------------------------------------------------------
def draw_order(rows, seed):
    """A random key for each row, a hex string that depends only on the seed and the image's bytes."""
    return [hashlib.sha256(f"{seed}/{digest}".encode()).hexdigest() for digest in rows["sha256"]]


def use_rows(rows, use, seed):
    """Choose the rows that a profile uses.

    Real images are spread evenly over groups. Paired generated images are chosen with their real image. Of unpaired
    generated images, each generator and split gets as many as there are real images, also spread over groups. The choice
    depends on the seed and the images' bytes, not on the order of the rows.

    Parameters
    ----------
    rows : DataFrame
        Columns sha256, generator, split and group; pair if there are pairs.
    use : mapping of str to int
        Largest number of real images of each split.
    seed : int

    Returns
    -------
    DataFrame
        The chosen rows in their order.
    """
    draw = pd.Series(draw_order(rows, seed), rows.index)
    pair = rows["pair"].fillna("").astype(str) if "pair" in rows else pd.Series("", rows.index)
    real = rows["generator"] == REAL
    chosen = []
    for split, limit in dict(use).items():
        here = rows["split"] == split
        reals = _spread(rows[here & real], draw, limit)
        chosen.append(reals)
        chosen.append(rows.index[here & ~real & pair.isin(set(pair[reals]) - {""})])
        for _, part in rows[here & ~real & (pair == "")].groupby("generator", observed=True):
            chosen.append(_spread(part, draw, len(reals)))
    return rows[rows.index.isin(np.concatenate(chosen))].reset_index(drop=True)


def _spread(part, draw, limit):
    """Index of up to `limit` rows by `draw`: the first of every group, then the second of every group, and so on."""
    part = part.assign(draw=draw[part.index]).sort_values("draw", kind="stable")
    rank = part.groupby(part["group"].astype(str)).cumcount()
    return part.assign(rank=rank).sort_values(["rank", "draw"], kind="stable").head(limit).index
