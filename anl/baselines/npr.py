"""NPR: what nearest-neighbour upsampling by two leaves unexplained in each 2 x 2 block."""

from torch.nn import functional as F

from anl.baselines.interface import Baseline, Classifier


def residual(x):
    """x - up(down(x)), both nearest neighbour with factor 2, times 2/3 as in the authors' code; H and W even."""
    down = F.interpolate(x, scale_factor=0.5, mode="nearest")
    return (x - F.interpolate(down, scale_factor=2, mode="nearest")) * 2 / 3


BASELINE = Baseline(
    title="NPR", source="Tan et al., Rethinking the up-sampling operations in CNN-based generative networks, CVPR 2024",
    differs="Our stem and backbone in place of its shortened ResNet-50.",
    build=lambda detector, size, settings: Classifier(detector, size, 3, residual))
