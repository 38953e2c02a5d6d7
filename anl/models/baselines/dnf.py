"""DNF: the classifier reads the noise that the frozen prior sees in the image, at inference too.

Reference: Zhang and Xu, "Diffusion noise feature: accurate and fast generated image detection", 2023.
Fidelity: see `BASELINE.fidelity`.
"""

from anl.models.baselines.interface import Baseline, Classifier, enlarge


def represent(prior, options):
    """x -> the prior's noise at `noise_step`, (B, channels, H, W); a latent prior's is enlarged to the image."""
    return lambda x: enlarge(prior.epsilon(prior.encode(x), options["noise_step"]), x)


BASELINE = Baseline(
    name="DNF", reference="Zhang and Xu, Diffusion noise feature: accurate and fast generated image detection, 2023",
    fidelity="The noise of one step from the configured prior on the crop itself, in place of a fusion over the DDIM "
             "inversion of a bedroom prior; our backbone.",
    build=Classifier, needs="prior", represent=represent, channels=lambda prior: prior.channels,
    parameters=("noise_step",))
