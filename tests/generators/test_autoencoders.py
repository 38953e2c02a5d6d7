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


@pytest.mark.parametrize("build", [lambda: autoencoders.build_vae([8, 16, 16], 4), lambda: autoencoders.build_vq([8, 16], 4, 16)])
def test_an_untrained_autoencoder_passes_colour_and_contrast_on(build):
    """With a normalisation before the last convolutions the output would not follow the input's scale."""
    seeds.fix(0, "start")
    model = build()
    smooth = torch.nn.functional.interpolate(X[:, :, :4, :4], 32, mode="bicubic") * 0.5

    def decoded(x):
        with torch.no_grad():
            if isinstance(model, autoencoders.AutoencoderKL):
                return model.decode(model.encode(x).latent_dist.mean).sample
            return model.decoder(model.post_quant_conv(model.encode(x).latents))  # without the codebook

    out = decoded(smooth)
    for channel in range(3):
        both = torch.stack([out[:, channel].flatten(), smooth[:, channel].flatten()])
        assert torch.corrcoef(both)[0, 1] > 0.5
    assert decoded(smooth / 4).std() < 0.5 * out.std()


def test_an_autoencoder_survives_saving_and_loading(vq, tmp_path):
    vq.save_pretrained(tmp_path)
    again = autoencoders.ScaledVQModel.from_pretrained(tmp_path, local_files_only=True)
    assert isinstance(again.encoder.conv_norm_out, torch.nn.Identity) and again.config.num_vq_embeddings == 16
    torch.testing.assert_close(autoencoders.reconstruct(again, X), autoencoders.reconstruct(vq, X))


def test_the_codebook_is_filled_with_centres_of_the_latents(vq):
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


def test_the_two_players_get_their_own_gradients(vq):
    critic = autoencoders.PatchDiscriminator()
    autoencoders.vq_loss(vq, critic, X, adversarial=False, autocast=False).backward()
    assert all(p.grad is None for p in critic.parameters())
    assert vq.decoder.conv_out.weight.grad.abs().sum() > 0
    autoencoders.vq_loss(vq, critic, X, autocast=False).backward()
    assert all(p.grad.abs().sum() > 0 for p in critic.parameters() if p.ndim > 1)


def test_the_generators_share_does_not_move_the_critic(vq):
    """With a weight of nought or ten on fooling it, the critic's gradient is the same."""
    gradients = []
    for weight in (0.0, 10.0):
        torch.manual_seed(3)
        critic = autoencoders.PatchDiscriminator()
        autoencoders.vq_loss(vq, critic, X, adversarial_weight=weight,
                             autocast=False).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in critic.parameters()]))
    torch.testing.assert_close(*gradients)


def test_without_quantising_the_codebook_is_left_alone(vq):
    autoencoders.vq_loss(vq, None, X, quantise=False, adversarial=False, autocast=False).backward()
    assert vq.quantize.embedding.weight.grad is None
    autoencoders.vq_loss(vq, None, X, adversarial=False, autocast=False).backward()
    assert vq.quantize.embedding.weight.grad.abs().sum() > 0


def test_the_critic_scores_patches():
    assert autoencoders.PatchDiscriminator()(X).shape == (2, 1, 4, 4)
