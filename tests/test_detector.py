import pytest
import torch

from anl import detector as detectors
from anl.detector import Detector
from anl.errors import UserError
from anl.residuals import residuals

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


def test_shallow_branch_leaves_the_backbone_as_timm_builds_it():
    whole = make(branch="shallow")
    out = whole(torch.rand(2, 3, 32, 32))
    assert out.noise.shape == (2, 3, 32, 32) and whole.stem is None
    bare = make(branch="shallow", noise=False, attention="none")
    timm_names = {f"backbone.{name}" for name in detectors.features_of("test_resnet", 8, 3).state_dict()}
    assert set(bare.state_dict()) == timm_names | {"classifier.weight", "classifier.bias"}
    assert {name for name in set(whole.state_dict()) - set(bare.state_dict())} == {
        name for name in whole.state_dict() if name.startswith(("head.", "attention."))}


@pytest.mark.parametrize("factor, channels", [(1, 3), (2, 4), (8, 4)])
def test_noise_of_the_shallow_branch_has_the_priors_grid(factor, channels):
    out = make(branch="shallow", noise_channels=channels, noise_factor=factor)(torch.rand(2, 3, 32, 32))
    assert out.noise.shape == (2, channels, 32 // factor, 32 // factor)


def test_shallow_branch_can_tell_the_noise_of_one_pixel():
    """Cells of 2 x 2 pixels lose nothing: every pixel moves the noise at its own place, each otherwise than its neighbour."""
    branch = detectors.ShallowBranch(8, 3, 1).eval()
    x = torch.zeros(1, 3, 8, 8)
    moved = []
    for row, column in ((2, 2), (2, 3), (3, 2), (3, 3)):
        changed = x.clone()
        changed[0, 0, row, column] = 1
        moved.append(branch(changed) - branch(x))
    assert all(change.abs().sum() > 0 for change in moved)
    assert not any(torch.allclose(moved[0], change) for change in moved[1:])


def test_shallow_branch_is_refused_where_it_cannot_work():
    with pytest.raises(UserError, match="no branch 'deep'; choose one of stem, shallow"):
        make(branch="deep")
    with pytest.raises(UserError, match="'shallow' needs an attention"):
        make(branch="shallow", attention="none")
    with pytest.raises(UserError, match="a cell of the noise has 3"):
        make(branch="shallow", noise_factor=3)


def test_settings_of_the_stem_are_stored_as_before_and_those_of_the_branch_come_back(tmp_path):
    assert "branch" not in make().settings
    shallow = make(branch="shallow")
    detectors.save(shallow, tmp_path / "model.safetensors")
    x = torch.rand(2, 3, 32, 32)
    again = detectors.load(tmp_path / "model.safetensors")
    assert again.settings["branch"] == "shallow" and torch.equal(again(x).logit, shallow(x).logit)


def test_a_plain_detector_without_the_stem_is_the_bare_backbone():
    from anl.cost import BareBackbone, counts

    bare = make(branch="shallow", noise=False, attention="none")
    assert counts(bare, 32) == counts(BareBackbone("test_resnet", 8).eval(), 32)


def test_a_detector_of_residuals_does_not_see_what_they_leave_out():
    """A plane of any slope and brightness has no residual, apart from the edges."""
    ramp = torch.linspace(-0.4, 0.4, 64).expand(1, 3, 64, 64)
    assert residuals(ramp)[..., 4:-4, 4:-4].abs().max() < 1e-3
    x = torch.rand(1, 3, 64, 64) * 0.02
    moved = [float((make(reads=reads)(x).logit - make(reads=reads)(x + 0.3).logit).abs().detach())
             for reads in ("residual", "image")]
    assert moved[0] < 1e-5 and moved[1] > 1e-3  # brightness is seen in the image alone


def test_a_detector_of_noise_reads_nothing_but_its_prediction():
    detector = make(reads="noise", attention="affinity")
    x = torch.rand(2, 3, 32, 32) * 2 - 1
    detector.backbone.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    seen = []
    out = detector(x)
    assert torch.equal(seen[0], detector.reader(out.noise))
    out.logit.sum().backward()
    assert detector.head.weight.grad.abs().sum() > 0  # classification teaches the noise head too


@pytest.mark.parametrize("reads", ["residual", "noise"])
def test_what_a_detector_reads_is_saved_with_it(reads, tmp_path):
    detector = make(reads=reads)
    x = torch.rand(3, 3, 32, 32) * 2 - 1
    detectors.save(detector, tmp_path / "model.safetensors")
    assert torch.equal(detector(x).logit, detectors.load(tmp_path / "model.safetensors")(x).logit)
    assert "reads" not in make().settings  # what was saved before keeps its bytes


def test_what_cannot_be_read_is_refused():
    with pytest.raises(UserError, match="cannot read 'sound'; choose one of image, residual, noise"):
        make(reads="sound")
    with pytest.raises(UserError, match="needs the noise of a prior of pixels"):
        make(reads="noise", noise=False, attention="none")
    with pytest.raises(UserError, match="needs the noise of a prior of pixels"):
        make(reads="noise", noise_channels=4, noise_factor=8)
    with pytest.raises(UserError, match="'residual' needs the branch 'stem'"):
        make(reads="residual", branch="shallow")
