"""A detector as one ONNX file, checked against PyTorch."""

import contextlib
import io
import json
import logging
import warnings
from pathlib import Path

import numpy as np
import torch

from anl.detect.detector import InUse
from anl.io import UserError, atomic_file, reason

INPUT, OUTPUTS = "crops", ("logit", "probability", "evidence")
TOLERANCE = 1e-4  # of logit and probability against PyTorch; of evidence relative to its largest value
BATCHES = (1, 3, 16)
OPSET = 20
INT8_FROM = 2**16  # fewest weights of a rounded layer; smaller ones (first, depthwise) lose most by rounding and save little


def export_onnx(detector, path, int8=False):
    """Write a detector as one ONNX file: crops in; logit, probability and evidence of each out.

    The batch size is dynamic, the crop size is fixed. The file's metadata holds the card under `card`. The caller cuts a
    picture into crops, averages their logits and applies the card's thresholds.

    Parameters
    ----------
    detector : ImageDetector
    path : path-like
    int8 : bool
        Whether the weights of large convolutions are stored in eight bits. This makes the file less than half as large and
        changes its outputs, which are still computed in fp32.

    Returns
    -------
    float
        The largest difference of any output from PyTorch's, before weights are stored in int8; see TOLERANCE.

    Raises
    ------
    UserError
        If the network cannot be exported, or the file's outputs differ from PyTorch's.
    """
    module = InUse(detector.network, detector.card).cpu().eval()
    example = torch.rand(2, 3, detector.card.size, detector.card.size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.inference_mode():
        names = OUTPUTS[:len(module(example))]
    try:
        with _quiet(), contextlib.redirect_stdout(io.StringIO()):
            program = torch.onnx.export(module, (example,), dynamo=True, opset_version=OPSET, input_names=[INPUT],
                                        output_names=list(names), verbose=False,
                                        dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
    except Exception as problem:  # the exporter has many errors
        raise UserError(f"{detector.folder} cannot be exported as ONNX ({reason(problem)}); use it with PyTorch") from None
    finally:
        module.to(detector.device)
    program.model.metadata_props["card"] = json.dumps(detector.card.model_dump(mode="json"), sort_keys=True)
    with atomic_file(path) as temporary:
        program.save(temporary, external_data=False)
        difference = parity(detector, temporary)
        if not difference <= TOLERANCE:
            raise UserError(f"the exported file differs from PyTorch by {difference:.1e}, over {TOLERANCE:g}; nothing was "
                            "written: report it, with the versions of torch, onnx and onnxruntime")
        if int8:
            _store_in_int8(temporary)
    return difference


def _store_in_int8(path):
    """Store the weights of the large convolutions of an ONNX file as int8, with a scale for each output channel."""
    import onnx
    from onnx import helper, numpy_helper

    model = onnx.load(path)
    graph, stored = model.graph, {weights.name: weights for weights in model.graph.initializer}
    for name in dict.fromkeys(node.input[1] for node in graph.node if node.op_type == "Conv"):
        weights = numpy_helper.to_array(stored[name])
        if weights.size < INT8_FROM:
            continue
        scale = np.maximum(np.abs(weights).reshape(len(weights), -1).max(1), 1e-12).astype(np.float32) / 127
        small = np.rint(weights / scale.reshape(-1, *[1] * (weights.ndim - 1))).astype(np.int8)
        graph.initializer.remove(stored[name])
        graph.initializer.extend([numpy_helper.from_array(small, f"{name}.int8"), numpy_helper.from_array(scale, f"{name}.scale")])
        graph.node.insert(0, helper.make_node("DequantizeLinear", [f"{name}.int8", f"{name}.scale"], [name], axis=0))
    onnx.save(model, path)


def parity(detector, path):
    """Largest difference between an ONNX file's outputs and PyTorch's, over random crops in several batch sizes."""
    session, module, largest = open_session(path), InUse(detector.network, detector.card).cpu().eval(), 0.0
    generator = torch.Generator().manual_seed(1)
    for batch in BATCHES:
        crops = torch.rand(batch, 3, detector.card.size, detector.card.size, generator=generator) * 2 - 1
        with torch.inference_mode():
            expected = module(crops)
        for found, wanted in zip(session.run(None, {INPUT: crops.numpy()}), expected, strict=True):
            scale = max(1.0, float(wanted.abs().max()))
            largest = max(largest, float(np.abs(found - wanted.numpy()).max()) / scale)
    module.to(detector.device)
    return largest


def open_session(path, threads=0):
    """An onnxruntime session on the CPU; threads: 0 for one per core. Raises UserError if the file is damaged."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.disable_quant_qdq", "1")  # turns int8 weights back into floats once
    try:
        # bytes, so that the file cannot name weights elsewhere
        return onnxruntime.InferenceSession(Path(path).read_bytes(), options, providers=["CPUExecutionProvider"])
    except Exception as problem:  # protobuf's and onnxruntime's errors
        raise UserError(f"{path} is not an ONNX model that can be run ({reason(problem)}); export it again") from None


@contextlib.contextmanager
def _quiet():
    """Suppress the exporter's warnings and log messages, which are meant for its developers."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
