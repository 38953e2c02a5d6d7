"""The file formats of a benchmark: as it is, or with the leak of most published sets, put there on purpose.

`lossless`: every image is PNG. `leaky`: reals have been through JPEG 96, generated images are PNG, as in GenImage and
DiffusionForensics. A method whose gain grows on the leaky copy may owe its published gain to file formats.
"""

import hashlib

import numpy as np
import pandas as pd

from anl.data.views import apply, jpeg
from anl.errors import UserError
from anl.params import FORMATS

LOSSLESS_FILES = ("PNG", "BMP", "TIFF", "GIF")
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


def distribution(rows):
    """Share of each (format, JPEG quality) among manifest rows, a Series that sums to 1, sorted; quality 0: no JPEG.

    A manifest without the column `jpeg_quality` (the embedded benchmark's) holds no JPEG.
    """
    quality = rows["jpeg_quality"].fillna(0).astype(int) if "jpeg_quality" in rows else pd.Series(0, rows.index)
    return pd.DataFrame({"format": rows["format"].astype(str), "quality": quality}).value_counts(normalize=True).sort_index()


def drawn_from_reals(rows, seed):
    """How view `matched` encodes each image of a published set: a list of (format, quality), None for what stays as it is.

    rows: manifest rows with label, generator, sample_id and format. Reals stay. So do the images of a generator whose
    formats and qualities are distributed exactly as the reals'; those of any other draw theirs from the reals'
    distribution, each by the seed and its own name alone. Raises UserError on a format that cannot be imitated.
    """
    label = rows["label"].to_numpy()
    wanted = distribution(rows[label == 0])
    drawn = [None] * len(rows)
    steps = np.cumsum(wanted.to_numpy())
    for name in rows.loc[label == 1, "generator"].unique():
        mine = np.flatnonzero((rows["generator"] == name).to_numpy())
        if distribution(rows.iloc[mine]).equals(wanted):
            continue
        if odd := [form for form, _ in wanted.index if form != "JPEG" and form not in LOSSLESS_FILES]:
            raise UserError(f"view `matched` cannot write {odd[0]}, which some reals are; leave it out of evaluation.views")
        for place in mine:
            digest = hashlib.sha256(f"{seed}/{rows['sample_id'].iloc[place]}".encode()).digest()
            share = int.from_bytes(digest[:6], "big") / 2**48 * steps[-1]
            form, quality = wanted.index[int(np.searchsorted(steps, share, side="right"))]
            drawn[place] = (form, int(quality))
    return drawn


def encoded(pixels, drawn):
    """uint8 (N, H, W, 3) after the encodings of `drawn_from_reals`, JPEG with 4:2:0 chroma; a lossless one changes nothing."""
    return np.stack([jpeg(image, how[1]) if how and how[0] == "JPEG" else image for image, how in zip(pixels, drawn, strict=True)])


def _processed(pixels, which):
    return np.stack([apply(REAL_QUALITY, image) if chosen else image for image, chosen in zip(pixels, which, strict=True)])
