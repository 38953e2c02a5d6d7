"""The methods of the field that ANL is compared with: one file each, trained by the same loop and scored by the same code."""

from anl.baselines.interface import build, decisive, get, prepare, recipe_of
from anl.params import BASELINES

__all__ = ["BASELINES", "build", "decisive", "get", "prepare", "recipe_of"]
