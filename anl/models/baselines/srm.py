"""The plain detector reading the residuals of three fixed high-pass filters of steganalysis.

References: Fridrich and Kodovsky, "Rich models for steganalysis of digital images", TIFS 2012; the three filters are
those of Zhou et al., "Learning rich features for image manipulation detection", CVPR 2018.
Fidelity: see `BASELINE.fidelity`. It is the detector with front end `residual` and no noise learning.
"""

import functools

from anl.models.baselines.interface import Baseline, plain_detector

BASELINE = Baseline(
    name="SRM", reference="Fridrich and Kodovsky, Rich models for steganalysis of digital images, TIFS 2012; three "
                          "filters after Zhou et al., Learning rich features for image manipulation detection, CVPR "
                          "2018",
    fidelity="Our stem and backbone at full resolution; the published detector of these filters is for splicing.",
    build=functools.partial(plain_detector, front_end="residual"))
