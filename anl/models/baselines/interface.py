"""The interface of a baseline: a small trained network on the image, or on a frozen model's representation of it."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from anl.io import UserError
from anl.models.attention import uniform_map
from anl.models.detector import Detector, Output, anl_loss, features_of, initialised_from
from anl.models.frontends import conv, standardise

__all__ = ["Baseline", "BaselineDetector", "Classifier", "fixed_augmentation", "plain_detector"]

BACKBONE_SETTINGS = ("backbone", "stride", "stem_width")


@dataclass(frozen=True)
class Baseline:
    """One published method. In the fields below, `options` is the section `baselines` of the configuration."""

    name: str
    reference: str
    fidelity: str  # what differs here from the publication
    # (detector, size, channels, seed) -> the network to train, a module from the representation to Output; `detector` holds
    # the backbone's settings, `channels` is the number of channels of the representation
    build: Callable[..., nn.Module]
    # The frozen model: "none", "prior" (a NoisePrior), "latent" (one in an autoencoder's latent space), "vae" (a list of
    # autoencoders) or "encoder" (a univfd.Encoder).
    # Without `represent` it is needed in training only.
    needs: str = "none"
    trained: bool = True  # whether there is anything to train
    # (frozen, options) -> a function from images (B, 3, H, W) to the representation that the network reads instead, (B,
    # channels, ...) on their device; that of an image must not depend on the other images of the batch
    represent: Callable | None = None
    channels: Callable | None = None  # (frozen) -> channels of the representation, or of the target; None: 3
    parameters: tuple[str, ...] = ()  # the options that the representation or the training data depend on
    loss_parameters: tuple[str, ...] = ()  # the options of `extra_loss`
    training: Callable | None = None  # (options) -> settings that replace those of the section `training`
    # (frozen, x, generator, options) -> further generated training images, one for each of x, made before training
    extra_images: Callable | None = None
    teacher: str = ""  # a baseline whose `features` of the training images, before augmentation, are the target
    # (frozen, x) -> the target of training images before augmentation; `extra_loss` gets it concatenated along dimension 1
    # with that of the photograph that each image was made from
    target: Callable | None = None
    # (output, label, target, mask, options, frozen) -> scalar added to the loss; `mask` (B,): images whose target is valid
    extra_loss: Callable | None = None

    def loss(self, options, frozen=None):
        """The training loss, with the signature and the result of `anl_loss`, plus the key `extra_loss`.

        Where a batch is divided into parts, `extra_loss` is a mean within each part.
        """
        def loss(output, label, target=None, noise_mask=None, *, loss_weight=1.0, attention_weight=0.0, batch=None):
            losses = anl_loss(output, label, batch=batch)
            if self.extra_loss is None:
                return losses
            share = 1.0 if batch is None else len(label) / batch[0]
            extra = self.extra_loss(output, label, target, noise_mask, options, frozen) * share
            return losses | {"loss": losses["loss"] + extra, "extra_loss": extra}
        return loss


class BaselineDetector(nn.Module):
    """A baseline as a detector: image (B, 3, H, W) in [-1, 1] -> Output; see `anl.models.baselines.build`.

    Only the weights of `network` are saved: the frozen model behind `represent` is not a sub-module.
    """

    kind = "baseline"

    def __init__(self, network, represent, settings, needs):
        super().__init__()
        self.network, self.represent, self.settings, self.needs = network, represent, settings, needs

    def forward(self, x):
        if self.represent is None and self.needs != "none":
            raise UserError(f"baseline '{self.settings['name']}' was built without its frozen model ({self.needs}); "
                            "pass `frozen` to anl.models.baselines.build")
        if self.represent is not None:
            with torch.autocast(x.device.type, enabled=False):  # as in scoring; a prior computes in its own precision
                x = self.represent(x)
        return self.network(x)

    def for_inference(self):
        """The same detector without the parts of its network that only training uses."""
        network = self.network.for_inference() if hasattr(self.network, "for_inference") else self.network
        return BaselineDetector(network, self.represent, self.settings, self.needs).eval()


class Classifier(nn.Module):
    """The plain detector's stem, backbone and linear layer on a representation (B, channels, H, W) of the image.

    front: a fixed function of the input, before the standardisation. With the same seed, the backbone and the linear
    layer have the same initial weights as those of `anl.models.detector.Detector`.
    """

    def __init__(self, detector, size, channels=3, seed=0, front=None):
        super().__init__()
        width = detector["stem_width"]
        self.front = front
        self.standardise = standardise(channels)
        with initialised_from(seed, "front_end"):
            self.stem = nn.Sequential(conv(channels, width), conv(width, width))
        with initialised_from(seed, "backbone"):
            self.backbone = features_of(detector["backbone"], detector["stride"], width, size,
                                        detector.get("pretrained", False))
        with initialised_from(seed, "classifier", ""):
            self.classifier = nn.Linear(self.backbone.feature_info.channels()[-1], 1)

    def forward(self, x):
        x = x if self.front is None else self.front(x)
        features = self.backbone(self.stem(self.standardise(x)))[-1]  # (B, D, h, w)
        pooled = features.mean((2, 3))
        return Output(self.classifier(pooled).squeeze(1), None, uniform_map(features), pooled)


def plain_detector(detector, size, channels=3, seed=0, front_end="image"):
    """The plain detector itself: no noise head, no attention."""
    chosen = {key: detector[key] for key in BACKBONE_SETTINGS}
    return Detector(**chosen, size=size, noise=False, attention="none", front_end=front_end, seed=seed,
                    pretrained=detector.get("pretrained", False))


def fixed_augmentation(augmentation_plan):
    """Wrap `anl.data.processing.augmentation_plan` so that a pair always gets the same operations, in the same order.

    Slow representations can then be cached. How many operations a pair gets, if any, is still drawn in each step.
    """
    def plan(pairs, training, seed, step):
        def fixed(pair, count):
            always = training.model_copy(update={"augment_probability": 1.0, "augment_most": count})
            return augmentation_plan([pair], always, seed, f"pair {int(pair)}")[0]

        drawn = augmentation_plan(pairs, training, seed, step)
        return [None if entry is None else fixed(pair, len(entry)) for pair, entry in zip(pairs, drawn, strict=True)]
    return plan
