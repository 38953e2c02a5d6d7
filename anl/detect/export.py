"""A detector in use as ONNX, for runtimes without PyTorch: crops in; logit, probability, noise and attention out.

The file holds the detector and, as metadata, its card; no diffusion model is inside. Cutting a picture up and joining its
crops' logits (anl.detect.crops) stays with the caller, as do the card's rule and thresholds.
"""

import contextlib
import io
import json
import logging
import warnings

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import average_precision_score
from torch import nn
from torch.export import Dim

from anl.benchmark import REAL, read_images, read_manifest, use_rows
from anl.data.patches import to_tensor
from anl.errors import UserError
from anl.files import whole_file

INPUT, OUTPUTS = "crops", ("logit", "probability", "noise", "attention")
TOLERANCE = 1e-4  # of every output against PyTorch
CALIBRATION = 256  # validation crops that the int8 ranges are taken from
OPSET = 20


class _Outputs(nn.Module):
    """crops: float32 (N, 3, H, W) in [-1, 1], H and W multiples of 16 -> logit (N,), probability (N,) of the crop taken for
    a whole picture, noise (N, C, H/k, W/k) and attention (N, h, w), where the detector has them."""

    def __init__(self, detector, card):
        super().__init__()
        self.detector, self.midpoint, self.temperature = detector, card.midpoint, card.temperature

    def forward(self, crops):
        output = self.detector(crops)
        found = [output.logit, torch.sigmoid((output.logit - self.midpoint) / self.temperature)]
        return tuple(found if output.noise is None else [*found, output.noise, output.map])


def export(in_use, path):
    """Write `path` (.onnx) from an ImageDetector; returns the largest difference of any output from PyTorch's.

    Batch, height and width are free. Raises UserError if the detector cannot be exported, or differs by more than TOLERANCE.
    """
    module = _Outputs(in_use.detector.cpu().eval(), in_use.card).eval()
    example = torch.rand(2, 3, in_use.card.size, in_use.card.size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.inference_mode():
        names = OUTPUTS[:len(module(example))]
    shapes = {0: Dim("batch", min=1), 2: 16 * Dim("height", min=1), 3: 16 * Dim("width", min=1)}
    try:
        with _quiet("torch.onnx"), contextlib.redirect_stdout(io.StringIO()):
            program = torch.onnx.export(module, (example,), dynamo=True, dynamic_shapes=(shapes,), opset_version=OPSET,
                                        input_names=[INPUT], output_names=list(names), verbose=False)
    except Exception as problem:  # the exporter has many errors of its own
        reason = (str(problem).strip().splitlines() or [type(problem).__name__])[0]
        raise UserError(f"{in_use.folder} cannot be exported ({reason[:160]}); detectors of anl's own kind can") from None
    program.model.metadata_props["card"] = json.dumps(in_use.card.whole, sort_keys=True)
    with whole_file(path) as temporary:
        program.save(temporary, external_data=False)
        difference = parity(module, temporary, in_use.card.size)
        if not difference <= TOLERANCE:
            raise UserError(f"the exported file differs from PyTorch by {difference:.1e}, over {TOLERANCE:g}; nothing was written")
    return difference


@contextlib.contextmanager
def _quiet(name=None):
    """Neither warnings nor a logger's advice, which are for who writes an exporter."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def parity(module, path, size):
    """Largest absolute difference between the file's outputs and the module's, on batches of several shapes."""
    session, most = open_session(path), 0.0
    generator = torch.Generator().manual_seed(1)
    for batch, height, width in ((1, size, size), (3, size, size), (2, size + 16, size + 48)):
        crops = torch.rand(batch, 3, height, width, generator=generator) * 2 - 1
        with torch.inference_mode():
            expected = module(crops)
        for found, wanted in zip(session.run(None, {INPUT: crops.numpy()}), expected, strict=True):
            most = max(most, float(np.abs(found - wanted.numpy()).max()))
    return most


def open_session(path, threads=0):
    """An onnxruntime session on the CPU; threads: 0 for as many as it likes. Raises UserError if the file is damaged or keeps data outside of itself."""
    import onnx
    import onnxruntime
    from onnx.external_data_helper import uses_external_data

    try:
        model = onnx.load(path, load_external_data=False)
        outside = [tensor.name for part in (model.graph, *model.functions) for tensor in _tensors(part)
                   if uses_external_data(tensor)]
        if outside:
            raise UserError(f"{path} keeps the weights {outside[0]} in another file; get one that is whole")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except UserError:
        raise
    except Exception as problem:  # protobuf's and onnxruntime's own errors
        reason = (str(problem).strip().splitlines() or [type(problem).__name__])[0]
        raise UserError(f"{path} is no ONNX model that can be run ({reason[:160]}); export it again") from None


def _tensors(part):
    """Every tensor of an ONNX graph or function, those of its nodes and of the graphs inside them too."""
    yield from getattr(part, "initializer", ())
    for sparse in getattr(part, "sparse_initializer", ()):
        yield from (sparse.values, sparse.indices)
    for node in part.node:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                yield from (sparse.values, sparse.indices)
            for inner in (attribute.g, *attribute.graphs):
                yield from _tensors(inner)


def quantise(path, target, params):
    """Write `target`, the file `path` with 8-bit weights and activations, its ranges from validation crops of the benchmark.

    Returns its measured loss: DataFrame, a row per test generator: AP of the 32-bit and of the 8-bit file, raw view.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    rows = use_rows(read_manifest(params.benchmark.folder), params)
    mine = rows["generator"].isin([REAL, params.benchmark.seen]) & (rows["split"] == "val")
    crops = to_tensor(read_images(params.benchmark.folder, rows[mine].sort_values("sha256").head(CALIBRATION))).numpy()

    class Reader(CalibrationDataReader):
        batches = iter([{INPUT: crops[i:i + 32]} for i in range(0, len(crops), 32)])

        def get_next(self):
            return next(self.batches, None)

    with _quiet(), whole_file(target) as temporary:  # it advises on the root logger
        quantize_static(path, temporary, Reader(), quant_format=QuantFormat.QDQ, per_channel=True,
                        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8)
        return _loss(path, temporary, rows[rows["split"] == "test"], params)


def _loss(path, target, rows, params):
    pixels = read_images(params.benchmark.folder, rows)
    table = rows[["generator", "label"]].copy()
    for name, file in (("fp32", path), ("int8", target)):
        session = open_session(file)
        table[name] = np.concatenate([session.run(["logit"], {INPUT: to_tensor(pixels[i:i + 128]).numpy()})[0]
                                      for i in range(0, len(pixels), 128)])
    found = []
    for generator in params.families:
        part = table[table["generator"].isin([REAL, generator])]
        found.append({"generator": generator, "n": len(part),
                      **{f"AP_{name}": average_precision_score(part["label"], part[name]) for name in ("fp32", "int8")}})
    return pd.DataFrame(found)
