from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch._subclasses.fake_tensor import FakeTensorMode

from anl.config import FamilyConfig
from anl.io import UserError
from anl.models.generators import load_model, regenerate, taef2

X = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(9)) * 2 - 1
FAMILY = FamilyConfig(model="taef2")
PUBLISHED = Path("data/sources/taef2")


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    model = taef2.TAEF2()
    for part in ("encoder", "decoder"):
        save_file({key: value.half() for key, value in getattr(model, part).state_dict().items()},
                  tmp_path / f"taef2-{part}.safetensors")
    return tmp_path


def test_it_loads_frozen_in_float32_and_reconstructs(folder):
    model = load_model("taef2", folder)
    assert not model.training and {p.dtype for p in model.parameters()} == {torch.float32}
    assert not any(p.requires_grad for p in model.parameters())
    made = regenerate(FAMILY, {"taef2": model}, X, None)
    assert made.shape == X.shape and model.encoder(X).shape == (2, 32, 4, 4)
    torch.testing.assert_close(regenerate(FAMILY, {"taef2": model}, X[:1], None), made[:1])
    assert sum(p.numel() for p in model.encoder.parameters()) == pytest.approx(1.34e6, rel=0.01)


def test_missing_and_foreign_files_are_named(folder):
    (folder / "taef2-decoder.safetensors").rename(folder / "other.safetensors")
    with pytest.raises(UserError, match=r"holds 0 files \*decoder.safetensors and must hold one; get"):
        load_model("taef2", folder)
    (folder / "taef2-decoder.safetensors").write_bytes((folder / "taef2-encoder.safetensors").read_bytes())
    with pytest.raises(UserError, match="does not hold TAEF2's decoder") as problem:
        load_model("taef2", folder)
    assert "\n" not in str(problem.value)


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="the published weights are not fetched")
def test_published_weights_reconstruct_a_smooth_image():
    ramp = np.linspace(-0.8, 0.8, 64, dtype=np.float32)
    x = torch.from_numpy(np.stack([np.tile(ramp, (64, 1)), np.tile(ramp[:, None], (1, 64)),
                                   np.zeros((64, 64), np.float32)]))[None]
    made = regenerate(FAMILY, {"taef2": load_model("taef2", PUBLISHED)}, x, None)
    assert (made - x).square().mean() < 4 * 10 ** -2.3  # 23 dB of a range of 2


def test_runs_on_cuda():
    with FakeTensorMode(), torch.device("cuda"):
        assert taef2.TAEF2()(torch.empty(1, 3, 16, 16)).device.type == "cuda"
