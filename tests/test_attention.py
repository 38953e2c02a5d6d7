import pytest
import torch

from anl import attention

NAMES = ("none", "energy", "gate", "affinity")


def inputs(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(3, 12, 4, 4, generator=generator), torch.randn(3, 3, 32, 32, generator=generator)


@pytest.mark.parametrize("name", NAMES)
def test_map_is_a_distribution_over_the_image(name):
    features, noise = inputs()
    out, weights = attention.build(name, 12, 4, 4)(features, noise)
    assert out.shape == features.shape and weights.shape == (3, 4, 4)
    assert (weights >= 0).all()
    torch.testing.assert_close(weights.sum((1, 2)), torch.ones(3))


@pytest.mark.parametrize("name", ["energy", "gate", "affinity"])
def test_noise_reaches_the_features_and_gets_a_gradient(name):
    features, noise = inputs()
    module = attention.build(name, 12, 4, 4)
    with torch.no_grad():  # gate starts as the identity: move it off its start
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    noise.requires_grad_()
    out, _ = module(features, noise)
    out.square().sum().backward()
    assert noise.grad.abs().sum() > 0
    other, _ = module(features, inputs(seed=7)[1])
    assert not torch.allclose(out, other)


def test_energy_listens_to_where_the_noise_is_loud():
    features, noise = inputs()
    noise[:, :, :8, :8] *= 6  # the first of the 4 x 4 cells
    _, weights = attention.build("energy", 12, 4, 4)(features, noise)
    assert (weights.flatten(1).argmax(1) == 0).all()


def test_affinity_shares_evidence_between_places_of_like_noise():
    """With sharp, identity-like queries, a cell takes its evidence from the cells whose noise is like its own."""
    module = attention.AffinityAttention(patch=4, grid=4, dim=32)
    with torch.no_grad():
        module.query.weight.copy_(20 * torch.eye(32))
        module.key.weight.copy_(torch.eye(32))
        module.gamma.fill_(1.0)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(1, 3, 32, 32, generator=generator)
    noise[:, :, :, 16:] *= 10                                    # right half: another kind of noise
    features = torch.zeros(1, 1, 4, 4)
    features[..., 2:] = 1.0                                      # evidence on the right half only
    out, _ = module(features, noise)
    assert out[..., :2].max() < 0.1 and out[..., 2:].min() > 0.9


def test_effective_support_of_known_maps():
    uniform = torch.full((1, 4, 4), 1 / 16)
    single = torch.zeros(1, 4, 4)
    single[0, 1, 2] = 1
    half = torch.zeros(1, 4, 4)
    half[0, :2] = 1 / 8
    support = attention.effective_support(torch.cat([uniform, single, half]))
    torch.testing.assert_close(support, torch.tensor([1.0, 1 / 16, 0.5]).double())


def test_entropy_in_bits_and_support_agree():
    uniform = torch.full((1, 4, 4), 1 / 16)
    single = torch.zeros(1, 4, 4)
    single[0, 1, 2] = 1
    bits = attention.entropy(torch.cat([uniform, single]))
    torch.testing.assert_close(bits, torch.tensor([4.0, 0.0]).double())
    weights = torch.rand(5, 3, 4, generator=torch.Generator().manual_seed(0)).double()
    weights /= weights.sum((1, 2), keepdim=True)
    torch.testing.assert_close(attention.effective_support(weights), 2 ** attention.entropy(weights) / 12)


@pytest.mark.parametrize("side, patch", [(4, 1), (8, 2), (4, 4)])
@pytest.mark.parametrize("name", NAMES)
def test_noise_of_a_latent_prior_works_as_coarse_as_the_features(name, side, patch):
    """Four channels, from two values a feature down to one, or to one patch for the whole image."""
    features, _ = inputs()
    noise = torch.randn(3, 4, side, side, generator=torch.Generator().manual_seed(2))
    out, weights = attention.build(name, 12, patch, 4, noise_channels=4)(features, noise)
    assert out.shape == features.shape and torch.isfinite(out).all()
    torch.testing.assert_close(weights.sum((1, 2)), torch.ones(3))


@pytest.mark.parametrize("name", NAMES)
def test_three_channels_are_the_default_bit_for_bit(name):
    states = []
    for more in ({}, {"noise_channels": 3}):
        torch.manual_seed(0)
        states.append(attention.build(name, 12, 4, 4, **more).state_dict())
    assert list(states[0]) == list(states[1])
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_parameters_of_the_forms_keep_their_shapes():
    """Saved detectors hold these; another order of initialisation would train another detector from the same seed."""
    shapes = {name: {key: tuple(value.shape) for key, value in attention.build(name, 12, 4, 4).state_dict().items()}
              for name in NAMES}
    assert shapes["none"] == {} and shapes["energy"] == {"temperature": ()}
    assert shapes["gate"]["embed.weight"] == (16, 6, 1, 1) and shapes["affinity"]["embed.weight"] == (32, 3, 4, 4)
    torch.manual_seed(0)
    first = torch.nn.Conv2d(3, 32, 4, 4).weight
    torch.manual_seed(0)
    assert torch.equal(attention.build("affinity", 12, 4, 4).embed.weight, first)
