"""UnivFD: a linear layer on the features of a frozen encoder that was pre-trained on something else."""

from torch import nn

from anl.baselines import encoders
from anl.baselines.interface import Baseline
from anl.baselines.stored import Stored
from anl.detector import Output


def represent(settings, models):
    """x -> the features of settings["encoder"], (B, D, 1, 1)."""
    encoder = encoders.load(settings["encoder"], settings["encoder_python"])
    return Stored(Features(encoder), "univfd", *encoder.identity)


class Features:
    """An encoder's (B, D) as (B, D, 1, 1), a picture of one pixel. counted: what its multiply-adds are counted on."""

    def __init__(self, encoder):
        self.encoder = encoder

    def __call__(self, x):
        return self.encoder(x)[:, :, None, None]

    def counted(self, x):
        return getattr(self.encoder, "counted", self.encoder)(x)[:, :, None, None]

    @property
    def parameters(self):
        return self.encoder.parameters


class LinearProbe(nn.Module):
    """features phi (B, D, 1, 1) -> logit = w . (phi - mean) / deviation + b, mean and deviation those of the training batches:
    still one linear layer on the features, as published, at a scale that one learning rate suits."""

    def __init__(self, width):
        super().__init__()
        self.standardise = nn.BatchNorm1d(width, eps=1e-10, affine=False)
        self.classifier = nn.Linear(width, 1)

    def forward(self, features):
        features = features.flatten(1)
        logit = self.classifier(self.standardise(features)).squeeze(1)
        return Output(logit, None, features.new_full((len(features), 1, 1), 1.0), features)


BASELINE = Baseline(
    title="UnivFD", source="Ojha et al., Towards universal fake image detectors that generalize across generative models, CVPR "
                           "2023",
    differs="CLIP's ViT-B/16 in 8 bits in place of its ViT-L/14; patches are enlarged to 224 pixels, where the published crops "
            "are not resized; our harmless processing in place of blur and JPEG.",
    build=lambda detector, size, settings: LinearProbe(encoders.width_of(settings["encoder"])), represent=represent,
    encodes=True)
