"""The diffusion models that the field uses as priors, by name: what they are, what they saw, where their steps begin.

Facts were written down offline, from the models' cards as we remember them: check a licence before you rely on it, and
look up the commit (`revision`), which we could not.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Preset:
    """hub_id, revision: where it is, and its commit (None: not looked up). overlaps: benchmarks whose real images are
    among those it was trained on, as far as known. resolution: pixels on a side. first_step: what its own samplers do at
    the paper's t = 1, which is diffusers' timestep 0 for every prior here."""

    hub_id: str
    revision: str | None
    licence: str
    trained_on: str
    overlaps: tuple[str, ...]
    resolution: int
    first_step: str


LAST_OF_ALL = "samplers end at timestep 0, so t = 1 is the last step of denoising"
PRESETS = {
    "ddpm-cifar10-32": Preset("google/ddpm-cifar10-32", None, "Apache-2.0", "CIFAR-10", ("cifake",), 32, LAST_OF_ALL),
    "ddpm-ema-celebahq-256": Preset("google/ddpm-ema-celebahq-256", None, "Apache-2.0", "CelebA-HQ",
                                    ("diffusionforensics-celebahq",), 256, LAST_OF_ALL),
    "ddpm-ema-bedroom-256": Preset("google/ddpm-ema-bedroom-256", None, "Apache-2.0", "LSUN bedroom",
                                   ("diffusionforensics-lsun_bedroom", "forensynths"), 256, LAST_OF_ALL),
    "adm-imagenet-256": Preset("xutongda/adm_imagenet_256x256_unconditional", None, "MIT", "ImageNet",
                               ("genimage", "tiny-genimage", "diffusionforensics-imagenet", "forensynths"), 256,
                               "trained on 1000 steps; respaced samplers may leave timestep 0 out"),
    "stable-diffusion-1.5": Preset("stable-diffusion-v1-5/stable-diffusion-v1-5", None, "CreativeML Open RAIL-M", "LAION",
                                   ("univfd-laion",), 512,
                                   "its scheduler's steps_offset is 1: samplers end at timestep 1, and timestep 0 was "
                                   "trained but is never sampled"),
}


def overlap_warning(name, benchmark):
    """A sentence if the preset was trained on real images of `benchmark`, else None.

    Its error on them is then lower than on images it never saw, whoever made them.
    """
    preset = PRESETS.get(name)
    if preset is None or benchmark not in preset.overlaps:
        return None
    return (f"{name} was trained on {preset.trained_on}, which holds real images of {benchmark}: what it predicts for them "
            "may betray that it knows them")


def table():
    """One row a preset, for people: a list of dicts."""
    return [{"name": name, "hub_id": preset.hub_id, "revision": preset.revision or "look it up",
             "licence": preset.licence, "trained_on": preset.trained_on, "resolution": preset.resolution,
             "overlaps": ", ".join(preset.overlaps), "first_step": preset.first_step}
            for name, preset in PRESETS.items()]
