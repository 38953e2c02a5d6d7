from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from anl import config
from anl.data import processing
from anl.io import UserError
from anl.models import baselines, checkpoint
from anl.models.baselines import BASELINES
from anl.models.baselines.diffusion import Guided
from anl.models.baselines.interface import Classifier
from anl.models.detector import Detector, anl_loss
from anl.models.frontends import residuals
from anl.models.generators.diffusion import build_unet
from anl.models.prior import NoisePrior, build_prior, noise_scheduler
from tests import tiny_priors

DETECTOR = {"backbone": "test_resnet", "stride": 8, "stem_width": 4, "patch": 4}
OPTIONS = {"noise_step": 1, "error_step": 280, "error_draws": 1, "inversion_steps": 2, "strong_probability": 0.75,
           "strong_blur": 3.0, "strong_jpeg": 30, "noise_deviation": 2.0, "distillation_weight": 1.0,
           "reconstruction_strength": 0.1, "reconstruction_steps": 2, "contrastive_weight": 0.3, "margin": 1.0, "guide_weight": 1.0,
           "encoder": "untrained:test_vit"}
CHANNELS = {"diffusionfake": 8, "lare": 6, "distildire": 6, "aeroblade": 2, "univfd": 16}
LABEL = torch.tensor([0.0, 0, 1, 1])


class Rounded(nn.Module):
    """An "autoencoder" that keeps a few grey levels."""

    def __init__(self, levels):
        super().__init__()
        self.levels = nn.Parameter(torch.tensor(float(levels)))

    def forward(self, x):
        return (x * self.levels).round() / self.levels


@pytest.fixture(scope="module")
def frozen():
    """The frozen models by what a baseline needs."""
    torch.manual_seed(0)
    return {"none": None, "prior": NoisePrior(build_prior([8, 8], 1), noise_scheduler(), precision="fp32"),
            "latent": NoisePrior(build_unet([8, 8], 1, 4), noise_scheduler(), precision="fp32", vae=tiny_priors.vae()),
            "vae": [Rounded(4), Rounded(10)], "encoder": baselines.univfd.Encoder("untrained:test_vit", "cpu")}


def make(name, frozen, **options):
    return baselines.build(name, DETECTOR, 32, OPTIONS, frozen[BASELINES[name].needs], **options)


def images(count=4, side=32, seed=0):
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.parametrize("name", BASELINES)
def test_every_baseline_learns_and_comes_back_from_its_file(name, frozen, tmp_path):
    known, detector, x = BASELINES[name], make(name, frozen), images()
    if known.trained:
        target = torch.zeros(4, 1) if known.teacher else None
        if known.target:
            target = known.target(frozen[known.needs], x).repeat(1, 2, 1, 1)
        optimiser, losses = torch.optim.AdamW(detector.train().parameters(), 0.02), []
        for _ in range(12):
            found = known.loss(OPTIONS, frozen[known.needs])(detector(x), LABEL, target)
            losses.append(found["classification_loss"].item())
            optimiser.zero_grad()
            found["loss"].backward()
            optimiser.step()
        assert losses[-1] < 0.7 * losses[0]
    with torch.no_grad():
        expected = detector.eval()(x)
        alone = torch.cat([detector(image[None]).logit for image in x])
    assert torch.allclose(alone, expected.logit, atol=1e-4), "a score does not depend on the other images"
    assert expected.logit.shape == (4,) and expected.noise is None and expected.features.shape[0] == 4
    assert torch.allclose(expected.map.sum((1, 2)), torch.ones(4), atol=1e-5)
    checkpoint.save(detector, tmp_path / "model.safetensors")
    again = checkpoint.load(tmp_path / "model.safetensors",
                            {"baseline": baselines.builder(lambda needs, options: frozen[needs])}, "cpu")
    with torch.no_grad():
        assert torch.equal(again(x).logit, expected.logit)


@pytest.mark.parametrize("name", BASELINES)
def test_networks_run_on_a_fake_gpu(name):
    known, channels = BASELINES[name], CHANNELS.get(name, 3)
    prior = SimpleNamespace(epsilon=lambda z, step: z * step, encode=lambda x: x,
                            alphas_cumprod=np.linspace(0.9, 0.1, 500))
    with FakeTensorMode(allow_non_fake_inputs=True), torch.device("cuda"):
        x = torch.empty(4, channels) if name == "univfd" else torch.empty(4, 3 if known.target else channels, 32, 32)
        if known.represent and known.needs == "prior":
            x = known.represent(prior, OPTIONS)(torch.empty(4, 3, 32, 32))
            assert x.shape == (4, channels, 32, 32)
        network = known.build(DETECTOR, 32, channels, 0)
        found = [x, *network.train()(x), *network.eval()(x)]
    assert {tensor.device.type for tensor in found if tensor is not None} == {"cuda"}


def test_plain_and_srm_are_the_detector_without_noise_learning(frozen):
    x = images()
    chosen = {key: DETECTOR[key] for key in ("backbone", "stride", "stem_width")}
    for name, front_end in (("plain", "image"), ("srm", "residual")):
        same = Detector(**chosen, size=32, noise=False, front_end=front_end).eval()
        assert torch.equal(make(name, frozen).eval()(x).logit, same(x).logit)
    classifier = Classifier(DETECTOR, 32, 9, front=residuals).eval()
    for found, expected in zip(classifier.backbone.parameters(), same.backbone.parameters(), strict=True):
        assert torch.equal(found, expected)
    assert torch.equal(classifier.classifier.weight, same.classifier.weight)


def test_a_representation_is_standardised_before_the_stem():
    network = Classifier(DETECTOR, 32, 3, front=lambda x: x / 1000).train()
    read = []
    network.stem.register_forward_pre_hook(lambda module, inputs: read.append(inputs[0]))
    network(images(8))
    assert read[0].std().item() == pytest.approx(1, abs=0.05)


def test_lare_starts_as_the_plain_detector_and_then_reads_the_error():
    network, x = Guided(DETECTOR, 32, 6).eval(), images(2)
    calm, loud = (network(torch.cat([x, torch.full_like(x, error)], 1)) for error in (0.1, 1.0))
    assert torch.allclose(calm.logit, network.plain(x).logit, atol=1e-5)
    nn.init.normal_(network.gate.channel.weight)
    assert not torch.allclose(network(torch.cat([x, torch.ones_like(x)], 1)).logit, loud.logit)


def test_the_loss_of_a_baseline_without_a_further_term_is_cross_entropy(frozen):
    output = make("npr", frozen)(images())
    assert BASELINES["npr"].loss(OPTIONS)(output, LABEL)["loss"] == anl_loss(output, LABEL)["loss"]
    found = BASELINES["drct"].loss(OPTIONS)(output, LABEL, batch=(8, 8))  # half of a batch
    whole = BASELINES["drct"].loss(OPTIONS)(output, LABEL)
    assert found["loss"].item() == pytest.approx(whole["loss"].item() / 2) and whole["extra_loss"] > 0


def test_blur_jpeg_replaces_the_augmentation_alone():
    assert BASELINES["blur_jpeg"].training(OPTIONS) == {
        "augment_probability": 0.75, "augmentations": ["blur", "jpeg"], "augment_most": 1, "blur_radius": [0.0, 3.0], "jpeg_quality": [30, 100]}


def test_the_configuration_lists_the_settings_that_a_baseline_reads():
    for name, settings in config.BASELINE_SETTINGS.items():
        known = BASELINES[name]
        assert sorted(settings) == sorted((*known.parameters, *known.loss_parameters))
        assert (name in config.PRIORLESS_BASELINES) == (known.needs in ("none", "encoder")) or name == "aeroblade"


def test_frozen_models_and_names_that_do_not_fit(frozen, tmp_path):
    checkpoint.save(make("aeroblade", frozen), tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"\(vae\) is not the one this 'aeroblade' detector was trained with"):
        checkpoint.load(tmp_path / "model.safetensors",
                        {"baseline": baselines.builder(lambda needs, options: [Rounded(4), Rounded(11)])}, "cpu")
    with pytest.raises(UserError, match=r"baseline 'dnf' needs a frozen model \(prior\)"):
        baselines.build("dnf", DETECTOR, 32, OPTIONS)
    weights_only = baselines.build("dnf", DETECTOR, 32, OPTIONS, channels=3)
    with pytest.raises(UserError, match=r"'dnf' was built without its frozen model \(prior\)"):
        weights_only(images())
    with pytest.raises(UserError, match="there is no method.baseline 'nothing'; choose one of plain, blur_jpeg, find"):
        baselines.build("nothing", DETECTOR, 32, OPTIONS)


def test_processing_of_a_pair_is_fixed_and_whether_it_happens_is_not():
    training = config.TrainingConfig.model_construct(augment_probability=0.5, jpeg_quality=[50, 95],
                                                     resize_scale=[0.5, 1.0], blur_radius=[0.1, 1.0])
    plan = baselines.fixed_augmentation(processing.augmentation_plan)
    steps = [plan([3, 7, 7], training, 0, step) for step in range(40)]
    for column in zip(*steps, strict=True):
        assert len({entry for entry in column if entry}) == 1
        assert 8 < sum(entry is None for entry in column) < 32
    assert all(second == third for _, second, third in steps)
    assert len({entry for step in steps for entry in step if entry}) == 2

    several = training.model_copy(update={"augment_most": 3})
    counts = [[len(entry or ()) for entry in plan(range(8), several, 0, step)] for step in range(40)]
    usual = [[len(entry or ()) for entry in processing.augmentation_plan(range(8), several, 0, step)] for step in range(40)]
    assert counts == usual and max(map(max, counts)) == 3  # as many operations as other methods get


@pytest.mark.parametrize("name", ["dire", "univfd"])
def test_a_cached_baseline_scores_as_one_without_a_cache(name, frozen, tmp_path):
    x, cached = images(), make(name, frozen, cache=tmp_path).eval()
    with torch.no_grad():
        assert np.allclose(cached(x).logit, make(name, frozen).eval()(x).logit, atol=0.02)
        assert torch.equal(cached(x).logit, cached(x).logit)
    assert len(list(tmp_path.rglob("*.safetensors"))) == len(x)
