"""DNF: the noise that the frozen diffusion prior sees in the image is the classifier's input, at inference too."""

from pathlib import Path

from anl import arithmetic
from anl.baselines.interface import Baseline, Classifier
from anl.baselines.stored import Stored
from anl.files import sha256_of


def represent(settings, models):
    """x -> the prior's noise at settings["noise_step"], (B, C, h, w)."""
    prior = load_prior(models)
    step = settings["noise_step"]
    return Stored(lambda x: prior.noise(x, step), "dnf", prior_hash(models), step, prior.precision)


def load_prior(models):
    from anl.prior import NoisePrior  # not above: who trains another baseline need not wait for diffusers

    return NoisePrior.load(Path(models) / "prior", precision=arithmetic.in_use("bf16"))


def prior_hash(models):
    return sha256_of(Path(models) / "prior")


BASELINE = Baseline(
    title="DNF", source="Zhang & Xu, Diffusion noise feature: accurate and fast generated image detection, 2023",
    differs="The noise of the first step alone, from our small prior, in place of a fusion over the DDIM inversion of a "
            "bedroom prior.",
    build=lambda detector, size, settings: Classifier(detector, size), represent=represent, needs=("prior",))
