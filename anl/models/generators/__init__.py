"""The generators of the benchmarks: networks, training losses, and how each family regenerates or draws images."""

from anl.models.generators.registry import (
    MODELS,
    before_step,
    build,
    finish,
    kind_of,
    load_model,
    regenerate,
    save_model,
    training_loss,
)

__all__ = ["MODELS", "before_step", "build", "finish", "kind_of", "load_model", "regenerate", "save_model",
           "training_loss"]
