"""Targets too large for a cache: the training asks the prior for each batch, and gets what the cache would have held.

A cache of float16 targets takes C * h * w * 2 bytes an image: 38 GB for 100,000 crops of 256 pixels. Only the scale s_t and
the mean need all images: they are summed in one pass, in which nothing is kept, and stored in the cache's place.
"""

import json

import torch
from safetensors.torch import save_file

from anl import processes
from anl.data.patches import to_tensor
from anl.errors import UserError
from anl.files import whole_file

GIGABYTE = 1e9
MEMBERS = ("multistep", "ensemble")  # made of several noises, each with a scale of its own


def too_large(images, values, params):
    """Whether a cache of so many images' float16 targets, `values` numbers each, is more than the profile allows."""
    return images * values * 2 > params.cache.targets * GIGABYTE


def key_of(key):
    """The key of a file that holds the scale alone, where the cache's is `key`."""
    return f"{key}-live"


def write(path, key, kind, rows, residual, size, progress):
    """One pass over the images of `rows` for the scale of their targets, written to `path`, in double precision.

    residual: slice -> (B, C, h, w), the targets of those images before scaling. Several processes share the batches. Raises
    UserError on a target made of several noises.
    """
    if kind in MEMBERS:
        raise UserError(f"the targets '{kind}' are too large for cache.targets and cannot be made batch by batch; raise it, or "
                        "choose another target")
    train = torch.from_numpy((rows["split"] == "train").to_numpy(copy=True))

    def moments(batch):
        """A row an image: count, sum and squared deviations of each channel, zero outside the training split."""
        noise = residual(batch).double().flatten(2)  # (B, C, h * w)
        mean = noise.mean(2)
        spread = (noise - mean[..., None]).square().sum(2)
        return torch.stack([torch.full_like(mean, noise.shape[2]), mean, spread], 1)[:, :, :] * train[batch, None, None]

    found = torch.cat(processes.spread(moments, len(rows), size, progress=progress))[train]
    count, means, squares = found.unbind(1)  # each (N, C)
    mean = (means * count).sum(0) / count.sum(0)
    centre = torch.zeros_like(mean) + mean.mean() if kind == "prior" else mean  # of what the deviation is taken
    total = (squares + count * (means - centre).square()).sum()
    scale = float((total / (count.sum() - 1)).sqrt())
    if not 0 < scale < float("inf"):
        raise UserError(f"the targets '{kind}' have a standard deviation of {scale}; look at the prior")
    header = {"key": key, "scale": scale, "samples": rows["sample_id"].tolist(),
              "live": [0.0] * len(mean) if kind == "prior" else mean.tolist()}

    def save():
        with whole_file(path) as temporary:
            save_file({"mean": mean}, temporary, metadata={"anl": json.dumps(header)})

    processes.agreed(save)


class LiveTargets:
    """Targets made when asked for: `targets[rows]` is float16 (len(rows), C, h, w), as of a cached tensor.

    residual: (x, names) -> targets before scaling. pixels: uint8 (N, H, W, 3), and names of their patches. order: for each row
    asked for, the image that its target is of. header: what `write` stored.
    """

    def __init__(self, residual, pixels, names, order, header):
        self.residual, self.pixels, self.names, self.order = residual, pixels, names, order
        self.mean = torch.tensor(header["live"], dtype=torch.float64)[:, None, None].float()
        self.scale = header["scale"]
        self.shape = (len(order), *self[[0]].shape[1:])

    @torch.no_grad()
    def __getitem__(self, rows):
        images = [self.order[row] for row in rows]
        noise = self.residual(to_tensor(self.pixels[images]), [self.names[image] for image in images])
        return ((noise - self.mean) / self.scale).half()
