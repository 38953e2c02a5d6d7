"""The generator families of the embedded benchmark: each regenerates real patches, so that only its fingerprint differs.

A *model* is trained once on the training photographs (`fit_model`) and saved in diffusers' own layout; a *family* is a
model with a way of running it (`regenerate`), so that two samplers of one model are two families.
"""

from anl.generators import autoencoders, diffusion
from anl.generators.registry import MODELS, fit_model, load_model, regenerate

__all__ = ["MODELS", "autoencoders", "diffusion", "fit_model", "load_model", "regenerate"]
