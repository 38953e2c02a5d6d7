"""NPR: what nearest-neighbour upsampling by two does not explain in each 2 x 2 block.

Reference: Tan et al., "Rethinking the up-sampling operations in CNN-based generative network for generalizable deepfake
detection", CVPR 2024. Fidelity: see `BASELINE.fidelity`.
"""

from anl.io import UserError
from anl.models.baselines.interface import Baseline, Classifier


def residual(x):
    """x - up(down(x)), both nearest neighbour with factor 2, times 2/3 as in the authors' code.

    x: (B, C, H, W) with even H and W; the result has the same shape. Raises UserError on odd sides.
    """
    if x.shape[2] % 2 or x.shape[3] % 2:
        raise UserError(f"NPR cannot read images of {x.shape[3]} x {x.shape[2]} pixels; use crops with even sides")
    first = x[..., ::2, ::2].repeat_interleave(2, 2).repeat_interleave(2, 3)
    return (x - first) * 2 / 3


BASELINE = Baseline(
    name="NPR", reference="Tan et al., Rethinking the up-sampling operations in CNN-based generative network for "
                          "generalizable deepfake detection, CVPR 2024",
    fidelity="The published residual, standardised; our stem and backbone in place of its shortened ResNet-50.",
    build=lambda detector, size, channels, seed: Classifier(detector, size, channels, seed, residual))
