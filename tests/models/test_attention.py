import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from anl.io import UserError
from anl.models import attention
from anl.models.attention import ATTENTIONS, build_attention

AT_INFERENCE = ("energy", "gate", "affinity", "relation", "relation_self", "relation_other")
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


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", ATTENTIONS)
def test_map_is_a_distribution_over_the_image(name, training):
    features, noise = inputs()
    out, weights = moved(make(name)).train(training)(features, noise)
    assert out.shape == features.shape and weights.shape == (4, 4, 4) and (weights >= 0).all()
    torch.testing.assert_close(weights.sum((1, 2)), torch.ones(4))


@pytest.mark.parametrize("name", ATTENTIONS)
def test_what_a_form_declares_is_what_it_does(name):
    features, noise = inputs()
    module = moved(make(name)).eval()
    out = module(features, noise)[0]
    assert torch.equal(out, features) == module.training_only == (name in TRAINING_ONLY)
    other = module(features, inputs(seed=7)[1])[0]
    assert (not torch.allclose(out, other)) == module.reads_noise == (name in READS_NOISE)


@pytest.mark.parametrize("name", READS_NOISE)
def test_noise_gets_a_gradient(name):
    features, noise = inputs()
    noise.requires_grad_()
    moved(make(name))(features, noise)[0].square().sum().backward()
    assert torch.isfinite(noise.grad).all() and noise.grad.abs().sum() > 0


@pytest.mark.parametrize("name", ["gate", "relation", "relation_self", "relation_other"])
def test_forms_that_start_as_the_identity(name):
    features, noise = inputs()
    torch.testing.assert_close(make(name)(features, noise)[0].mean((2, 3)), features.mean((2, 3)))


def test_a_relation_starts_to_learn_from_the_identity():
    features, noise = inputs()
    module = make("relation")
    module(features, noise)[0].square().sum().backward()
    assert module.mlp[-1].weight.grad.abs().sum() > 0


def test_energy_weights_the_loudest_cell_most():
    features, noise = inputs()
    noise[:, :, :8, :8] *= 6  # the first of the 4 x 4 cells
    _, weights = make("energy")(features, noise)
    assert (weights.flatten(1).argmax(1) == 0).all()


def test_energy_of_silent_noise_has_a_finite_gradient():
    features, noise = inputs()[0], torch.zeros(4, 3, 32, 32, requires_grad=True)
    out, weights = make("energy")(features, noise)
    out.sum().backward()
    torch.testing.assert_close(weights, torch.full((4, 4, 4), 1 / 16))
    assert torch.isfinite(noise.grad).all()


def sharp(name):
    """A form whose cells take everything from the cells with the same noise; the right half has louder noise."""
    module = make(name, dim=32)
    with torch.no_grad():
        module.mixing.query.weight.copy_(20 * torch.eye(32))
        module.mixing.key.weight.copy_(torch.eye(32))
    noise = normal(1, 3, 32, 32)
    noise[..., 16:] *= 10
    return module, noise


def test_affinity_shares_features_between_cells_of_similar_noise():
    module, noise = sharp("affinity")
    module.gamma.data.fill_(1.0)
    features = torch.zeros(1, 12, 4, 4)
    features[..., 2:] = 1.0
    out, _ = module(features, noise)
    assert out[..., :2].max() < 0.1 and out[..., 2:].min() > 0.9


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


def test_relation_self_is_the_same_block_without_noise():
    own, control = make("relation"), make("relation_self")
    assert [tuple(p.shape) for p in own.mlp.parameters()] == [tuple(p.shape) for p in control.mlp.parameters()]
    features, _ = inputs()
    assert torch.equal(control(features, None)[1], control(features, inputs(seed=9)[1])[1])
    assert not control.needs_noise


def test_transfer_is_a_divergence_of_energy_maps():
    features, noise = inputs()
    module = make("transfer")
    teacher = torch.nn.functional.avg_pool2d(noise.square().mean(1), 8).flatten(1)
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
    make("transfer").loss(features, noise, None).sum().backward()
    assert noise.grad is None and features.grad.abs().sum() > 0
    dead = torch.zeros(4, 12, 4, 4, requires_grad=True)
    make("transfer").loss(dead, noise, None).sum().backward()
    assert torch.isfinite(dead.grad).all()


def test_erase_hides_the_loudest_cells_in_both_images_of_a_pair():
    features, noise = torch.ones(4, 12, 4, 4), torch.ones(4, 3, 32, 32)
    noise[0, :, :8, :8] = 9.0    # the first pair is images 0 and 2: cell (0, 0) of one, cell (1, 1) of the other
    noise[2, :, 8:16, 8:16] = 9.0
    noise[1, :, 24:, :16] = 9.0  # the second pair is images 1 and 3: cells (3, 0) and (3, 1)
    out, weights = make("erase", erase_share=2 / 16)(features, noise)
    hidden = [set(map(tuple, (image[0] == 0).nonzero().tolist())) for image in out]
    assert hidden[0] == hidden[2] == {(0, 0), (1, 1)} and hidden[1] == hidden[3] == {(3, 0), (3, 1)}
    assert torch.equal(weights == 0, out[:, 0] == 0)
    torch.testing.assert_close(out.mean((2, 3)), torch.ones(4, 12))  # a mean over the visible cells


def test_erase_has_no_gradient_of_the_choice_and_needs_pairs():
    features, noise = inputs()
    noise.requires_grad_()
    out, _ = make("erase")(features, noise)
    assert not out.requires_grad
    with pytest.raises(UserError, match="'erase' trains on pairs, and a batch holds 3 images"):
        make("erase")(features[:3], noise[:3])
    one = make("erase", noise_size=8)
    only = features[:, :, :1, :1]
    torch.testing.assert_close(one(only, noise[..., :8, :8])[0], only)  # a single cell stays visible


def test_spread_rewards_support():
    logits = torch.zeros(3, 4, 4)
    logits[0] = 2.0
    logits[1, 0, 0] = -5.0
    logits[2, :2] = torch.tensor([1.0, -1.0]).repeat(2, 2)  # contributions of either sign are evidence
    loss = make("spread").loss(None, None, logits)
    torch.testing.assert_close(loss, torch.tensor([0.0, 15 / 16, 0.5]))
    peaked = (logits[1:2] + 0.1).requires_grad_()
    make("spread").loss(None, None, peaked).sum().backward()
    assert peaked.grad[0, 0, 0] < 0 and (peaked.grad[0, 1:] < 0).all()  # loud cell negative: towards zero in size
    assert (peaked - 0.1 * peaked.grad).abs()[0, 0, 0] < peaked.abs()[0, 0, 0]


def test_other_noise_tells_nothing_of_the_class_in_training():
    other = attention.OtherNoise(8)
    noise = torch.arange(8.0)[:, None, None, None]
    source = other(normal(8, 3, 8, 8), noise, None).flatten().long()
    own, given = torch.arange(8) >= 4, source >= 4
    assert (own == given).float().mean() == 0.5
    assert (source % 4 != torch.arange(8) % 4).all()  # neither its own noise nor its partner's


def test_other_noise_is_that_of_one_image_at_inference():
    other = attention.OtherNoise(8)
    first, second = normal(4, 3, 8, 8), normal(4, 3, 8, 8, seed=1)
    other(first, first, None)
    other(second, second, None)  # later batches do not replace the reference
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


def test_the_reference_image_survives_weight_averaging():
    other = attention.OtherNoise(8)
    average = AveragedModel(other, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    first = normal(4, 3, 8, 8)
    for _ in range(3):
        other(first, first, None)
        average.update_parameters(other)
    torch.testing.assert_close(average.module.reference, first[:1])
    assert average.module.stored


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
        module = moved(make(name))
        (module(features, noise)[0].square().sum() + noise.sum()).backward()
        gradients.append((features.grad, noise.grad))
    assert torch.equal(gradients[0][0], gradients[1][0]) and torch.equal(gradients[0][1], gradients[1][1])


@pytest.mark.parametrize("side, patch", [(4, 1), (8, 2), (4, 4)])
@pytest.mark.parametrize("name", ATTENTIONS)
def test_noise_of_a_latent_prior(name, side, patch):
    """Four channels, from two values in a cell down to one patch for the whole image."""
    features, noise = inputs()[0], normal(4, 4, side, side, seed=2)
    out, weights = make(name, noise_size=side, noise_channels=4, patch=patch)(features, noise)
    assert out.shape == features.shape and torch.isfinite(out).all()
    torch.testing.assert_close(weights.sum((1, 2)), torch.ones(4))


def test_sizes_and_names_that_cannot_work():
    with pytest.raises(UserError, match="unknown attention 'loud' in method.attention; choose one of none, energy"):
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


@pytest.mark.parametrize("name", ATTENTIONS)
def test_runs_on_a_fake_gpu(name):
    with FakeTensorMode(), torch.device("cuda"):
        module = build_attention(name, 12, 4, 32, dim=8, patch=4)
        features, noise = torch.empty(4, 12, 4, 4), torch.empty(4, 3, 32, 32)
        out, weights = module(features, noise)
        parts = [out, weights] + ([module.loss(features, noise, torch.empty(4, 4, 4))] if module.has_loss else [])
    assert all(part.device.type == "cuda" for part in parts)
