"""The detector: a full-resolution stem, a timm backbone, and between them what the predicted noise adds.

    h = stem(x);  n_hat = head(h);  f = backbone(h);  f' = attention(f, n_hat);  logit = linear(pool(f'))

The plain detector is the same stem, backbone and classifier without head and attention. The prior appears nowhere. With the
branch `shallow` there is no stem: f = backbone(x), and n_hat comes from a small branch beside it. Of `anl+` the stem sees
residuals of the image, or the backbone reads nothing but the predicted noise (`reads`).
"""

import json
from typing import NamedTuple

import timm
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from anl import attention as attentions
from anl.errors import UserError
from anl.files import whole_file
from anl.params import BRANCHES, GRADIENTS, READS
from anl.residuals import CHANNELS, residuals


class Output(NamedTuple):
    """logit (B,), positive for generated; noise (B, C, H/k, W/k) in standard deviations of the target, or None; map
    (B, h, w); features (B, D), what the logit is read from. C and k are the prior's: 3 and 1 for one that works on pixels,
    4 and 8 for most latent ones."""

    logit: torch.Tensor
    noise: torch.Tensor | None
    map: torch.Tensor
    features: torch.Tensor | None = None


class Detector(nn.Module):
    """A detector of generated images. x: (B, 3, H, W) in [-1, 1], H = W = `size` or any multiple of 16.

    backbone: name of a timm model with `features_only`; its deepest stage of at most `stride` pixels a feature is used,
    and deeper ones are not built; one that takes images of a fixed size, as most vision transformers do, takes `size` alone. noise: whether it predicts noise. attention: one of
    `none`, `energy`, `gate`, `affinity`; all but `none` need the noise head. attention_dim: width of the queries and
    keys of `affinity`. gradient: `joint`, or `detached`: classification then leaves the noise head alone, so that the
    attention reads nothing but what the noise loss taught it. noise_channels, noise_factor: channels of the noise, and
    image pixels on a side of one of its cells. branch: `stem`, or `shallow`: the backbone, timm's own, reads the image itself,
    and the attention alone what a ShallowBranch predicts. reads, with a stem: `image`; `residual`, where the stem sees fixed
    high-pass residuals (anl.residuals), standardised; or `noise`, where the stem sees them too, and the backbone reads the noise
    that the stem predicts and nothing else: what a classifier of the prior's noise reads, without the prior.
    """

    def __init__(self, backbone, stride, stem_width, patch, size, noise=True, attention="affinity", attention_dim=32,
                 gradient="joint", noise_channels=3, noise_factor=1, branch="stem", reads="image"):
        super().__init__()
        if attention != "none" and not noise:
            raise UserError(f"attention '{attention}' needs the predicted noise: use target `prior`, or attention `none`")
        if gradient not in GRADIENTS:
            raise UserError(f"there is no gradient '{gradient}'; choose one of {', '.join(GRADIENTS)}")
        if branch not in BRANCHES:
            raise UserError(f"there is no branch '{branch}'; choose one of {', '.join(BRANCHES)}")
        if branch == "shallow" and noise and attention == "none":
            raise UserError("branch 'shallow' needs an attention: without one, nothing of the noise would reach the score")
        self.settings = {"backbone": backbone, "stride": stride, "stem_width": stem_width, "patch": patch, "size": size,
                         "noise": noise, "attention": attention, "attention_dim": attention_dim, "gradient": gradient,
                         "noise_channels": noise_channels, "noise_factor": noise_factor}
        if reads not in READS:
            raise UserError(f"a detector cannot read '{reads}'; choose one of {', '.join(READS)}")
        if reads != "image" and branch != "stem":
            raise UserError(f"a detector that reads '{reads}' needs the branch 'stem'")
        if reads == "noise" and not (noise and noise_factor == 1):
            raise UserError("a detector that reads the predicted noise needs the noise of a prior of pixels as target")
        # these came later: other files stay as they were
        self.settings |= {"branch": branch} if branch != "stem" else {}
        self.settings |= {"reads": reads} if reads != "image" else {}
        self.detached = gradient == "detached"
        # at full resolution, unstrided: noise at t = 1 has no energy left after a stride of 4
        seen = 3 if reads == "image" else CHANNELS
        self.stem = nn.Sequential(conv(seen, stem_width), conv(stem_width, stem_width)) if branch == "stem" else None
        self.backbone = features_of(backbone, stride, 3 if self.stem is None else stem_width, size)
        info = self.backbone.feature_info
        channels, grid = info.channels()[-1], size // info.reduction()[-1]
        # one linear convolution: the noise must stand in the features that the backbone reads
        make_head = _head if branch == "stem" else ShallowBranch
        self.head = make_head(stem_width, noise_channels, noise_factor) if noise else None
        self.attention = attentions.build(attention, channels, max(1, patch // noise_factor), grid, noise_channels,
                                          attention_dim)
        self.classifier = nn.Linear(channels, 1)
        self.standardise = standardised(CHANNELS) if reads != "image" else None
        self.reader = nn.Sequential(standardised(noise_channels), conv(noise_channels, stem_width),
                                    conv(stem_width, stem_width)) if reads == "noise" else None

    def forward(self, x):
        # photographs have a standard deviation of about a half in [-1, 1]
        h = x / 0.5 if self.standardise is None else self.standardise(residuals(x))
        h = h if self.stem is None else self.stem(h)
        noise = None if self.head is None else self.head(h)
        if self.reader is not None:
            h = self.reader(noise)
        heard = noise.detach() if self.detached and noise is not None else noise
        features, weights = self.attention(self.backbone(h)[-1], heard)
        pooled = features.mean((2, 3))
        return Output(self.classifier(pooled).squeeze(1), noise, weights, pooled)


class ShallowBranch(nn.Module):
    """Image -> noise at full resolution, for little: each 2 x 2 pixels are one cell of 12 values, and convolutions see cells.

    The cells are taken apart and put together by pixel_unshuffle and pixel_shuffle, which lose nothing, so that noise of one
    pixel can be told, at a quarter of the work that layers of the image's own resolution would take. (B, 3, H, W) -> (B,
    channels, H/factor, W/factor). width: half of the hidden channels. Raises UserError on a factor that is odd and not 1.
    """

    def __init__(self, width, channels, factor):
        super().__init__()
        if factor > 1 and factor % 2:
            raise UserError(f"branch 'shallow' sees two pixels at once, and a cell of the noise has {factor}; choose branch 'stem'")
        self.factor = factor
        self.hidden = conv(4 * 3, 2 * width)
        self.out = nn.Conv2d(2 * width, 4 * channels, 3, 1, 1) if factor == 1 else _head(2 * width, channels, factor // 2)

    def forward(self, x):
        out = self.out(self.hidden(F.pixel_unshuffle(x, 2)))
        return F.pixel_shuffle(out, 2) if self.factor == 1 else out


def _head(inputs, channels, factor):
    """Stem features -> noise: a 3 x 3 convolution, or one that reads each latent cell's own pixels."""
    return nn.Conv2d(inputs, channels, 3, 1, 1) if factor == 1 else nn.Conv2d(inputs, channels, factor, factor)


def features_of(name, stride, in_chans, size=None, pretrained=False):
    """The timm model `name` up to its deepest stage of at most `stride` pixels a feature.

    size: pixels on a side of its images, needed for a model that takes one size alone. pretrained: with timm's published
    weights; those of the first layer, which are of three channels, timm repeats over in_chans and scales by 3 / in_chans, and
    position embeddings it resamples. Raises UserError on a model that has no features, or none so fine, or another size; what
    timm raises where weights cannot be had is passed on.
    """
    options = {"in_chans": in_chans, "features_only": True}
    try:
        if timm.get_pretrained_cfg(name, allow_unregistered=False).fixed_input_size and size:
            options["img_size"] = size
        reductions = timm.create_model(name, pretrained=False, **options).feature_info.reduction()
    except (RuntimeError, ValueError, AttributeError) as problem:
        raise UserError(f"detector.backbone '{name}' is no timm model with features ({problem}); see "
                        "timm.list_models()") from None
    index = max((i for i, reduction in enumerate(reductions) if reduction <= stride), default=None)
    if index is None:
        raise UserError(f"detector.stride {stride} is finer than the first stage of {name} ({reductions[0]}); raise it")
    if "img_size" in options and size % reductions[index]:
        raise UserError(f"{name} cuts images into patches of {reductions[index]} pixels, and {size} is no multiple; choose another "
                        "size, or another backbone")
    return timm.create_model(name, pretrained=pretrained, **options, out_indices=(index,))


def standardised(channels):
    """Each channel at mean 0 and deviation 1 over the training batches: residuals differ in scale by orders of magnitude."""
    return nn.BatchNorm2d(channels, eps=1e-10, affine=False)


def conv(inputs, outputs):
    """A 3 x 3 convolution at full resolution, batch norm, ReLU."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())


def save(detector, path):
    """Write weights (safetensors) with the settings that rebuild the detector in the file's metadata."""
    weights = {key: value.detach().contiguous().cpu() for key, value in detector.state_dict().items()}
    with whole_file(path) as temporary:
        save_file(weights, temporary, metadata={"detector": json.dumps(detector.settings, sort_keys=True)})


def load(path, device="cpu"):
    """Rebuild a saved detector, or a baseline, in eval mode. Raises UserError on a missing, truncated or foreign file."""
    try:
        with safe_open(path, framework="pt") as file:
            settings = json.loads(file.metadata()["detector"])
            weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (safe_open does not iterate)
        detector = _rebuilt(settings)
        detector.load_state_dict(weights)
    except FileNotFoundError:
        raise UserError(f"{path} is missing; train the run again with `dvc repro`") from None
    except Exception as problem:
        reason = str(problem).strip().splitlines()[0]
        raise UserError(f"{path} holds no detector ({reason}); delete it and train the run again") from None
    return detector.to(device).eval()


def _rebuilt(settings):
    if "baseline" not in settings:
        return Detector(**settings)
    from anl import baselines  # it needs this module

    return baselines.build(**settings)
