"""The image decoder, with limits on bytes and pixels. Every image file is decoded here.

Reads JPEG (the first image of a multi-picture file), PNG, WebP, AVIF, BMP, TIFF, GIF and PPM, recognised by content. EXIF
rotation is applied; palette, grey and CMYK images become RGB; 16 bits are scaled to 8; transparent pixels are blended with
white; colour profiles are ignored. Empty, truncated, damaged and animated files, files over the limits of pixels or bytes,
and floating-point pixels are refused with a reason.
"""

import contextlib
import functools
import io
import os
import stat
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from anl.data import parquet
from anl.io import UserError, reason

FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "BMP", "TIFF", "GIF", "PPM")
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".jp2", ".avif", ".ppm"}  # of images in data sets
MAX_PIXELS = 89_478_485  # above this Pillow warns of a decompression bomb; here it is an error
MAX_BYTES = 256 * 2**20
HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
ORIENTATION = 0x0112  # EXIF tag; 5 to 8 exchange width and height


class Refused(ValueError):
    """An image that cannot be read; the message is the reason, without the file's name."""


class Header(NamedTuple):
    """Width and height in pixels after EXIF rotation; jpeg_quality from 1 to 100, None for other formats."""

    width: int
    height: int
    format: str
    jpeg_quality: int | None


def decode(path_or_bytes, max_pixels=MAX_PIXELS, max_bytes=MAX_BYTES):
    """Decode one image.

    Parameters
    ----------
    path_or_bytes : path-like or bytes
        A regular file, a row of a Parquet file (``FILE.parquet#ROW``), or image bytes.
    max_pixels, max_bytes : int
        Limits, checked before pixels are decoded.

    Returns
    -------
    ndarray
        uint8 RGB (H, W, 3), writeable.

    Raises
    ------
    UserError
        If the image is refused; one line with file and reason.
    """
    is_bytes = isinstance(path_or_bytes, (bytes, bytearray, memoryview))
    try:
        data = bytes(path_or_bytes) if is_bytes else read_bytes(path_or_bytes, max_bytes)
        return decode_bytes(_within(data, max_bytes), max_pixels)
    except Refused as problem:
        raise refusal("the image" if is_bytes else os.fspath(path_or_bytes), problem) from None


def refusal(name, problem):
    """The UserError for the image called `name`."""
    return UserError(f"{name!r} is refused: {problem}; replace or remove it")


def read_bytes(path, max_bytes=MAX_BYTES):
    """The bytes of a regular file, or of a row of a Parquet file (FILE.parquet#ROW).

    Raises Refused if there is nothing to read, or more than `max_bytes`, which is checked before a file is read.
    """
    try:
        if parquet.is_row(path):
            return _within(parquet.read_row(path), max_bytes)
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise Refused("not a regular file")
        if status.st_size > max_bytes:
            raise Refused(_too_large(status.st_size, max_bytes))
        return Path(path).read_bytes()
    except OSError as problem:
        raise Refused(f"cannot be opened ({problem.strerror or problem})") from None
    except Refused:
        raise
    except ValueError:  # a zero byte in it
        raise Refused("not a path; give one path a line") from None
    except UserError as problem:
        raise Refused(str(problem)) from None


def _within(data, limit):
    if len(data) > limit:
        raise Refused(_too_large(len(data), limit))
    return data


def _too_large(size, limit):
    return f"{size} bytes, over the limit of {limit}"


def read_header(data, max_pixels=MAX_PIXELS):
    """Header of image bytes, without decoding pixels. Raises Refused; truncated JPEG, PNG and WebP files are detected."""
    with _opened(data, max_pixels) as image:
        kind = _kind(image)
        width, height = image.size
        # the EXIF block of a PNG may follow its pixels, where Pillow reads it by decoding them
        exif = image.getexif() if kind != "PNG" or b"eXIf" in data or "exif" in image.info else {}
        if kind != "TIFF" and exif.get(ORIENTATION, 1) in (5, 6, 7, 8):  # Pillow gives a TIFF's size already rotated
            width, height = height, width
        quality = estimate_quality(getattr(image, "quantization", None)) if kind == "JPEG" else None
        return Header(width, height, kind, quality)


def decode_bytes(data, max_pixels=MAX_PIXELS):
    """uint8 RGB (H, W, 3) of image bytes. Raises Refused."""
    with _opened(data, max_pixels) as image:
        image.load()
        return to_rgb(ImageOps.exif_transpose(image))


def _kind(image):
    return "JPEG" if image.format == "MPO" else image.format


@contextlib.contextmanager
def _opened(data, max_pixels):
    """The checked Pillow image of `data`; any error of Pillow, here or in the block, becomes Refused."""
    if not data:
        raise Refused("empty (0 bytes)")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            try:
                image = Image.open(io.BytesIO(data), formats=FORMATS)
            except Image.UnidentifiedImageError:
                raise Refused(f"not an image of a known format{_looks_like(data)}") from None
            with image:
                width, height = image.size
                if width * height > max_pixels:
                    raise Refused(f"{width} x {height} pixels, over the limit of {max_pixels} in all")
                if image.format != "MPO" and getattr(image, "is_animated", False):
                    raise Refused(f"animated or with several pages ({image.n_frames} frames)")
                if _truncated(data, _kind(image)):
                    raise Refused("truncated: the end of the file is missing")
                yield image
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise Refused(f"too many pixels, over the limit of {min(max_pixels, MAX_PIXELS)} in all") from None
    except Refused:
        raise
    except MemoryError:
        raise Refused("cannot be decoded (not enough memory)") from None
    except Exception as problem:  # Pillow's plugins raise OSError, ValueError, SyntaxError, struct.error, KeyError, ...
        raise Refused(f"cannot be decoded ({reason(problem)})") from None


def _looks_like(data):
    """What a file of another kind may be, in brackets, judged by its first bytes; "" if unknown."""
    start = data[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if data[4:8] == b"ftyp":  # ISO base media: the brand distinguishes images from videos
        return " (HEIC: save it as JPEG or PNG)" if data[8:12] in HEIF_BRANDS else " (a video)"
    if b"<svg" in start:
        return " (SVG, a vector drawing)"
    if start.startswith((b"<!doctype html", b"<html")):
        return " (a web page)"
    return " (PDF)" if start.startswith(b"%pdf-") else ""


def _truncated(data, kind):
    """Whether the end that the format requires is missing. Pillow ignores that if LOAD_TRUNCATED_IMAGES is set."""
    if kind == "JPEG":
        return data.rfind(b"\xff\xd9") < data.rfind(b"\xff\xda")  # end of image after the last start of scan
    if kind == "PNG":
        return b"IEND" not in data[-4096:] and b"IEND" not in data
    if kind == "WEBP":
        return int.from_bytes(data[4:8], "little") + 8 > len(data)
    return False


def to_rgb(image):
    """uint8 RGB (H, W, 3) of a Pillow image, converted as described in the module's docstring. Raises Refused."""
    if image.mode.startswith("I"):  # 16 bits, or 32 bits of which Pillow's PNG and TIFF readers use 16
        values = np.asarray(image).astype(np.float64)
        grey = np.clip(np.rint(values / 257), 0, 255).astype(np.uint8)
        return np.stack([grey] * 3, axis=-1)
    if image.mode == "F":
        raise Refused("floating-point pixels have no defined range")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.array(image.convert("RGB"))


# ---- JPEG quality --------------------------------------------------------------------------------------------------------
@functools.cache
def standard_tables():
    """libjpeg's quantisation tables at every quality, int64 (100, 2, 64): [quality - 1, luminance or chrominance]."""
    found = []
    for quality in range(1, 101):
        stream = io.BytesIO()
        Image.new("RGB", (8, 8)).save(stream, "JPEG", quality=quality)
        tables = Image.open(stream).quantization
        found.append((tables[0], tables[1]))
    return np.array(found)


def estimate_quality(tables):
    """The quality (1 to 100) whose tables are nearest to those of a JPEG, by mean absolute difference; None without tables.

    `tables` is Pillow's `image.quantization`. Exact for libjpeg, approximate for other encoders (cameras, Photoshop).
    """
    if not tables:
        return None
    return _nearest(tuple(tuple(tables[key]) for key in sorted(tables)[:2]))


@functools.lru_cache(maxsize=4096)  # a data set has few different tables
def _nearest(tables):
    standard = standard_tables()[:, :len(tables)]
    distance = np.abs(standard - np.array(tables)).mean((1, 2))
    best = np.flatnonzero(distance == distance.min())
    return int(best[-1]) + 1  # the highest of qualities with equal tables
