"""The real photographs: their data card, and how one is decoded."""

import csv
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from anl.errors import UserError
from anl.files import sha256_of

CARD_COLUMNS = ("file", "sha256", "bytes", "width", "height", "format", "licence", "author", "source", "package",
                "path_in_package", "group")


@dataclass(frozen=True)
class Photo:
    """A row of the data card. `group` joins near-duplicates, which stay on one side of a split."""

    file: str
    sha256: str
    bytes: int
    width: int
    height: int
    format: str
    licence: str
    author: str
    source: str
    package: str
    path_in_package: str
    group: str

    @property
    def id(self):
        return Path(self.file).stem

    @property
    def cluster(self):
        return self.group or self.id


def read_card(path):
    """The data card, a list of Photo sorted by file. Raises UserError on a missing card or a missing column."""
    try:
        with open(path, newline="", encoding="utf-8") as stream:
            reader = csv.DictReader(stream)
            missing = set(CARD_COLUMNS) - set(reader.fieldnames or ())
            if missing:
                raise UserError(f"{path} lacks the column(s) {', '.join(sorted(missing))}; restore it with "
                                f"`git checkout -- {path}`")
            rows = [{key: row[key] for key in CARD_COLUMNS} for row in reader]
    except FileNotFoundError:
        raise UserError(f"{path} is missing; restore it with `git checkout -- {path}`") from None
    numbers = ("bytes", "width", "height")
    return sorted((Photo(**{k: int(v) if k in numbers else v for k, v in row.items()}) for row in rows),
                  key=lambda photo: photo.file)


def check_folder(photos, folder):
    """Raise UserError unless every photograph of the card lies in `folder` with the card's SHA-256."""
    folder = Path(folder)
    mend = "get it with `dvc pull data.dvc`, or rebuild it with `anl photos`"
    if not folder.is_dir():
        raise UserError(f"{folder} is missing; {mend}")
    missing = [photo.file for photo in photos if not (folder / photo.file).is_file()]
    if missing:
        raise UserError(f"{folder} lacks {len(missing)} of {len(photos)} photographs ({missing[0]} is the first); {mend}")
    for photo in photos:
        path = folder / photo.file
        if path.stat().st_size == 0:
            raise UserError(f"{path} is empty; delete it and {mend}")
        if sha256_of(path) != photo.sha256:
            raise UserError(f"{path} is not the file of the data card (its SHA-256 differs); delete it and {mend}")


def decode(path, smallest_side=1):
    """Decode an image file to uint8 RGB, (H, W, 3), honouring EXIF rotation.

    Palette, grey and CMYK images become RGB, 16-bit ones are scaled to 8 bits, transparency is laid on white. Raises
    UserError, naming the file, when it cannot be decoded in full or is smaller than `smallest_side` pixels.
    """
    path = Path(path)
    if path.is_file() and path.stat().st_size == 0:
        raise UserError(f"{path} is empty (0 bytes); replace or remove it")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                image.load()
                pixels = _to_rgb(ImageOps.exif_transpose(image))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise UserError(f"{path} has too many pixels to decode safely; downsample it first") from None
    except (OSError, ValueError, SyntaxError) as problem:
        raise UserError(f"{path} cannot be decoded ({problem}); replace or remove it") from None
    height, width = pixels.shape[:2]
    if min(height, width) < smallest_side:
        raise UserError(f"{path} is {width} x {height} pixels, smaller than the {smallest_side} needed; use a larger "
                        "image or a smaller crop")
    return pixels


def _to_rgb(image):
    if image.mode.startswith("I;16") or image.mode == "I":
        values = np.asarray(image).astype(np.float64)
        grey = np.clip(np.rint(values / 257), 0, 255).astype(np.uint8)
        return np.stack([grey] * 3, axis=-1)
    if image.mode == "F":
        raise ValueError("floating-point pixels have no agreed range")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return np.asarray(image.convert("RGB"))
