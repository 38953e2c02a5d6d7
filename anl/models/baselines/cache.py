"""Disk cache of a frozen model's outputs: some baselines need dozens of network calls for one image."""

import hashlib
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from anl.io import atomic_file, identity


class FeatureCache:
    """A function of images whose results are kept on disk, in float16, one safetensors file for each image.

    A result has the same bits whether it was computed now or read; a damaged file is computed again.

    Parameters
    ----------
    function : callable
        Images (B, 3, H, W) -> Tensor (B, ...); an image's result must not depend on the others.
    folder, name : path-like, str
        Root of the cache, and name of the sub-folder.
    weights, precision, parameters : str, str, dict
        Everything besides the pixels that a result depends on: the frozen model's `weights_hash`, its precision, and
        other settings (JSON-able).
    """

    def __init__(self, function, folder, name, *, weights, precision, parameters):
        self.function = function
        key = identity({"weights": weights, "precision": precision, "parameters": parameters})
        self.folder = Path(folder) / f"{name}-{key}"

    @torch.no_grad()
    def __call__(self, x):
        """Images (B, 3, H, W) -> float32 Tensor (B, ...) on x's device."""
        paths = [self._path(image) for image in x.detach().float().cpu()]
        values = [_read(path) for path in paths]
        missing = [row for row, value in enumerate(values) if value is None]
        if missing:
            computed = self.function(x[missing]).half().cpu()
            for row, value in zip(missing, computed, strict=True):
                values[row] = value
                with atomic_file(paths[row]) as temporary:
                    save_file({"value": value.clone(memory_format=torch.contiguous_format)}, temporary)
        return torch.stack(values).to(x.device).float()

    def _path(self, image):
        digest = hashlib.sha256(repr(tuple(image.shape)).encode() + image.contiguous().numpy().tobytes()).hexdigest()
        return self.folder / digest[:2] / f"{digest[:32]}.safetensors"


def _read(path):
    try:
        return load_file(path)["value"]
    except (OSError, KeyError, SafetensorError):  # missing or damaged
        return None


def weights_hash(*parts):
    """Hex SHA-256 of the weights of modules, of tensors, and of JSON-able settings."""
    digest = hashlib.sha256()
    for part in parts:
        for name, value in sorted(part.state_dict().items()) if isinstance(part, nn.Module) else [("", part)]:
            if isinstance(value, torch.Tensor):
                digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
                digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
            else:
                digest.update(identity(value).encode())
    return digest.hexdigest()
