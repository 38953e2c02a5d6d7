import pytest
import torch
from torch.nn import functional as F

from anl.models.generators import autoencoders

X = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(9)) * 2 - 1


def test_high_pass_is_the_mirrored_box_filters_remainder():
    expected = X - F.avg_pool2d(F.pad(X, (1, 1, 1, 1), mode="reflect"), 3, 1)
    torch.testing.assert_close(autoencoders.high_pass(X), expected)


def test_reconstruction_loss_is_zero_for_the_image_itself_and_scales_with_the_error():
    blurred = F.avg_pool2d(X, 3, 1, 1)
    assert autoencoders.reconstruction_loss(X, X) == 0
    assert autoencoders.reconstruction_loss(blurred, X) > 2 * (blurred - X).abs().mean()
    losses = [autoencoders.reconstruction_loss(X + shift, X) for shift in (0.1, 0.2)]
    assert losses[0] == pytest.approx(0.5, rel=1e-4) and losses[1] == pytest.approx(2 * losses[0].item(), rel=1e-4)


def test_the_vae_halves_once_and_decodes_its_latents():
    vae = autoencoders.build_vae([8, 8], 4)
    assert vae.encode(X).latent_dist.mean.shape == (2, 4, 8, 8)
    vae.register_to_config(scaling_factor=3.0)
    latent = autoencoders.encode(vae, X, "fp32")
    torch.testing.assert_close(autoencoders.decode(vae, latent), autoencoders.reconstruct(vae, X), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("build, settings", [(autoencoders.build_vae, ([8, 16, 16], 4)),
                                             (autoencoders.build_vq, ([8, 16], 4, 16))])
def test_an_untrained_autoencoder_keeps_colour_and_contrast(build, settings):
    """With a normalisation before the last convolutions the output would not follow the input's scale."""
    torch.manual_seed(0)
    model = build(*settings)
    smooth = F.interpolate(X[:, :, :4, :4], 32, mode="bicubic") * 0.5
    if hasattr(model, "quantize"):  # without the codebook
        model.quantize.forward = lambda latents: (latents, None, None)
    out = autoencoders.reconstruct(model, smooth)
    for channel in range(3):
        both = torch.stack([out[:, channel].flatten(), smooth[:, channel].flatten()])
        assert torch.corrcoef(both)[0, 1] > 0.5
    assert autoencoders.reconstruct(model, smooth / 4).std() < 0.5 * out.std()


def test_the_codebook_is_filled_with_centres_of_the_latents():
    torch.manual_seed(0)
    vq = autoencoders.build_vq([8, 8], 4, 16)
    autoencoders.fill_codebook(vq, [X, X.flip(3)], seed=0)
    with torch.no_grad():
        latents = vq.encode(X).latents.movedim(1, -1).reshape(-1, 4)
    codes = vq.quantize.embedding.weight
    nearest = torch.cdist(latents, codes).amin(1).square().mean()
    assert len(codes.unique(dim=0)) == len(codes)
    assert nearest < 0.3 * (latents - latents.mean(0)).square().sum(1).mean()
    before = codes.clone()
    autoencoders.fill_codebook(vq, [X, X.flip(3)], seed=0)
    torch.testing.assert_close(codes, before)


def test_hinge_loss_by_hand():
    scores = iter([torch.tensor([0.5, 2.0]), torch.tensor([-3.0, 0.0])])
    assert autoencoders.hinge_loss(lambda _: next(scores), None, None).item() == pytest.approx(0.25 + 0.5)
