import json

import numpy as np
import onnx
import pytest
import torch

from anl import detector as detectors
from anl.data.patches import to_tensor
from anl.detect import export, scorer
from anl.detect.crops import aggregate
from anl.errors import UserError


@pytest.fixture(scope="module")
def exported(folder, tmp_path_factory):
    """(path, difference) of the tiny detector as ONNX."""
    path = tmp_path_factory.mktemp("onnx") / "detector.onnx"
    return path, export.export(scorer.ImageDetector.load(folder), path)


def test_parity_in_every_output_at_sizes_the_exporter_never_saw(exported, in_use):
    path, difference = exported
    assert difference <= export.TOLERANCE
    session = export.open_session(path)
    assert [item.name for item in session.get_outputs()] == list(export.OUTPUTS)
    crops = torch.rand(4, 3, 80, 48) * 2 - 1
    logit, probability, noise, attention = session.run(None, {export.INPUT: crops.numpy()})
    with torch.inference_mode():
        expected = in_use.detector(crops)
    np.testing.assert_allclose(logit, expected.logit, atol=1e-4)
    np.testing.assert_allclose(noise, expected.noise, atol=1e-4)
    np.testing.assert_allclose(attention, expected.map, atol=1e-4)
    np.testing.assert_allclose(probability, [in_use.card.probability(value) for value in logit], atol=1e-5)


def test_a_pictures_score_is_the_same_with_onnxruntime(exported, in_use, picture):
    session = export.open_session(exported[0])
    logit = session.run(["logit"], {export.INPUT: to_tensor(in_use.tile(picture).crops).numpy()})[0]
    assert aggregate(logit, in_use.card.rule) == pytest.approx(in_use.score(picture).logit, abs=1e-4)


def test_the_file_holds_its_card_and_no_diffusion_model(exported, in_use):
    model = onnx.load(exported[0])
    assert json.loads({item.key: item.value for item in model.metadata_props}["card"]) == in_use.card.whole
    held = sum(np.prod(tensor.dims) for tensor in model.graph.initializer)
    assert held < 1.05 * sum(value.numel() for value in in_use.detector.state_dict().values()) + 1000


def test_a_plain_detector_has_two_outputs(in_use, tmp_path):
    plain = scorer.ImageDetector(detectors.Detector("test_resnet", 8, 8, 4, 32, noise=False, attention="none").eval(), in_use.card)
    assert export.export(plain, tmp_path / "plain.onnx") <= export.TOLERANCE
    assert [item.name for item in export.open_session(tmp_path / "plain.onnx").get_outputs()] == ["logit", "probability"]


@pytest.mark.parametrize("switch", [{"branch": "shallow"}, {"reads": "residual"}, {"reads": "noise"}])
def test_detectors_of_other_forms_are_exported_too(in_use, tmp_path, switch):
    other = detectors.Detector("test_resnet", 8, 8, 4, 32, attention_dim=8, **switch).eval()
    assert export.export(scorer.ImageDetector(other, in_use.card), tmp_path / "x.onnx") <= export.TOLERANCE
    assert len(export.open_session(tmp_path / "x.onnx").get_outputs()) == len(export.OUTPUTS)


def test_a_file_that_differs_is_not_written(in_use, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "parity", lambda *arguments: 0.5)
    with pytest.raises(UserError, match="differs from PyTorch by 5.0e-01"):
        export.export(in_use, tmp_path / "x.onnx")
    assert list(tmp_path.iterdir()) == []


def test_int8_is_smaller_and_its_loss_is_measured(exported, world, tmp_path):
    loss = export.quantise(exported[0], tmp_path / "int8.onnx", world.params)
    assert loss["generator"].tolist() == list(world.params.families) and loss[["AP_fp32", "AP_int8"]].notna().all(axis=None)
    assert [path.name for path in tmp_path.iterdir()] == ["int8.onnx"]
    model = onnx.load(tmp_path / "int8.onnx")
    assert any(node.op_type == "DequantizeLinear" for node in model.graph.node)
    crops = torch.rand(2, 3, 32, 32).numpy()
    full, small = (export.open_session(path).run(["logit"], {export.INPUT: crops})[0] for path in (exported[0], tmp_path / "int8.onnx"))
    np.testing.assert_allclose(full, small, atol=0.2)


def test_damaged_files_and_weights_kept_elsewhere_are_refused(exported, tmp_path):
    (tmp_path / "x.onnx").write_bytes(b"no model")
    with pytest.raises(UserError, match="x.onnx is no ONNX model that can be run"):
        export.open_session(tmp_path / "x.onnx")
    model = onnx.load(exported[0])
    onnx.save(model, tmp_path / "y.onnx", save_as_external_data=True, location="weights", size_threshold=0)
    with pytest.raises(UserError, match="keeps the weights .* in another file"):
        export.open_session(tmp_path / "y.onnx")
