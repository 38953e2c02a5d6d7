import pytest
import torch

from anl.io import UserError
from anl.models.generators import small
from anl.models.generators.autoencoders import hinge_loss

X = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(9)) * 2 - 1


def players():
    torch.manual_seed(0)
    return small.Decoder([4, 4, 4], 4, 32), small.build_encoder([4, 4, 4], 1, 32, spectral=True)


def test_elbo_by_hand():
    x = torch.zeros(1, 3, 2, 2)
    decoded = torch.full_like(x, 0.25)
    draws = torch.Generator().manual_seed(0)
    code = torch.tensor([[0.0, 0.0]])  # mean 0, log variance 0: the prior itself, no divergence
    loss = small.elbo_loss(lambda _: decoded, lambda _: code, x, draws, precision="fp32")
    assert loss.item() == pytest.approx(0.5)  # half a squared standard deviation for each value
    loss = small.elbo_loss(lambda _: decoded, lambda _: torch.tensor([[2.0, 0.0]]), x, draws, precision="fp32")
    assert loss.item() == pytest.approx(0.5 + 2 / 12)


def test_each_player_gets_the_gradient_of_its_own_loss():
    """The same gradients as two separate losses with the other player frozen."""
    decoder, discriminator = players()
    discriminator.eval()  # no power iterations, which would differ with the number of calls
    small.gan_loss(decoder, discriminator, X, torch.Generator().manual_seed(1), "fp32").backward()
    both = [[p.grad.clone() for p in model.parameters()] for model in (decoder, discriminator)]
    decoder, discriminator = players()
    discriminator.eval()
    z = torch.randn(2, 4, generator=torch.Generator().manual_seed(1))
    hinge_loss(discriminator, X, decoder(z).detach()).backward()
    expected = [p.grad.clone() for p in discriminator.parameters()]
    assert all(p.grad is None for p in decoder.parameters())
    decoder, discriminator = players()
    (-discriminator.eval().requires_grad_(False)(decoder(z)).mean()).backward()
    torch.testing.assert_close(both[1], expected)
    torch.testing.assert_close(both[0], [p.grad for p in decoder.parameters()], atol=1e-5, rtol=1e-3)


def test_statistics_are_those_of_the_current_weights():
    decoder, _ = players()
    with torch.no_grad():
        decoder.start.weight.mul_(5)
    draws = torch.Generator().manual_seed(0)
    made = small.decode_noise(small.refresh_statistics(decoder, draws), 64, draws)
    decoder.train()
    in_training = small.decode_noise(decoder, 64, draws)
    assert made.std().item() == pytest.approx(in_training.std().item(), rel=0.2)


def test_a_decoder_survives_saving(tmp_path):
    decoder = players()[0].eval()
    small.save_decoder(decoder, tmp_path)
    one, two = (small.decode_noise(each, 3, torch.Generator().manual_seed(2))
                for each in (decoder, small.load_decoder(tmp_path)))
    assert torch.equal(one, two) and one.shape == (3, 3, 32, 32) and one.abs().max() <= 1
    (tmp_path / small.WEIGHTS).write_bytes(b"broken")
    with pytest.raises(UserError, match="model.safetensors holds no generator"):
        small.load_decoder(tmp_path)


def test_a_size_that_the_channels_do_not_reach_is_refused():
    with pytest.raises(UserError, match="images of 64 pixels need 4 entries in `channels`"):
        small.Decoder([4, 4, 4], 4, 64)
