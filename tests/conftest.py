"""What tests of several packages share: the repository's root and a made-up photograph."""

from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]


def photograph(seed, height=150, width=190):
    """A smooth random image with grain, uint8 (H, W, 3)."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)).resize((width, height), Image.BICUBIC)
    return np.clip(np.asarray(coarse, float) + rng.normal(0, 8, (height, width, 3)), 0, 255).astype(np.uint8)
