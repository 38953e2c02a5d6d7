import pytest
import torch
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from anl.io import UserError
from anl.models import attention
from anl.models.attention import ATTENTIONS, build_attention

READS_NOISE = ("energy", "gate", "affinity", "relation", "relation_other")
TRAINING_ONLY = ("none", "transfer", "erase", "spread")


def make(name, **changes):
    torch.manual_seed(0)
    return build_attention(name, 12, 4, **{"noise_size": 32, "dim": 8, "patch": 4, **changes})


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def inputs(seed=0):
    return normal(4, 12, 4, 4, seed=seed), normal(4, 3, 32, 32, seed=seed + 1)


def moved(module, seed=5):
    """The module away from its neutral initial weights."""
    with torch.no_grad():
        for index, parameter in enumerate(module.parameters()):
            parameter.add_(0.3 * normal(*parameter.shape, seed=seed + index))
    return module


@pytest.mark.parametrize("name", ATTENTIONS)
def test_what_a_form_declares_is_what_it_does(name):
    features, noise = inputs()
    module = moved(make(name))
    for training in (True, False):
        out, weights = module.train(training)(features, noise)
        assert out.shape == features.shape and weights.shape == (4, 4, 4) and (weights >= 0).all()
        torch.testing.assert_close(weights.sum((1, 2)), torch.ones(4))
    assert torch.equal(out, features) == module.training_only == (name in TRAINING_ONLY)
    other = module(features, inputs(seed=7)[1])[0]
    assert (not torch.allclose(out, other)) == module.reads_noise == (name in READS_NOISE)


@pytest.mark.parametrize("name", READS_NOISE)
def test_noise_gets_a_gradient(name):
    features, noise = inputs()
    for values in (noise, torch.zeros_like(noise)):
        values.requires_grad_()
        moved(make(name))(features, values)[0].square().sum().backward()
        assert torch.isfinite(values.grad).all()
    assert noise.grad.abs().sum() > 0


def test_energy_weights_the_loudest_cell_most():
    features, noise = inputs()
    noise[:, :, :8, :8] *= 6  # the first of the 4 x 4 cells
    _, weights = make("energy")(features, noise)
    assert (weights.flatten(1).argmax(1) == 0).all()
    _, weights = make("energy")(features, torch.zeros_like(noise))
    torch.testing.assert_close(weights, torch.full((4, 4, 4), 1 / 16))


def test_affinity_only_weights_cells_and_a_relation_does_more():
    """After mean pooling, affinity equals weighted pooling with the column means of its matrix; relation does not."""
    features, noise = inputs()
    module = moved(make("affinity"))
    out, weights = module(features, noise)
    pooled = (features * weights[:, None]).sum((2, 3))
    expected = features.mean((2, 3)) + module.gamma * (pooled - features.mean((2, 3)))
    torch.testing.assert_close(out.mean((2, 3)), expected)
    module = moved(make("relation"))
    change = lambda features: (module(features, noise)[0] - features).mean((2, 3))
    assert not torch.allclose(change(2 * features), 2 * change(features), rtol=1e-2)  # not linear in the features


def test_relation_matches_a_reference_for_one_image():
    features, noise = inputs()
    module = moved(make("relation"))
    matrix = module.mixing(features, noise)[2][0]
    cells = features[0].flatten(1).T  # (hw, D)
    expected = cells + module.mlp(torch.cat([cells, matrix @ cells], 1))
    torch.testing.assert_close(module(features, noise)[0][0].flatten(1).T, expected)
    tokens = module.mixing.tokens(features, noise)
    reference = F.scaled_dot_product_attention(module.mixing.query(tokens), module.mixing.key(tokens),
                                               features.flatten(2).transpose(1, 2))
    torch.testing.assert_close(module.mixing(features, noise)[0], reference)


def test_transfer_is_a_divergence_of_energy_maps():
    features, noise = inputs()
    module = make("transfer")
    teacher = F.avg_pool2d(noise.square().mean(1), 8).flatten(1)
    student = features.square().mean(1).flatten(1)
    teacher, student = (value / value.sum(1, keepdim=True) for value in (teacher, student))
    expected = F.kl_div(student.log(), teacher, reduction="none").sum(1)
    torch.testing.assert_close(module.loss(features, noise, None), expected, rtol=1e-3, atol=1e-5)
    louder = module.loss(features * 3, noise * 7, None)
    torch.testing.assert_close(louder, expected, rtol=1e-3, atol=1e-5)  # scales do not matter
    same = F.avg_pool2d(noise.square().mean(1, keepdim=True), 8).sqrt()
    assert module.loss(same, noise, None).abs().max() < 1e-5


def test_transfer_moves_the_features_and_not_the_noise():
    features, noise = (value.requires_grad_() for value in inputs())
    for values in (features, torch.zeros(4, 12, 4, 4, requires_grad=True)):
        make("transfer").loss(values, noise, None).sum().backward()
        assert torch.isfinite(values.grad).all()
    assert noise.grad is None and features.grad.abs().sum() > 0


def test_erase_hides_the_loudest_cells_in_both_images_of_a_pair():
    features, noise = torch.ones(4, 12, 4, 4), torch.ones(4, 3, 32, 32)
    noise[0, :, :8, :8] = 9.0    # the first pair is images 0 and 2: cell (0, 0) of one, cell (1, 1) of the other
    noise[2, :, 8:16, 8:16] = 9.0
    noise[1, :, 24:, :16] = 9.0  # the second pair is images 1 and 3: cells (3, 0) and (3, 1)
    out, weights = make("erase", erase_share=2 / 16)(features, noise.requires_grad_())
    hidden = [set(map(tuple, (image[0] == 0).nonzero().tolist())) for image in out]
    assert hidden[0] == hidden[2] == {(0, 0), (1, 1)} and hidden[1] == hidden[3] == {(3, 0), (3, 1)}
    assert torch.equal(weights == 0, out[:, 0] == 0) and not out.requires_grad
    torch.testing.assert_close(out.mean((2, 3)), torch.ones(4, 12))  # a mean over the visible cells
    only = features[:, :, :1, :1]
    torch.testing.assert_close(make("erase")(only, noise[..., :8, :8])[0], only)  # a single cell stays visible
    with pytest.raises(UserError, match="'erase' trains on pairs, and a batch holds 3 images"):
        make("erase")(features[:3], noise[:3])


def test_spread_rewards_support():
    logits = torch.zeros(3, 4, 4)
    logits[0] = 2.0
    logits[1, 0, 0] = -5.0
    logits[2, :2] = torch.tensor([1.0, -1.0]).repeat(2, 2)  # contributions of either sign are evidence
    torch.testing.assert_close(make("spread").loss(None, None, logits), torch.tensor([0.0, 15 / 16, 0.5]))


def test_other_noise_tells_nothing_of_the_class_in_training():
    noise = torch.arange(8.0)[:, None, None, None]
    source = attention.OtherNoise(8)(normal(8, 3, 8, 8), noise, None).flatten().long()
    own, given = torch.arange(8) >= 4, source >= 4
    assert (own == given).float().mean() == 0.5
    assert (source % 4 != torch.arange(8) % 4).all()  # neither its own noise nor its partner's


def test_other_noise_is_that_of_one_image_at_inference():
    other = attention.OtherNoise(8)
    average = AveragedModel(other, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    first, second = normal(4, 3, 8, 8), normal(4, 3, 8, 8, seed=1)
    for batch in (first, second, second):  # later batches do not replace the reference
        other(batch, batch, None)
        average.update_parameters(other)
    torch.testing.assert_close(average.module.reference, first[:1])
    other.eval()
    given = other(second, second, lambda image: 2 * image)
    assert torch.equal(given, (2 * first[:1]).expand(4, -1, -1, -1))
    assert torch.equal(other(second[..., :4, :4], second[..., :4, :4], lambda image: image)[0], first[0, :, :4, :4])
    again = attention.OtherNoise(8)
    again.load_state_dict(other.state_dict())
    again.train()(second, second, None)  # a resumed training keeps it too
    assert torch.equal(again.reference, first[:1])
    with pytest.raises(UserError, match="8 x 8 pixels at most, and one has 16 x 8"):
        other(normal(1, 3, 16, 8), noise=None, predict=None)


def test_cell_means_equal_adaptive_pooling():
    x = normal(2, 3, 12, 8)
    for h, w in ((12, 8), (3, 4), (1, 1), (24, 16), (4, 32)):
        torch.testing.assert_close(attention.cell_means(x, h, w), F.adaptive_avg_pool2d(x, (h, w)))
    with pytest.raises(UserError, match="12 values a side does not fit features of 5 cells"):
        attention.cell_means(x, 5, 4)


@pytest.fixture
def deterministic():
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)


@pytest.mark.parametrize("name", ATTENTIONS)
def test_gradients_are_deterministic(name, deterministic):
    gradients = []
    for _ in range(2):
        features, noise = (value.requires_grad_() for value in inputs())
        (moved(make(name))(features, noise)[0].square().sum() + noise.sum()).backward()
        gradients.append(torch.cat([features.grad.flatten(), noise.grad.flatten()]))
    assert torch.equal(*gradients)


def test_sizes_and_names_that_cannot_work():
    with pytest.raises(UserError, match="there is no method.attention 'loud'; choose one of none, energy"):
        make("loud")
    with pytest.raises(UserError, match="cannot be cut into patches of 5"):
        make("relation", patch=5)
    with pytest.raises(UserError, match="noise of 6 values a side does not fit features of 4 cells"):
        make("erase", noise_size=6)
    make("spread", noise_size=6)


def test_entropy_and_support_of_known_maps():
    uniform, single, half = torch.full((4, 4), 1 / 16), torch.zeros(4, 4), torch.zeros(4, 4)
    single[1, 2], half[:2] = 1, 1 / 8
    maps = torch.stack([uniform, single, half])
    torch.testing.assert_close(attention.entropy(maps), torch.tensor([4.0, 0.0, 3.0]).double())
    torch.testing.assert_close(attention.effective_support(maps), torch.tensor([1.0, 1 / 16, 0.5]).double())


def test_evidence_map_ignores_sign_and_scale():
    logits = normal(2, 3, 4)
    weights = attention.evidence_map(logits)
    torch.testing.assert_close(weights, logits.abs() / logits.abs().sum((1, 2), keepdim=True))
    torch.testing.assert_close(weights, attention.evidence_map(-5 * logits))
    torch.testing.assert_close(attention.evidence_map(torch.zeros(1, 2, 2)), torch.full((1, 2, 2), 0.25))
