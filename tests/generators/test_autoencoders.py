import pytest
import torch

from anl import seeds
from anl.generators import autoencoders

X = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(9)) * 2 - 1


@pytest.fixture
def vq():
    seeds.fix(0, "vq")
    return autoencoders.build_vq([8, 8], 4, 16)


def test_reconstruction_loss_is_nought_for_the_image_itself_and_sees_blur():
    blurred = torch.nn.functional.avg_pool2d(X, 3, 1, 1)
    assert autoencoders.reconstruction_loss(X, X) == 0
    assert autoencoders.reconstruction_loss(blurred, X) > 2 * (blurred - X).abs().mean()


def test_reconstruction_loss_is_of_first_degree():
    losses = [autoencoders.reconstruction_loss(X + shift, X) for shift in (0.1, 0.2)]
    assert losses[0] >= 0.1 and losses[1] == pytest.approx(2 * losses[0].item(), rel=1e-4)


def test_vae_halves_once_and_its_loss_has_a_gradient():
    seeds.fix(0, "vae")
    vae = autoencoders.build_vae([8, 8], 4)
    assert vae.encode(X).latent_dist.mean.shape == (2, 4, 8, 8)
    autoencoders.vae_loss(vae, X, torch.Generator().manual_seed(0)).backward()
    assert all(torch.isfinite(p.grad).all() for p in vae.parameters() if p.grad is not None)
    assert autoencoders.reconstruct(vae, X).shape == X.shape


def test_codebook_is_filled_with_latents_at_its_first_step(vq):
    critic = autoencoders.PatchDiscriminator()
    before = vq.quantize.embedding.weight.clone()
    autoencoders.vq_loss(vq, critic, X, 1, quantise_from=2, adversarial_from=5, autocast=False)
    assert torch.equal(vq.quantize.embedding.weight, before)
    latents = vq.encode(autoencoders.to_opponent(X)).latents.movedim(1, -1).reshape(-1, 4)
    autoencoders.vq_loss(vq, critic, X, 2, quantise_from=2, adversarial_from=5, autocast=False)
    distance = (vq.quantize.embedding.weight[:, None] - latents).abs().amax(2).amin(1)  # to the nearest latent
    assert distance.max() < 1e-5


def test_the_two_players_get_their_own_gradients(vq):
    critic = autoencoders.PatchDiscriminator()
    autoencoders.vq_loss(vq, critic, X, 1, quantise_from=0, adversarial_from=5, autocast=False).backward()
    assert all(p.grad is None for p in critic.parameters())
    assert vq.decoder.conv_out.weight.grad.abs().sum() > 0
    autoencoders.vq_loss(vq, critic, X, 5, quantise_from=0, adversarial_from=5, autocast=False).backward()
    assert all(p.grad.abs().sum() > 0 for p in critic.parameters() if p.ndim > 1)


def test_the_generators_share_does_not_move_the_critic(vq):
    """With a weight of nought or ten on fooling it, the critic's gradient is the same."""
    gradients = []
    for weight in (0.0, 10.0):
        torch.manual_seed(3)
        critic = autoencoders.PatchDiscriminator()
        autoencoders.vq_loss(vq, critic, X, 9, quantise_from=0, adversarial_from=5, adversarial_weight=weight,
                             autocast=False).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in critic.parameters()]))
    torch.testing.assert_close(*gradients)


def test_opponent_colours_are_invertible_and_grey_has_none():
    torch.testing.assert_close(autoencoders.from_opponent(autoencoders.to_opponent(X)), X)
    grey = X[:, :1].expand(-1, 3, -1, -1)
    opponent = autoencoders.to_opponent(grey)
    torch.testing.assert_close(opponent[:, 0], grey[:, 0])
    assert opponent[:, 1:].abs().max() < 1e-6


def test_the_critic_scores_patches():
    assert autoencoders.PatchDiscriminator()(X).shape == (2, 1, 4, 4)
