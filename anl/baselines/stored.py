"""What a frozen model makes of a batch, computed once and kept: some baselines need dozens of calls for one image."""

import hashlib
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from anl.files import identity, whole_file


class Stored:
    """A function of x (B, 3, H, W) whose results, float16, are kept in a folder by the pixels' hash.

    name: of the folder. parts: what else decides the result (weights' hash, settings). A damaged file is made again.
    """

    def __init__(self, function, name, *parts, cache=".cache/anl/representations"):
        self.function = function
        self.folder = Path(cache) / f"{name}-{identity({'parts': [str(part) for part in parts]})[:16]}"

    def __call__(self, x):
        """float32 tensor on x's device: the same bits whether computed now or read."""
        pixels = x.detach().float().cpu().contiguous()
        digest = hashlib.sha256(pixels.numpy().tobytes()).hexdigest()
        path = self.folder / digest[:2] / f"{digest[:32]}-{len(pixels)}.safetensors"
        try:
            value = load_file(path)["value"]
        except Exception:  # missing or damaged: made again
            with torch.no_grad():
                value = self.function(pixels).half().contiguous()
            with whole_file(path) as temporary:
                save_file({"value": value}, temporary)
        return value.float().to(x.device)
