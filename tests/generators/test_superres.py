import torch

from anl import seeds
from anl.generators import superres

X = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(9)) * 2 - 1


def test_it_starts_as_the_bicubic_enlargement_and_learns():
    seeds.fix(0, "superres")
    model = superres.SuperResolver(8, 1, 4)
    torch.testing.assert_close(superres.bring_back(model, X), superres.enlarge(superres.shrink(X, 4), 4))
    superres.superres_loss(model, X, texture_weight=1.0, autocast=False).backward()
    assert model.last[-1].weight.grad.abs().sum() > 0


def test_texture_loss_asks_for_strength_not_for_the_same_detail():
    blurred = torch.nn.functional.avg_pool2d(X, 3, 1, 1)
    assert superres.texture_loss(X, X) == 0
    assert superres.texture_loss(X.flip(0).roll(1, 2), X) < superres.texture_loss(blurred, X) / 3
