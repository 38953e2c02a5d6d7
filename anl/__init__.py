"""Attention-guided noise learning: a detector of generated images that learns from a diffusion prior, and its evaluation."""

from anl.io import UserError

__all__ = ["UserError", "load_detector"]
__version__ = "0.1.0"


def load_detector(path_or_id=None, device="cpu", revision=None):
    """Load a packaged detector; see `anl.detect.detector.load_detector`."""
    from anl.detect.detector import load_detector as load  # not above: `anl --help` need not wait for torch

    return load(path_or_id, device, revision)
