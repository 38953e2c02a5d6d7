"""Attention-guided noise learning: the method, the protocol and the story of a reproducible paper."""

__version__ = "0.1.0"
