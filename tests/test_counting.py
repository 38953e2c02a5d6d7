import dataclasses

import pytest
import timm
import torch

from anl import cost, counting
from anl.errors import UserError
from anl.paper.settings import Backbone, Detector
from tests import tiny_priors

SHAPE = Detector(stem_width=8, patch=4, attention="affinity", attention_dim=8, loss_weight=1.0)
TINY = Backbone("test_resnet", 8, False)


def test_a_detector_costs_what_the_real_one_does():
    from anl.detector import Detector as Real

    found = counting.detector_cost(TINY, SHAPE, 32, noise=True)
    real = Real("test_resnet", 8, 8, 4, 32, attention_dim=8).eval()
    parameters, multiply_adds = cost.counts(real, 32)
    assert (found.parameters, found.flops // 2) == (parameters, multiply_adds)
    plain = counting.detector_cost(TINY, SHAPE, 32, noise=False)
    assert plain.flops < found.flops and plain.parameters < found.parameters and 0 < plain.kept < found.kept
    shallow = counting.detector_cost(TINY, dataclasses.replace(SHAPE, branch="shallow"), 32, noise=True)
    assert shallow.flops < found.flops and shallow.kept < found.kept


def test_a_known_backbone_has_its_known_size():
    found = counting.detector_cost(Backbone("resnet50", 32, True), SHAPE, 64, noise=False)
    known = sum(p.numel() for p in timm.create_model("resnet50", num_classes=0).parameters())
    assert 0 < found.parameters - known < 30_000  # a stem of eight channels and one logit


def test_what_is_kept_grows_with_the_crop():
    small, large = (counting.detector_cost(TINY, SHAPE, crop, noise=False).kept for crop in (32, 64))
    assert 3.5 < large / small <= 4


def test_priors_are_counted_from_their_folder(tmp_path):
    latent, channels, cell = counting.prior_cost(str(tiny_priors.latent_folder(tmp_path / "latent")), 32)
    assert (channels, cell) == (4, 2)
    tiny_priors.pixel_folder(tmp_path / "pixel")
    pixel, channels, cell = counting.prior_cost(str(tmp_path / "pixel"), 32)
    assert (channels, cell) == (3, 1) and pixel.flops > 0
    unet = tiny_priors.unet()
    with torch.no_grad():
        assert pixel.flops == counting.flops_of(lambda: unet(torch.zeros(1, 3, 32, 32), 0))
    assert pixel.parameters == sum(p.numel() for p in unet.parameters()) and latent.flops > 0


def test_stable_diffusion_has_its_published_size():
    found, channels, cell = counting.prior_cost("stable-diffusion-1.5", 64)
    assert (channels, cell) == (4, 8)
    # the UNet's 859.5 million parameters and the encoder's 34.2 million, as the hub's files add up to
    assert abs(found.parameters / 1e6 - 893.7) < 0.2


def test_a_prior_of_unknown_shape_is_refused():
    with pytest.raises(UserError, match="shape of prior adm-imagenet-256 is not known before it is here"):
        counting.prior_cost("adm-imagenet-256", 256)
