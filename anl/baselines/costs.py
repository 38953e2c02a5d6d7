"""What a method costs at inference, the frozen models that it keeps included."""

from pathlib import Path

from safetensors import safe_open

from anl import cost


def inference_cost(detector, size, needs=(), models="models"):
    """Of a detector or baseline for one image of `size` pixels: dict of trained parameters, frozen parameters (of the
    models in `needs` and of an encoder) and multiply-adds of both, counted exactly. What is kept on disk is computed for this."""
    represent = getattr(detector, "represent", None)
    if represent is not None:
        detector.represent = getattr(represent.function, "counted", represent.function)
    try:
        parameters, multiply_adds = cost.counts(detector.eval(), size)
    finally:
        if represent is not None:
            detector.represent = represent
    frozen = sum(_weights(Path(models) / name) for name in needs)
    frozen += getattr(getattr(represent, "function", None), "parameters", 0)
    return {"parameters": parameters, "frozen_parameters": frozen, "multiply_adds": multiply_adds}


def _weights(folder):
    count = 0
    for path in sorted(folder.rglob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (safe_open does not iterate)
                size = 1
                for side in file.get_slice(name).get_shape():
                    size *= side
                count += size
    return count
