"""DIRE: the difference between an image and its reconstruction by DDIM inversion and sampling with the frozen prior.

Reference: Wang et al., "DIRE for diffusion-generated image detection", ICCV 2023.
Fidelity: see `BASELINE.fidelity`.
"""

import itertools

import numpy as np

from anl.models.baselines.interface import Baseline, Classifier, enlarge


def represent(prior, options):
    """x -> |z - reconstruction of z|, (B, channels, H, W), where z is x in the prior's own space; 2 x steps calls."""
    def error(x):
        z = prior.encode(x)
        return enlarge((z - reconstruct(prior, z, options["inversion_steps"])).abs(), x)
    return error


def reconstruct(prior, z, steps):
    """Invert z over the whole schedule in `steps` deterministic steps and sample it back.

    Parameters
    ----------
    prior : NoisePrior
        Its `epsilon` and `alphas_cumprod` are used.
    z : Tensor (B, C, h, w)
        In the prior's own space.
    steps : int
        Steps in each direction.

    Returns
    -------
    Tensor (B, C, h, w)
    """
    places = np.rint(np.linspace(0, len(prior.alphas_cumprod), steps + 1)).astype(int).tolist()
    for a, b in itertools.pairwise([*places, *places[-2::-1]]):
        z = ddim_step(prior, z, a, b)
    return z


def ddim_step(prior, z, a, b):
    """Move z from step a to step b (0 = clean) without added noise, forwards or backwards.

    z_b = sqrt(alpha_b) z_0 + sqrt(1 - alpha_b) e with z_0 = (z - sqrt(1 - alpha_a) e) / sqrt(alpha_a), and e the
    prior's noise at step a; at a = 0, which has none, at step 1.

    References
    ----------
    Song et al., "Denoising diffusion implicit models", ICLR 2021, eq. 12 and 13.
    """
    alpha_a, alpha_b = (1.0 if step == 0 else float(prior.alphas_cumprod[step - 1]) for step in (a, b))
    e = prior.epsilon(z, max(a, 1))
    clean = (z - (1 - alpha_a) ** 0.5 * e) / alpha_a**0.5
    return alpha_b**0.5 * clean + (1 - alpha_b) ** 0.5 * e


BASELINE = Baseline(
    name="DIRE", reference="Wang et al., DIRE for diffusion-generated image detection, ICCV 2023",
    fidelity="The configured prior on the crop itself, fewer steps than the published 20, the residual as a tensor in "
             "place of a JPEG or PNG file; our backbone.",
    build=Classifier, needs="prior", represent=represent, channels=lambda prior: prior.channels,
    parameters=("inversion_steps",))
