"""From image files to arrays: a bounded decoder, crops without resizing, and a Dataset over a manifest.

What is read: JPEG (the first image of a multi-picture JPEG), PNG, WebP, AVIF, BMP, TIFF, GIF and PPM, recognised by
content. EXIF rotation is applied; palette, grey and CMYK become RGB; 16 bits are scaled to 8; transparent pixels are
laid over white; colour profiles are ignored.

What is refused, with a reason: empty files, other formats, truncated or damaged images, animations and several pages,
images above the limits of pixels or bytes, floating-point pixels.
"""

import contextlib
import functools
import hashlib
import io
import os
import stat
import warnings
from collections import OrderedDict
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow
import torch
from PIL import Image, ImageOps
from pyarrow import parquet as pq
from torch.utils.data import DataLoader, Dataset

from anl.data import parquet, processing
from anl.data.manifest import file_path
from anl.io import UserError, printable, reason

FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "BMP", "TIFF", "GIF", "PPM")
MAX_PIXELS = 89_478_485  # where Pillow starts to warn of a decompression bomb; here it is an error
MAX_BYTES = 256 * 2**20
CACHE_BYTES = 256 * 2**20  # of encoded images from Parquet files that one reader keeps
HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
ORIENTATION = 0x0112  # EXIF tag; 5 to 8 exchange width and height
HASH_SIDE, HASH_LOW = 32, 8  # perceptual hash: side of the reduced image, frequencies kept along each axis
# Tables K.1 (luminance) and K.2 (chrominance) of ITU-T T.81, row by row: libjpeg scales them by its quality
LUMINANCE = (16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55, 14, 13, 16, 24, 40, 57, 69, 56, 14, 17, 22, 29,
             51, 87, 80, 62, 18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92, 49, 64, 78, 87, 103, 121,
             120, 101, 72, 92, 95, 98, 112, 100, 103, 99)
CHROMINANCE = (17, 18, 24, 47, 99, 99, 99, 99, 18, 21, 26, 66, 99, 99, 99, 99, 24, 26, 56, 99, 99, 99, 99, 99, 47, 66, 99, 99,
               99, 99, 99, 99) + (99,) * 32


class Refused(ValueError):
    """An image that cannot be read; the message is the reason, without the file's name."""


class Header(NamedTuple):
    """Width and height in pixels after EXIF rotation; jpeg_quality from 1 to 100, None for other formats."""

    width: int
    height: int
    format: str
    jpeg_quality: int | None


# ---- decoding ----------------------------------------------------------------------------------------------------------
def decode(path_or_bytes, max_pixels=MAX_PIXELS, max_bytes=MAX_BYTES):
    """Decode one image.

    Parameters
    ----------
    path_or_bytes : path-like or bytes
        A regular file, or its content.
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
        raise _refusal("the image" if is_bytes else os.fspath(path_or_bytes), problem) from None


def _refusal(name, problem):
    return UserError(f"'{printable(os.fsdecode(name))}' is refused: {problem}; replace or remove it")


def read_bytes(path, max_bytes=MAX_BYTES):
    """The bytes of a regular file within the limit. Raises Refused otherwise."""
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise Refused("not a regular file")
        if status.st_size > max_bytes:
            raise Refused(f"{status.st_size} bytes, over the limit of {max_bytes}")
        return Path(path).read_bytes()
    except OSError as problem:
        raise Refused(f"cannot be opened ({problem.strerror or problem})") from None


def _within(data, limit):
    if len(data) > limit:
        raise Refused(f"{len(data)} bytes, over the limit of {limit}")
    return data


def read_header(data, max_pixels=MAX_PIXELS):
    """Header of image bytes without decoding pixels; a missing end is found for JPEG, PNG and WebP. Raises Refused."""
    with _opened(data, max_pixels) as image:
        kind = _kind(image)
        width, height = image.size
        # the EXIF block of a PNG may follow its pixels, where Pillow reads it by decoding them
        exif = image.getexif() if kind != "PNG" or b"eXIf" in data or "exif" in image.info else {}
        if kind != "TIFF" and exif.get(ORIENTATION, 1) in (5, 6, 7, 8):  # Pillow gives a TIFF's size already rotated
            width, height = height, width
        quality = jpeg_quality(getattr(image, "quantization", None)) if kind == "JPEG" else None
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
                raise Refused(f"no image of a known format{_looks_like(data)}") from None
            with image:
                width, height = image.size
                if width * height > max_pixels:
                    raise Refused(f"{width} x {height} pixels, over the limit of {max_pixels} in all")
                if image.format != "MPO" and getattr(image, "is_animated", False):
                    raise Refused(f"animated or of several pages ({image.n_frames} frames)")
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
    """What a file of another kind may be, in brackets, if its first bytes tell; else nothing."""
    start = data[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if data[4:8] == b"ftyp":  # ISO base media: the brand separates images from videos
        return " (HEIC: save it as JPEG or PNG)" if data[8:12] in HEIF_BRANDS else " (a video)"
    if b"<svg" in start:
        return " (SVG, a drawing without pixels)"
    if start.startswith((b"<!doctype html", b"<html")):
        return " (a web page)"
    return " (PDF)" if start.startswith(b"%pdf-") else ""


def _truncated(data, kind):
    """Whether the end that the format requires is missing; checked here because Pillow can be told to pad."""
    if kind == "JPEG":
        return data.rfind(b"\xff\xd9") < data.rfind(b"\xff\xda")  # end of image after the last start of scan
    if kind == "PNG":
        return b"IEND" not in data[-4096:] and b"IEND" not in data
    if kind == "WEBP":
        return int.from_bytes(data[4:8], "little") + 8 > len(data)
    return False


def to_rgb(image):
    """uint8 RGB (H, W, 3) of a Pillow image, as the module's docstring says. Raises Refused."""
    if image.mode.startswith("I"):  # 16 bits, or 32 of which PNG and TIFF readers use 16
        values = np.asarray(image).astype(np.float64)
        grey = np.clip(np.rint(values / 257), 0, 255).astype(np.uint8)
        return np.stack([grey] * 3, axis=-1)
    if image.mode == "F":
        raise Refused("floating-point pixels have no defined range")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.array(image.convert("RGB"))


# ---- what a file tells about itself --------------------------------------------------------------------------------------
@functools.cache
def standard_tables():
    """libjpeg's quantisation tables at every quality, int64 (100, 2, 64): [quality - 1, luminance or chrominance]."""
    quality = np.arange(1, 101)[:, None, None]
    scale = np.where(quality < 50, 5000 // quality, 200 - 2 * quality)
    return np.clip((np.array([LUMINANCE, CHROMINANCE]) * scale + 50) // 100, 1, 255)


def jpeg_quality(tables):
    """Estimate the quality at which a JPEG was written.

    Parameters
    ----------
    tables : dict of int to sequence of int
        64 numbers each, natural order, as Pillow's `image.quantization`.

    Returns
    -------
    int or None
        The quality (1 to 100) with the nearest standard tables by mean absolute difference: exact for libjpeg, nearest
        for encoders with their own tables. None without tables.
    """
    return _nearest(tuple(tuple(tables[key]) for key in sorted(tables)[:2])) if tables else None


@functools.lru_cache(maxsize=4096)  # a data set has few different tables
def _nearest(tables):
    distance = np.abs(standard_tables()[:, :len(tables)] - np.array(tables)).mean((1, 2))
    return int(np.flatnonzero(distance == distance.min())[-1]) + 1  # of qualities that share a table, the highest


@functools.cache
def _cosines():
    """Rows of the orthonormal DCT-II, (HASH_LOW, HASH_SIDE)."""
    place = (np.arange(HASH_SIDE) + 0.5) * np.pi / HASH_SIDE
    return np.cos(np.arange(HASH_LOW)[:, None] * place) * np.sqrt(2 / HASH_SIDE)


def perceptual_hash(pixels):
    """A 64-bit hash (int) that compression and resizing change in few bits.

    Parameters
    ----------
    pixels : ndarray
        uint8 (H, W, 3).

    References
    ----------
    Zauner. "Implementation and benchmarking of perceptual image hash functions." 2010: signs, relative to their median,
    of the 8 x 8 lowest DCT frequencies of a 32 x 32 grey copy.
    """
    grey = Image.fromarray(pixels).convert("L").resize((HASH_SIDE, HASH_SIDE), Image.Resampling.BOX)
    low = (_cosines() @ np.asarray(grey, np.float64) @ _cosines().T).ravel()
    return int.from_bytes(np.packbits(low > np.median(low[1:])).tobytes(), "big")


# ---- arrays and tensors ------------------------------------------------------------------------------------------------
def crop(pixels, size, how="center"):
    """Cut a square, never resizing; an image that is too small is padded by mirroring.

    Parameters
    ----------
    pixels : ndarray
        uint8 (H, W, 3).
    size : int
        Pixels on a side.
    how : "center" or (int, int)
        The centre, or the corner (top, left) in pixels of the padded image.

    Returns
    -------
    ndarray
        uint8 (size, size, 3), contiguous.

    Raises
    ------
    ValueError
        If the corner lies outside.
    """
    pixels = pad(pixels, size)
    room = [length - size for length in pixels.shape[:2]]
    top, left = [space // 2 for space in room] if isinstance(how, str) and how == "center" else how
    if not (0 <= top <= room[0] and 0 <= left <= room[1]):
        raise ValueError(f"a crop of {size} pixels at ({top}, {left}) leaves the image of {pixels.shape[1]} x {pixels.shape[0]}")
    return np.ascontiguousarray(pixels[top:top + size, left:left + size])


def pad(pixels, size):
    """Mirror uint8 (H, W, 3) at its edges until both sides have at least `size` pixels; larger images stay."""
    lack = [max(0, size - length) for length in pixels.shape[:2]]
    if not any(lack):
        return pixels
    # `symmetric` repeats as often as needed, also for images of one pixel
    return np.pad(pixels, (*((missing // 2, missing - missing // 2) for missing in lack), (0, 0)), mode="symmetric")


def to_tensor(pixels):
    """uint8 (..., H, W, 3) -> float (..., 3, H, W) in [-1, 1]."""
    array = np.ascontiguousarray(pixels)
    tensor = torch.from_numpy(array if array.flags.writeable else array.copy())
    return tensor.movedim(-1, -3).float().div(127.5).sub(1)


def to_pixels(tensor):
    """float (..., 3, H, W) in [-1, 1] -> uint8 (..., H, W, 3), clipped and rounded."""
    levels = tensor.detach().float().clamp(-1, 1).add(1).mul(127.5).round()
    return levels.to(torch.uint8).movedim(-3, -1).contiguous().cpu().numpy()


# ---- the images of a manifest ------------------------------------------------------------------------------------------
class ImageFiles:
    """Reads the files that a manifest names, from one folder: plain files and rows of Parquet files (`FILE.parquet#ROW`).

    Row groups of Parquet files are kept until they exceed `cache_bytes`.
    """

    def __init__(self, root, cache_bytes=CACHE_BYTES):
        self.root, self.cache_bytes, self._groups, self._layouts = Path(root), cache_bytes, OrderedDict(), {}

    def __getstate__(self):
        return {**self.__dict__, "_groups": OrderedDict()}  # a worker process fills its own cache

    def read(self, path, sha256=None):
        """The bytes of a manifest's `path`. Raises Refused if unreadable or, given `sha256`, altered."""
        full = self.root / file_path(path)
        found = parquet.PLACE.fullmatch(os.fspath(full))
        packed = found is not None and not full.exists()
        data = _within(self._row(found), MAX_BYTES) if packed else read_bytes(full)
        if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
            raise Refused("not the file that the manifest describes (its SHA-256 differs)")
        return data

    def _row(self, found):
        file, row, name = found["file"], int(found["row"]), found["column"]
        try:
            if file not in self._layouts:
                with pq.ParquetFile(file) as stream:
                    sizes = [stream.metadata.row_group(group).num_rows for group in range(stream.num_row_groups)]
                    self._layouts[file] = np.cumsum([0, *sizes]), parquet.image_column(stream.schema_arrow)
            starts, column = self._layouts[file]
            if row >= starts[-1]:
                raise Refused(f"{file} has {starts[-1]} rows only")
            group = int(np.searchsorted(starts, row, side="right")) - 1
            cell = self._group(file, group, name or column)[row - int(starts[group])].as_py()
        except FileNotFoundError:
            raise Refused("cannot be opened (No such file or directory)") from None
        except (OSError, KeyError, ValueError, pyarrow.ArrowException) as problem:
            if isinstance(problem, Refused):
                raise
            raise Refused(f"its Parquet file cannot be read ({reason(problem)})") from None
        data = cell.get("bytes") if isinstance(cell, dict) else cell
        if not isinstance(data, bytes):
            raise Refused("the row holds no image bytes")
        return data

    def _group(self, file, group, column):
        key = (file, group, column)
        if key in self._groups:
            self._groups.move_to_end(key)
            return self._groups[key]
        with pq.ParquetFile(file, pre_buffer=False) as stream:
            self._groups[key] = stream.read_row_group(group, columns=[column])[column]
        while len(self._groups) > 1 and sum(part.nbytes for part in self._groups.values()) > self.cache_bytes:
            self._groups.popitem(last=False)
        return self._groups[key]


def load_pixels(rows, root, size=None, how="center"):
    """Decode the images of manifest rows into one array.

    Parameters
    ----------
    rows : DataFrame
        Columns path and sha256.
    root : path-like
        The folder that paths are relative to.
    size : int or None
        Side of the crop; None for images that all have one size already.
    how : "center" or (int, int)
        See `crop`.

    Returns
    -------
    ndarray
        uint8 (N, H, W, 3), in the order of the rows.

    Raises
    ------
    UserError
        If an image is missing, damaged, or not the one that the manifest describes, or sizes differ without `size`.
    """
    files, paths, digests, out = ImageFiles(root), rows["path"].astype(str).tolist(), rows["sha256"].tolist(), None
    for index in sorted(range(len(paths)), key=lambda index: _read_order(paths[index])):
        pixels = _decoded(files, paths[index], digests[index])
        pixels = pixels if size is None else crop(pixels, size, how)
        if out is None:
            out = np.empty((len(paths), *pixels.shape), np.uint8)
        if pixels.shape != out.shape[1:]:
            raise UserError(f"'{paths[index]}' has {pixels.shape[1]} x {pixels.shape[0]} pixels, and others have "
                            f"{out.shape[2]} x {out.shape[1]}; state a crop size")
        out[index] = pixels
    return np.empty((0, size or 0, size or 0, 3), np.uint8) if out is None else out


def _read_order(path):
    """Sort key: files together, rows of a Parquet file in their order."""
    found = parquet.PLACE.fullmatch(path)
    return (found["file"], int(found["row"])) if found else (path, 0)


def _decoded(files, path, sha256):
    try:
        return decode_bytes(files.read(path, sha256))
    except Refused as problem:
        raise _refusal(files.root / file_path(path), problem) from None


class Draw(NamedTuple):
    """One image of a training batch: its row, where it is cropped (shares of the room, 0 to 1), and how it is augmented."""

    index: int
    place: tuple = (0.5, 0.5)
    flip: bool = False
    plan: tuple | None = None  # (kind, strength) of `processing.augmentation_plan`


class ImageDataset(Dataset):
    """The images of a manifest, decoded when they are needed (in worker processes of a DataLoader).

    Parameters
    ----------
    rows : DataFrame
        Manifest rows: path, sha256, label; image_id if a processing draws noise.
    root : path-like
        The folder that paths are relative to.
    size : int
        Side of the crop: the centre for an integer index; for a `Draw` its place.
    processing : str or sequence of str
        Names for `anl.data.processing.apply`, one for all or one for each row, applied after the crop.
    seed : int
        Of processings that draw.
    as_float : bool
        Whether images are float (3, H, W) in [-1, 1] instead of uint8 (H, W, 3).

    Notes
    -----
    `dataset[i]` is a dict: image (tensor), label (float32 scalar), index (int). An image that cannot be read raises
    UserError; `image_batches` passes it on from worker processes as one line.
    """

    def __init__(self, rows, root, size, *, processing="raw", seed=0, as_float=False):
        self.paths, self.digests = rows["path"].astype(str).tolist(), rows["sha256"].tolist()
        self.labels = torch.tensor(rows["label"].to_numpy(np.float32))
        self.image_ids = rows["image_id"].tolist() if "image_id" in rows else self.paths
        self.names = [processing] * len(rows) if isinstance(processing, str) else list(processing)
        if len(self.names) != len(rows):
            raise ValueError(f"{len(self.names)} names of processings for {len(rows)} rows")
        self.files, self.size, self.seed, self.as_float = ImageFiles(root), size, seed, as_float

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, item):
        draw = item if isinstance(item, Draw) else None
        index = int(item if draw is None else draw.index)
        pixels = pad(_decoded(self.files, self.paths[index], self.digests[index]), self.size)
        if draw is None:
            pixels = crop(pixels, self.size)
        else:
            pixels = crop(pixels, self.size, [round(share * (side - self.size)) for share, side in zip(draw.place, pixels.shape)])
            pixels = np.ascontiguousarray(pixels[:, ::-1]) if draw.flip else pixels
            pixels = pixels if draw.plan is None else processing.apply_plan([draw.plan], pixels[None])[0]
        pixels = processing.apply(self.names[index], pixels, self.seed, self.image_ids[index])
        image = to_tensor(pixels) if self.as_float else torch.from_numpy(np.array(pixels))
        return {"image": image, "label": self.labels[index], "index": index}


def image_batches(dataset, batches, workers=0, pin_memory=False):
    """Yield batches of an ImageDataset in order, decoded ahead by worker processes.

    Parameters
    ----------
    dataset : ImageDataset
        What items come from.
    batches : iterable of list
        Lists of indices or `Draw`, one for each batch. A training that resumes gives the remaining ones.
    workers : int
        Processes; 0 decodes in this one. Batches do not depend on it.

    Yields
    ------
    dict
        image, label and index, stacked.

    Raises
    ------
    UserError
        Of the first image that cannot be read.
    """
    loader = DataLoader(_Caught(dataset), batch_sampler=batches, num_workers=workers, pin_memory=pin_memory,
                        collate_fn=_collate)
    for batch in loader:
        if isinstance(batch, UserError):
            raise batch
        yield batch


class _Caught(Dataset):
    """Returns a UserError as an item: raised in a worker process, its message would become a traceback."""

    def __init__(self, dataset):
        self.dataset = dataset

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, item):
        try:
            return self.dataset[item]
        except UserError as problem:
            return problem


def _collate(items):
    problem = next((item for item in items if isinstance(item, UserError)), None)
    return problem or torch.utils.data.default_collate(items)
