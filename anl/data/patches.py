"""From photographs to patches: the split, the downsampling, the crops. Every real and fake pixel passes here.

Scales: a photograph is downsampled by 2 or more to a *source* (so that its old compression vanishes). Generators work
on source crops of twice the benchmark's size; the benchmark halves real and fake alike, because small generators lose
the top octave and a set of soft fakes would only test blur.
"""

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from anl import seeds
from anl.data.photos import decode
from anl.errors import UserError

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Patch:
    """A crop of a source: `top` and `left` in source pixels, `size` on a side."""

    photo: str
    cluster: str
    split: str
    top: int
    left: int
    size: int

    @property
    def id(self):
        return f"{self.photo}@{self.top}x{self.left}"


def split_photos(photos, fractions, seed):
    """Assign photographs to train, val and test by cluster; returns dict photo id -> split.

    fractions: dict with keys train, val, test that sum to 1. The draw depends on the seed and the clusters only.
    """
    clusters = sorted({photo.cluster for photo in photos})
    order = seeds.generator(seed, "split").permutation(len(clusters))
    bounds = np.rint(np.cumsum([fractions[name] for name in SPLITS]) * len(clusters)).astype(int)
    if min(np.diff([0, *bounds])) < 1:
        raise UserError(f"the split {fractions} leaves a part of {len(clusters)} photographs empty; change the fractions")
    place = {clusters[item]: SPLITS[int(np.searchsorted(bounds, rank, side="right"))]
             for rank, item in enumerate(order)}
    return {photo.id: place[photo.cluster] for photo in photos}


def load_source(path, least_factor, target_side):
    """Decode a photograph and downsample it by at least `least_factor`, further if its short side then exceeds
    `target_side`. Returns uint8 (H, W, 3)."""
    pixels = decode(path)
    height, width = pixels.shape[:2]
    factor = max(least_factor, min(height, width) / target_side)
    return resize(pixels, round(height / factor), round(width / factor))


def resize(pixels, height, width):
    """Anti-aliased bicubic resize of a uint8 (H, W, 3) array."""
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC))


def halve(pixels):
    """Halve a uint8 (H, W, 3) array: the last step that real and fake patches share."""
    height, width = pixels.shape[:2]
    return resize(pixels, height // 2, width // 2)


def choose_patches(source, photo, cluster, split, *, size, count, least_std, seed):
    """Up to `count` crops of `size` from a source, flat ones (grey-level standard deviation below `least_std`) left out.

    Test and validation crops do not overlap; training crops may. Raises UserError if the source is smaller than a crop.
    """
    height, width = source.shape[:2]
    if min(height, width) < size:
        raise UserError(f"{photo}: its downsampled source is {width} x {height} pixels, smaller than the crop of {size}; "
                        "lower benchmark.size or benchmark.least_factor, or drop the photograph")
    stride = size // 3 if split == "train" else size
    rng = seeds.generator(seed, "patches", photo)
    offset_y, offset_x = (int(rng.integers(0, (side - size) % stride + 1)) for side in (height, width))
    corners = [(y, x) for y in range(offset_y, height - size + 1, stride)
               for x in range(offset_x, width - size + 1, stride)]
    chosen = []
    for index in rng.permutation(len(corners)):
        y, x = corners[index]
        if source[y:y + size, x:x + size].mean(axis=2).std() >= least_std:
            chosen.append(Patch(photo, cluster, split, y, x, size))
        if len(chosen) == count:
            break
    return sorted(chosen, key=lambda patch: (patch.top, patch.left))


def to_tensor(pixels):
    """uint8 (..., H, W, 3) -> float (..., 3, H, W) in [-1, 1]."""
    array = torch.from_numpy(np.ascontiguousarray(pixels))
    return array.movedim(-1, -3).float().div(127.5).sub(1)


def to_pixels(tensor):
    """float (..., 3, H, W) in [-1, 1] -> uint8 (..., H, W, 3), clipped and rounded."""
    levels = tensor.float().clamp(-1, 1).add(1).mul(127.5).round()
    return levels.to(torch.uint8).movedim(-3, -1).contiguous().numpy()


class CropSampler:
    """Random crops with flips from a list of sources, batch k a pure function of (seed, name, k)."""

    def __init__(self, sources, size, batch_size, seed, name):
        self.sources = [source for source in sources if min(source.shape[:2]) >= size]
        if not self.sources:
            raise UserError(f"no source is as large as the training crop of {size} pixels")
        self.weights = np.array([source.shape[0] * source.shape[1] for source in self.sources], float) ** 0.5
        self.weights /= self.weights.sum()
        self.size, self.batch_size, self.seed, self.name = size, batch_size, seed, name

    def batch(self, step):
        """Tensor (B, 3, size, size) in [-1, 1]."""
        rng = seeds.generator(self.seed, self.name, "crops", step)
        crops = np.empty((self.batch_size, self.size, self.size, 3), np.uint8)
        for row, index in enumerate(rng.choice(len(self.sources), self.batch_size, p=self.weights)):
            source = self.sources[index]
            y, x = (int(rng.integers(0, side - self.size + 1)) for side in source.shape[:2])
            crop = source[y:y + self.size, x:x + self.size]
            crops[row] = crop[:, ::-1] if rng.random() < 0.5 else crop
        return to_tensor(crops)
