"""Perturbations of graded strength, given to real and generated test images alike.

Every function takes and returns uint8 (H, W, 3) of one size, so that what is scored is always an 8-bit image of the
detector's own size. Kinds and the range of their strengths are anl.params.PERTURBATIONS.
"""

import io

import numpy as np
from PIL import Image, ImageFilter

from anl import seeds
from anl.data.views import jpeg
from anl.errors import UserError


def name(kind, strength):
    """`jpeg_90`: how a perturbation is called where a view's name stands."""
    return f"{kind}_{strength:g}"


def apply(kind, strength, pixels, seed, sample_id):
    """One image perturbed. `seed` and `sample_id` decide the noise, nothing else: scores know no order.

    Raises UserError on an unknown kind.
    """
    if kind == "noise":
        return noise(pixels, strength, seeds.generator(seed, "perturbation", sample_id))
    try:
        return PERTURB[kind](pixels, strength)
    except KeyError:
        raise UserError(f"there is no perturbation '{kind}'; choose one of {', '.join([*PERTURB, 'noise'])}") from None


def _jpeg(pixels, quality):
    return jpeg(pixels, round(quality))


def webp(pixels, quality):
    """Lossy WebP at `quality` (0 to 100), decoded again."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="WEBP", quality=round(quality), method=4)
    return np.asarray(Image.open(stream).convert("RGB"))


def blur(pixels, deviation):
    """Gaussian blur of `deviation` pixels (Pillow's, by repeated box filters)."""
    return np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(deviation)))


def resize(pixels, factor):
    """Bicubic to `factor` times the size and back."""
    height, width = pixels.shape[:2]
    other = Image.fromarray(pixels).resize((round(width * factor), round(height * factor)), Image.Resampling.BICUBIC)
    return np.asarray(other.resize((width, height), Image.Resampling.BICUBIC))


def crop(pixels, share):
    """The middle `share` of each side, padded by reflection to the old size.

    No pixel is resampled. Scored at its own size instead, 0.9 of 64 pixels would be no multiple of 16, which detectors
    ask for, and fewer cells would be another change than the one asked about.
    """
    sides = pixels.shape[:2]
    kept = [round(side * share) for side in sides]
    first = [(side - part) // 2 for side, part in zip(sides, kept)]
    middle = pixels[first[0]:first[0] + kept[0], first[1]:first[1] + kept[1]]
    rim = [(start, side - part - start) for start, side, part in zip(first, sides, kept)]
    return np.pad(middle, [*rim, (0, 0)], mode="reflect")


def noise(pixels, deviation, rng):
    """White Gaussian noise of `deviation` grey levels, drawn from `rng`; a stronger one is the same draw, scaled."""
    return np.rint(pixels + deviation * rng.standard_normal(pixels.shape)).clip(0, 255).astype(np.uint8)


PERTURB = {"jpeg": _jpeg, "webp": webp, "blur": blur, "resize": resize, "crop": crop}
