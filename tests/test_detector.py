import pytest
import torch

from anl import detector as detectors
from anl.detector import Detector
from anl.errors import UserError

SETTINGS = {"backbone": "test_resnet", "stride": 8, "stem_width": 8, "patch": 4, "size": 32, "attention_dim": 8}


def make(**changes):
    torch.manual_seed(0)
    return Detector(**{**SETTINGS, **changes}).eval()


@pytest.mark.parametrize("attention", ["none", "energy", "gate", "affinity"])
def test_shapes(attention):
    out = make(attention=attention)(torch.zeros(2, 3, 32, 32))
    assert out.logit.shape == (2,) and out.noise.shape == (2, 3, 32, 32)
    assert out.map.shape[0] == 2 and torch.allclose(out.map.sum((1, 2)), torch.ones(2))


def test_plain_has_no_noise_branch_and_fewer_parameters():
    plain, full = make(noise=False, attention="none"), make()
    assert plain(torch.zeros(1, 3, 32, 32)).noise is None
    names = set(full.state_dict()) - set(plain.state_dict())
    assert names and all(name.startswith(("head.", "attention.")) for name in names)


def test_a_vision_transformer_is_built_for_the_images_size_and_every_weight_of_it_learns():
    detector = make(backbone="vit_small_patch14_dinov2", stride=14, size=112, patch=16).train()  # of 518 pixels, as published
    out = detector(torch.rand(2, 3, 112, 112))
    assert out.map.shape == (2, 8, 8) and detector.backbone.feature_info.reduction() == [14]
    (out.logit.sum() + out.noise.sum()).backward()
    assert [name for name, weight in detector.named_parameters() if weight.grad is None] == []  # DDP would wait for it
    with pytest.raises(UserError, match="vit_small_patch14_dinov2 cuts images into patches of 14 pixels, and 128 is no multiple"):
        make(backbone="vit_small_patch14_dinov2", stride=14, size=128)


def test_attention_without_noise_is_refused():
    with pytest.raises(UserError, match="needs the predicted noise"):
        make(noise=False, attention="gate")


def test_save_and_load_give_the_same_scores_and_hold_no_prior(tmp_path):
    detector = make()
    x = torch.rand(3, 3, 32, 32) * 2 - 1
    detectors.save(detector, tmp_path / "model.safetensors")
    again = detectors.load(tmp_path / "model.safetensors")
    assert torch.equal(detector(x).logit, again(x).logit)
    assert not [name for name in again.state_dict() if "prior" in name or "unet" in name]


def test_a_broken_file_is_named(tmp_path):
    path = tmp_path / "model.safetensors"
    with pytest.raises(UserError, match="is missing"):
        detectors.load(path)
    detectors.save(make(), path)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(UserError, match="model.safetensors holds no detector"):
        detectors.load(path)


@pytest.mark.parametrize("attention", ["none", "energy", "gate", "affinity"])
def test_noise_of_a_latent_prior_has_its_channels_and_its_grid(attention):
    out = make(attention=attention, noise_channels=4, noise_factor=8)(torch.rand(2, 3, 32, 32))
    assert out.noise.shape == (2, 4, 4, 4) and torch.isfinite(out.logit).all()


@pytest.mark.parametrize("attention", ["energy", "affinity"])
def test_detached_attention_leaves_the_noise_head_to_the_noise_loss(attention):
    x = torch.rand(2, 3, 32, 32) * 2 - 1
    for gradient in ("joint", "detached"):
        detector = make(attention=attention, gradient=gradient)
        detector(x).logit.sum().backward()
        moved = detector.head.weight.grad is not None and detector.head.weight.grad.abs().sum() > 0
        assert moved == (gradient == "joint")
    same = [make(attention=attention, gradient=gradient)(x).logit for gradient in ("joint", "detached")]
    assert torch.equal(*same)
    with pytest.raises(UserError, match="no gradient 'half'"):
        make(gradient="half")


def test_a_detector_saved_before_the_switches_were_there_still_loads(tmp_path):
    """Their defaults are what it was built with."""
    detector = make(attention_dim=32)
    for key in ("attention_dim", "gradient", "noise_channels", "noise_factor"):
        del detector.settings[key]
    detectors.save(detector, tmp_path / "model.safetensors")
    again = detectors.load(tmp_path / "model.safetensors")
    x = torch.rand(1, 3, 32, 32)
    assert torch.equal(detector(x).logit, again(x).logit)


def test_weights_of_another_architecture_are_named(tmp_path):
    detector = make()
    detector.settings["stem_width"] = 12
    detectors.save(detector, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="model.safetensors holds no detector"):
        detectors.load(tmp_path / "model.safetensors")


def test_a_pickle_in_its_place_is_not_opened(tmp_path):
    torch.save(make().state_dict(), tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="holds no detector"):
        detectors.load(tmp_path / "model.safetensors")
