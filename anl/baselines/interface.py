"""What a baseline is to the training loop: a small network, behind what frozen models make of the image, if anything."""

import dataclasses
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from anl.detector import Detector, Output, conv, features_of, standardised
from anl.errors import UserError
from anl.files import sha256_of
from anl.params import BASELINES

MODELS = "models"  # the folder of frozen models, unless a profile has its own

@dataclass(frozen=True)
class Baseline:
    """One method of the field.

    title, source: its name and publication. differs: what is not as published, in a sentence or two. build: (detector
    settings, size, settings) -> the network that is trained, (B, C, h, w) -> Output. represent: (settings, folder of
    models) -> a function of x (B, 3, H, W) in [-1, 1], what frozen models make of it and the network sees instead; None
    if the network sees the image. recipe: (training, settings) -> the training's parameters. prepare: (data, spec,
    params, detector) -> None, changes the training data in place before the first step. extra_loss: (output, label,
    guide, settings) -> a scalar added to the classification loss. needs: models used at inference. trained: whether it
    learns anything. encodes: whether it reads the features of settings["encoder"].
    """

    title: str
    source: str
    differs: str
    build: Callable[..., nn.Module]
    represent: Callable[..., Any] | None = None
    recipe: Callable[..., Any] | None = None
    prepare: Callable[..., None] | None = None
    extra_loss: Callable[..., torch.Tensor] | None = None
    needs: tuple[str, ...] = ()
    trained: bool = True
    encodes: bool = False


class Peer(nn.Module):
    """A baseline as a detector: x (B, 3, H, W) in [-1, 1] -> Output. Frozen models are used, never saved with it.

    `represented`: x is already what the frozen models made of the images.
    """

    def __init__(self, network, represent, settings):
        super().__init__()
        self.network = network
        self.represent = represent
        self.settings = settings

    def forward(self, x, represented=False):
        return self.network(x if represented or self.represent is None else self.represent(x))


class Classifier(nn.Module):
    """The plain detector (same stem, backbone and classifier) behind a fixed front end.

    channels: of what the stem sees, standardised. front: a function of the input with no weights.
    """

    def __init__(self, detector, size, channels=3, front=None):
        super().__init__()
        width = detector["stem_width"]
        self.front = front or (lambda x: x)
        self.standardise = standardised(channels)
        self.stem = nn.Sequential(conv(channels, width), conv(width, width))
        self.backbone = features_of(detector["backbone"], detector["stride"], width)
        self.classifier = nn.Linear(self.backbone.feature_info.channels()[-1], 1)

    def features(self, x):
        """The backbone's features (B, D, h, w)."""
        return self.backbone(self.stem(self.standardise(self.front(x))))[-1]

    def forward(self, x):
        features = self.features(x)
        pooled = features.mean((2, 3))
        return Output(self.classifier(pooled).squeeze(1), None, uniform(features), pooled)


def uniform(features):
    """The map (B, h, w) of a detector without attention."""
    b, _, h, w = features.shape
    return features.new_full((b, h, w), 1 / (h * w))


def plain_detector(detector, size, settings):
    """The plain detector itself, for what changes its data or its recipe alone."""
    return Detector(**detector, size=size, noise=False, attention="none")


def get(name):
    """The Baseline called `name`. Raises UserError on an unknown one."""
    if name not in BASELINES:
        raise UserError(f"there is no baseline '{name}'; choose one of {', '.join(BASELINES)}")
    return importlib.import_module(f"anl.baselines.{name}").BASELINE


def build(baseline, detector, size, settings, models=MODELS, frozen=None):
    """The detector of a baseline, untrained. detector, settings: a profile's `detector` and `baselines` as mappings.

    frozen: hashes of the frozen models that a saved detector was trained with, by name. Raises UserError if one that it
    needs is missing from the folder `models`, or is another.
    """
    known = get(baseline)
    represent = known.represent(settings, models) if known.represent else None
    found = {name: sha256_of(Path(models) / name) for name in known.needs}
    for name, digest in found.items():
        if frozen is not None and frozen.get(name) != digest:
            raise UserError(f"{Path(models) / name} is not the model that this '{baseline}' detector was trained with")
    kept = {"baseline": baseline, "detector": detector, "size": size, "settings": settings, "frozen": found}
    kept |= {"models": str(models)} if str(models) != MODELS else {}
    return Peer(known.build(detector, size, settings), represent, kept)


def prepare(detector, spec, params, data):
    """Put into `data` what the loop draws batches from instead of pixels, if the baseline asks for it.

    `represented`: tensor (2, N, C, h, w), what the frozen models make of each training image as it is and after one
    draw of the training's harmless processing (the same for both images of a pair): one draw for all epochs, where
    other methods get a fresh one each time, since some of these models are slow. `guide`: see a baseline's `prepare`.
    Raises UserError where such a training asks for mirrored images (training.flip): the models saw the others.
    """
    known = get(spec.baseline)
    if recipe_of(spec, params).flip and (known.represent or known.prepare) and known.trained:
        raise UserError(f"'{spec.baseline}' learns from what frozen models made of the images beforehand, and they saw none in the "
                        "mirror; set training.flip to false")
    if detector.represent is not None and known.trained:
        data["represented"] = torch.stack([in_batches(detector.represent, data["pixels"]),
                                           in_batches(detector.represent, processed(data, params, spec))])
    if known.prepare:
        known.prepare(data, spec, params, detector)


def processed(data, params, spec):
    """The training pixels, each after one draw of the recipe's processing: uint8 (N, H, W, 3)."""
    from anl.data import augment

    config = dataclasses.replace(recipe_of(spec, params), augment_probability=1.0)
    plan = augment.plan(range(len(data["real"])), config, params.seed, "baselines")
    plans = [None] * len(data["pixels"])
    for pair, change in plan.items():
        for row in (data["real"][pair], *data["fake"][pair]):
            plans[row] = change
    return augment.apply(plans, data["pixels"])


def decisive(baseline, settings):
    """Of a profile's `baselines` what decides the weights and scores of this one; where an interpreter lies does not.

    The encoder came later than the other settings: runs of methods without one keep the identity they had.
    """
    left = {"encoder_python"} if get(baseline).encodes else {"encoder", "encoder_python"}
    return {key: value for key, value in settings.items() if key not in left}


def recipe_of(spec, params):
    """The training parameters of a run: the profile's, or what its baseline makes of them."""
    known = get(spec.baseline) if spec.baseline else None
    if known is None or known.recipe is None:
        return params.training
    return known.recipe(params.training, dataclasses.asdict(params.baselines))


def in_batches(function, pixels, size=128):
    """`function` of uint8 images (N, H, W, 3), a batch at a time, as one tensor; several processes share the batches."""
    from anl import processes
    from anl.data.patches import to_tensor

    return torch.cat(processes.spread(lambda batch: function(to_tensor(pixels[batch])), len(pixels), size))
