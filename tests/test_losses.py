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


def test_images_whose_target_is_not_theirs_are_left_out_of_the_noise_loss():
    logit, label = torch.zeros(3), torch.tensor([0.0, 1.0, 1.0])
    noise, target = torch.zeros(3, 3, 2, 2, requires_grad=True), torch.tensor([1.0, 2.0, 9.0]).reshape(3, 1, 1, 1)
    losses = anl_loss(logit, label, noise, target.expand(3, 3, 2, 2), torch.tensor([True, True, False]))
    assert losses["noise_loss"].item() == (1 + 4) / 2
    losses["loss"].backward()
    assert noise.grad[2].abs().max() == 0 and noise.grad[:2].abs().min() > 0
    none = anl_loss(logit, label, noise, target.expand(3, 3, 2, 2), torch.zeros(3, dtype=torch.bool))
    assert none["noise_loss"].item() == 0


def test_the_parts_of_a_batch_sum_to_its_losses():
    generator = torch.Generator().manual_seed(0)
    logit, label = torch.randn(6, generator=generator), torch.tensor([0.0, 1, 0, 1, 0, 1])
    noise, target = (torch.randn(6, 3, 2, 2, generator=generator) for _ in range(2))
    counts = torch.tensor([True, False, True, True, False, False])
    whole = anl_loss(logit, label, noise, target, counts, 0.5)
    parts = [anl_loss(logit[i], label[i], noise[i], target[i], counts[i], 0.5, (6, 3))
             for i in (slice(0, 2), slice(2, 6))]
    for key, value in whole.items():
        torch.testing.assert_close(sum(part[key] for part in parts), value)
