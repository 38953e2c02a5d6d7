import pytest
import torch
from torch.nn import functional as F

from anl.models.generators import superres

X = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(9)) * 2 - 1


def test_it_starts_as_the_bicubic_enlargement_and_learns():
    model = superres.SuperResolver(8, 1, 4)
    torch.testing.assert_close(superres.restore(model, X), superres.enlarge(superres.shrink(X, 4), 4))
    superres.superres_loss(model, X, texture_weight=1.0).backward()
    assert model.last[-1].weight.grad.abs().sum() > 0


@pytest.mark.parametrize("side", [1, 2, 7])
def test_double_is_bilinear_interpolation(side):
    one, two = (X[:, :, :side, :5].clone().requires_grad_() for _ in range(2))
    mine, reference = superres.double(one), F.interpolate(two, scale_factor=2, mode="bilinear")
    torch.testing.assert_close(mine, reference)
    mine.square().sum().backward()
    reference.square().sum().backward()
    torch.testing.assert_close(one.grad, two.grad)


def test_texture_loss_compares_the_strength_of_detail_not_the_detail():
    blurred = F.avg_pool2d(X, 3, 1, 1)
    assert superres.texture_loss(X, X) == 0
    assert superres.texture_loss(X.flip(0).roll(1, 2), X) < superres.texture_loss(blurred, X) / 3
