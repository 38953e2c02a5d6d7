"""The plain detector: the method without the noise target, the noise head and the attention."""

from anl.models.baselines.interface import Baseline, plain_detector

BASELINE = Baseline(
    name="Plain", reference="The stem, backbone and linear layer of this project's own detector",
    fidelity="The same network, initial weights and training as the method's, without noise learning.",
    build=plain_detector)
