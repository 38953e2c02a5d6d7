import pytest
import torch
from torch.nn import functional as F

from anl.io import UserError
from anl.models.frontends import FRONT_ENDS, build_front_end, residuals


def image(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_residuals_equal_a_convolution_with_reflection_padding():
    x = image(2, 3, 9, 12) * 0.01  # small enough to stay within the clipping
    rows = [[0.0] * 5, [0, -1, 2, -1, 0], [0, 2, -4, 2, 0], [0, -1, 2, -1, 0], [0] * 5]
    kernel = torch.tensor(rows) / 4
    padded = F.pad(x * 127.5, (2, 2, 2, 2), mode="reflect")
    expected = F.conv2d(padded[:, 1:2], kernel[None, None]).clamp(-3, 3)  # second colour, first filter
    torch.testing.assert_close(residuals(x)[:, 3:4], expected)
    ramp = torch.linspace(-0.4, 0.4, 32).expand(1, 3, 32, 32)
    assert residuals(ramp)[..., 4:-4, 4:-4].abs().max() < 1e-3
    assert residuals(image(1, 3, 16, 16)).abs().max() == 3


def test_residuals_are_standardised_over_the_batch():
    front = build_front_end("residual", 4).train()
    seen = []
    front.stem.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    front(image(4, 3, 16, 16))
    torch.testing.assert_close(seen[0].mean((0, 2, 3)), torch.zeros(9), atol=1e-4, rtol=0)
    torch.testing.assert_close(seen[0].var((0, 2, 3), correction=0), torch.ones(9), atol=1e-3, rtol=0)


@pytest.mark.parametrize("name", sorted(FRONT_ENDS.keys() - {"backbone"}))
def test_what_the_stem_and_the_backbone_read(name):
    front, x, noise = build_front_end(name, 4).eval(), image(2, 3, 16, 16) * 0.02, image(2, 3, 16, 16, seed=1)
    h = front(x)
    read = front.backbone_input(h, noise, x)
    assert h.shape == (2, 4, 16, 16) and read.shape == (2, front.backbone_channels, 16, 16)
    assert (read is h) == (name in ("image", "residual"))
    assert name != "noise" or torch.equal(read, front.backbone_input(torch.zeros_like(h), noise, x))
    sees_brightness = (h - front(x + 0.3)).abs().max() > 1e-3
    assert sees_brightness == (name == "image")


def test_the_backbone_can_read_the_image_without_a_stem():
    front, x = build_front_end("backbone", 4), image(2, 3, 16, 16)
    assert front(x) is None and front.backbone_input(None, None, x) is x and not list(front.parameters())


def test_unknown_front_end():
    with pytest.raises(UserError, match="there is no method.front_end 'sound'; choose one of image, backbone"):
        build_front_end("sound", 4)
