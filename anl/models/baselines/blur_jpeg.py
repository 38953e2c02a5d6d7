"""The plain detector trained with CNNDetection's augmentation: strong blur and JPEG.

Reference: Wang et al., "CNN-generated images are surprisingly easy to spot... for now", CVPR 2020.
Fidelity: see `BASELINE.fidelity`.
"""

from anl.models.baselines.interface import Baseline, plain_detector


def training(options):
    """Settings of the training: blur of up to `strong_blur` pixels and JPEG down to quality `strong_jpeg`."""
    return {"augment_probability": options["strong_probability"], "blur_radius": [0.0, options["strong_blur"]],
            "jpeg_quality": [options["strong_jpeg"], 100], "resize_scale": [1.0, 1.0]}


BASELINE = Baseline(
    name="Blur + JPEG",
    reference="Wang et al., CNN-generated images are surprisingly easy to spot... for now, CVPR 2020",
    fidelity="One of blur (radius up to 3) and JPEG (quality 30 to 100) is drawn, not both; the two images of a pair "
             "are treated alike; our backbone on full-resolution crops, not a pre-trained ResNet-50.",
    build=plain_detector, parameters=("strong_probability", "strong_blur", "strong_jpeg"), training=training)
