import pytest
import torch
from safetensors.torch import save_file

from anl.io import UserError
from anl.models.ffdnet import FFDNet, load_ffdnet


@pytest.mark.parametrize("size", [(8, 8), (7, 10), (9, 9)])
def test_a_network_that_passes_its_input_on_returns_the_image(size):
    """Weights that copy the twelve channels of small images: positive values survive every ReLU."""
    network = FFDNet()
    for layer in network.model:
        if isinstance(layer, torch.nn.Conv2d):
            torch.nn.init.zeros_(layer.weight)
            torch.nn.init.zeros_(layer.bias)
            layer.weight.data[range(12), range(12), 1, 1] = 1
    x = torch.rand(2, 3, *size)
    torch.testing.assert_close(network(x, torch.full((2, 1, 1, 1), 0.1)), x)


def test_the_noise_level_is_read():
    network, x = FFDNet(), torch.rand(2, 3, 8, 8)
    one, other = (network(x, torch.tensor([0.1, level]).view(2, 1, 1, 1)) for level in (0.1, 0.2))
    assert torch.equal(one[0], other[0]) and not torch.equal(one[1], other[1])


def test_load(tmp_path):
    network, path = FFDNet(), tmp_path / "ffdnet.safetensors"
    save_file(network.state_dict(), path)
    again = load_ffdnet(path)
    assert not again.training and not any(p.requires_grad for p in again.parameters())
    assert all(torch.equal(one, other) for one, other in zip(network.parameters(), again.parameters(), strict=True))


def test_other_files_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"ffdnet.safetensors is missing \(method.denoiser_weights\)"):
        load_ffdnet(tmp_path / "ffdnet.safetensors")
    for name, content in (("torn.safetensors", b"\x08"), ("pickle.safetensors", b"\x80\x02}q\x00.")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match="does not hold FFDNet's weights"):
            load_ffdnet(tmp_path / name)
    save_file({"model.0.weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="does not hold FFDNet's weights"):
        load_ffdnet(tmp_path / "other.safetensors")
