"""The plain backbone with CNNDetection's augmentation: strong blur and JPEG, each on every other image."""

import dataclasses

from anl.baselines.interface import Baseline, plain_detector


def recipe(training, settings):
    """Blur of up to `strong_blur` pixels and JPEG down to `strong_jpeg`, each with its own probability."""
    return dataclasses.replace(training, augment_probability=settings["strong_probability"],
                               blur_radius=[0.0, settings["strong_blur"]],
                               jpeg_quality=[settings["strong_jpeg"], 100], resize_scale=[1.0, 1.0])


BASELINE = Baseline(
    title="Blur + JPEG", source="Wang et al., CNN-generated images are surprisingly easy to spot... for now, CVPR 2020",
    differs="One of blur (radius up to 3) and JPEG (quality 30 to 100) is drawn, not both; both images of a pair are treated "
            "alike; our backbone, not a pre-trained ResNet-50.",
    build=plain_detector, recipe=recipe)
