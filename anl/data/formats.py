"""The file formats of a benchmark: as it is, or with the leak of most published sets, put there on purpose.

`lossless`: every image is PNG. `leaky`: reals have been through JPEG 96, generated images are PNG, as in GenImage and
DiffusionForensics. A method whose gain grows on the leaky copy may owe its published gain to file formats.
"""

import numpy as np

from anl.data.views import apply
from anl.errors import UserError
from anl.params import FORMATS

REAL_QUALITY = "jpeg96"  # what the reals of the leaky copy have been through, and what `matched` gives the fakes too


def check(formats):
    if formats not in FORMATS:
        raise UserError(f"there is no set of formats '{formats}'; choose one of {', '.join(FORMATS)}")
    return formats


def as_published(pixels, label, formats):
    """uint8 (N, H, W, 3) as a reader of the files would decode them. label: (N,), 1 for generated."""
    return _processed(pixels, np.asarray(label) == 0) if check(formats) == "leaky" else pixels


def matched(pixels, label, formats):
    """Published pixels with the generated images re-encoded as the reals are: view `matched`."""
    return _processed(pixels, np.asarray(label) == 1) if check(formats) == "leaky" else pixels


def _processed(pixels, which):
    return np.stack([apply(REAL_QUALITY, image) if chosen else image for image, chosen in zip(pixels, which, strict=True)])
