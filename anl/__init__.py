"""Attention-guided noise learning: the method, the protocol and the story of a reproducible paper."""

__version__ = "0.1.0"


def load_detector(path_or_id=None, device="cpu", revision=None):
    """A detector in use, see anl.detect.scorer.load_detector."""
    from anl.detect.scorer import load_detector as load  # not above: the command line's help need not wait for torch

    return load(path_or_id, device, revision)
