"""A front end of three fixed high-pass filters from steganalysis, before the plain backbone."""

from anl.baselines.interface import Baseline, Classifier
from anl.residuals import CHANNELS, residuals

BASELINE = Baseline(
    title="SRM", source="Fridrich & Kodovsky, Rich models for steganalysis, TIFS 2012; three filters after Zhou et al., "
                        "Learning rich features for image manipulation detection, CVPR 2018",
    differs="Our stem and backbone; the published detector is for splicing.",
    build=lambda detector, size, settings: Classifier(detector, size, CHANNELS, residuals))
