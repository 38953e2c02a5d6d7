"""How a test image's bytes are treated before it is scored: views of both classes, and harmless processing of reals.

Every function takes and returns uint8 (H, W, 3), so that what is scored is always an 8-bit image.
"""

import io

import numpy as np
from PIL import Image, ImageFilter
from scipy.signal import wiener

from anl.errors import UserError

DENOISE_STD = 2.0  # grey levels: the noise that the Wiener filter takes for granted


def apply(name, pixels):
    """Apply the view or control `name` to an image. Raises UserError on an unknown name."""
    try:
        return PROCESSING[name](pixels)
    except KeyError:
        raise UserError(f"there is no view or control '{name}'; choose one of {', '.join(PROCESSING)}") from None


def _raw(pixels):
    return pixels


def jpeg(pixels, quality):
    """JPEG at `quality` with 4:2:0 chroma, decoded again."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="JPEG", quality=quality, subsampling="4:2:0")
    return np.asarray(Image.open(stream).convert("RGB"))


def _jpeg96(pixels):
    """Quality 96: what most published real images have been through."""
    return jpeg(pixels, 96)


def _resize75(pixels):
    """Bicubic to three quarters and back."""
    height, width = pixels.shape[:2]
    small = Image.fromarray(pixels).resize((round(width * 0.75), round(height * 0.75)), Image.Resampling.BICUBIC)
    return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))


def _blur(pixels):
    """A slight Gaussian blur, radius 0.5 pixels."""
    return np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(0.5)))


def _denoise(pixels):
    """An adaptive 3 x 3 Wiener filter for noise of DENOISE_STD grey levels: smooths flat places, spares edges."""
    values = pixels.astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        clean = np.stack([wiener(values[..., c], 3, DENOISE_STD**2) for c in range(3)], axis=-1)
    return np.rint(np.where(np.isfinite(clean), clean, values)).clip(0, 255).astype(np.uint8)


PROCESSING = {"raw": _raw, "jpeg96": _jpeg96, "resize75": _resize75, "blur": _blur, "denoise": _denoise}
