import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from anl.models.baselines import FeatureCache, weights_hash


def images(count, side):
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1


def make_cache(folder, calls, **changes):
    def double(x):
        calls.append(len(x))
        return 2 * x
    decisive = {"weights": "a", "precision": "fp32", "parameters": {"step": 1}} | changes
    return FeatureCache(double, folder, "double", **decisive)


def test_what_was_computed_is_read_for_each_image_alone(tmp_path):
    calls, x = [], images(4, 8)
    first = make_cache(tmp_path, calls)(x[:3])
    assert torch.allclose(first, 2 * x[:3], atol=2e-3) and calls == [3]
    again = make_cache(tmp_path, calls)(x.flip(0))  # another batch and order: one image is new
    assert torch.equal(again[1:], first.flip(0)) and calls == [3, 1] and again.dtype == torch.float32


@pytest.mark.parametrize("change", [{"weights": "b"}, {"precision": "bf16"}, {"parameters": {"step": 2}}])
def test_all_that_decides_a_representation_is_in_its_key(tmp_path, change):
    calls, x = [], images(2, 8)
    make_cache(tmp_path, calls)(x)
    make_cache(tmp_path, calls, **change)(x)
    assert calls == [2, 2]


def test_a_damaged_file_is_computed_again(tmp_path):
    calls, x = [], images(1, 8)
    first = make_cache(tmp_path, calls)(x)
    path, = tmp_path.rglob("*.safetensors")
    path.write_bytes(path.read_bytes()[:40])
    assert torch.equal(make_cache(tmp_path, calls)(x), first)
    save_file({"other": torch.zeros(1)}, path)
    assert torch.equal(make_cache(tmp_path, calls)(x), first) and calls == [1, 1, 1]


def test_the_hash_of_a_model_changes_with_a_weight():
    layer = nn.Linear(2, 2).to(torch.bfloat16)
    before = weights_hash(layer, None, {"scale": 0.5})
    assert before == weights_hash(layer, None, {"scale": 0.5}) != weights_hash(layer, None, {"scale": 0.6})
    with torch.no_grad():
        layer.bias[0] += 1
    assert weights_hash(layer, None, {"scale": 0.5}) != before
