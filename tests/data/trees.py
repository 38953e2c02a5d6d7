"""Small folder trees of images, and data cards, for tests."""

import csv
import hashlib
import io

import numpy as np
from PIL import Image

from anl.data.photos import CARD_COLUMNS
from tests.conftest import photograph


def encode(image, kind="PNG", **options):
    """Bytes of a Pillow image or a uint8 array."""
    stream = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(stream, format=kind, **options)
    return stream.getvalue()


def encoded(seed, kind="PNG", size=24, **options):
    return encode(photograph(seed, size, size), kind, **options)


def write(root, files):
    """files: {path: bytes}."""
    for path, data in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(data)
    return root


def genimage(root, each=3, **options):
    """Two generators in GenImage's tree, `each` images of a class and split."""
    places = [f"{generator}/{split}/{label}" for generator in ("ADM", "Midjourney") for split in ("train", "val")
              for label in ("ai", "nature")]
    return write(root, {f"{place}/{i}.png": encoded(100 * n + i, **options) for n, place in enumerate(places)
                        for i in range(each)})


def photo_card(path, photos):
    """Write a data card of {file: (bytes, other columns)}."""
    with open(path, "w", newline="") as stream:
        writer = csv.DictWriter(stream, CARD_COLUMNS)
        writer.writeheader()
        for name, (data, columns) in photos.items():
            known = {"file": name, "sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data), "width": 60, "height": 40}
            writer.writerow(dict.fromkeys(CARD_COLUMNS, "") | known | columns)
    return path
