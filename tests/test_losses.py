import math

import torch

from anl.losses import anl_loss


def test_against_a_hand_calculation():
    logit, label = torch.tensor([0.0, 2.0]), torch.tensor([1.0, 0.0])
    noise, target = torch.zeros(2, 3, 1, 1), torch.full((2, 3, 1, 1), 2.0)
    losses = anl_loss(logit, label, noise, target, loss_weight=0.5)
    classification = (math.log(2) + math.log(1 + math.exp(2))) / 2
    assert math.isclose(losses["classification_loss"].item(), classification, rel_tol=1e-6)
    assert losses["noise_loss"].item() == 4.0
    assert math.isclose(losses["loss"].item(), classification + 2.0, rel_tol=1e-6)


def test_without_a_noise_head_the_loss_is_classification_alone():
    losses = anl_loss(torch.tensor([0.0]), torch.tensor([1.0]))
    assert losses["noise_loss"] is None and losses["loss"] is losses["classification_loss"]
