"""The images of a manifest as arrays: decoded, cropped, never resized."""

import hashlib
import os

import numpy as np

from anl.data import parquet
from anl.data.decode import Refused, decode_bytes, read_bytes, refusal
from anl.data.manifest import file_path
from anl.io import UserError


def crop(pixels, size):
    """The central square of uint8 (H, W, 3), `size` pixels on a side; an image that is too small is padded by mirroring."""
    pixels = pad(pixels, size)
    top, left = ((length - size) // 2 for length in pixels.shape[:2])
    return np.ascontiguousarray(pixels[top:top + size, left:left + size])


def pad(pixels, size):
    """Mirror uint8 (H, W, 3) at its edges until both sides have at least `size` pixels; larger images stay."""
    lack = [max(0, size - length) for length in pixels.shape[:2]]
    if not any(lack):
        return pixels
    # `symmetric` repeats as often as needed, also for images of one pixel
    return np.pad(pixels, (*((missing // 2, missing - missing // 2) for missing in lack), (0, 0)), mode="symmetric")


def to_tensor(pixels, device=None):
    """uint8 (..., H, W, 3), array or tensor -> float (..., 3, H, W) in [-1, 1] on `device`, moved there as uint8."""
    import torch  # imported here, because reading images does not need it

    if not isinstance(pixels, torch.Tensor):
        array = np.ascontiguousarray(pixels)
        pixels = torch.from_numpy(array if array.flags.writeable else array.copy())
    return pixels.to(device, non_blocking=True).movedim(-1, -3).float().div(127.5).sub(1)


def to_pixels(tensor):
    """float (..., 3, H, W) in [-1, 1] -> uint8 (..., H, W, 3), clipped and rounded."""
    levels = tensor.detach().float().clamp(-1, 1).add(1).mul(127.5).round()
    return levels.byte().movedim(-3, -1).contiguous().cpu().numpy()


def load_pixels(rows, root, size=None):
    """Decode the images of manifest rows into one array.

    Parameters
    ----------
    rows : DataFrame
        Columns path and sha256.
    root : path-like
        The folder that paths are relative to.
    size : int or None
        Side of the central crop in pixels; None if all images already have the same size.

    Returns
    -------
    ndarray
        uint8 (N, H, W, 3), in the order of the rows.

    Raises
    ------
    UserError
        If an image is missing or damaged, if its SHA-256 is not the manifest's, or if sizes differ and `size` is None.
    """
    paths, digests, out = rows["path"].astype(str).tolist(), rows["sha256"].tolist(), None
    for index in sorted(range(len(paths)), key=lambda index: _read_order(paths[index])):
        pixels = _decoded(os.path.join(root, file_path(paths[index])), digests[index])
        pixels = pixels if size is None else crop(pixels, size)
        if out is None:
            out = np.empty((len(paths), *pixels.shape), np.uint8)
        if pixels.shape != out.shape[1:]:
            raise UserError(f"'{paths[index]}' has {pixels.shape[1]} x {pixels.shape[0]} pixels, and others have "
                            f"{out.shape[2]} x {out.shape[1]}; state a crop size")
        out[index] = pixels
    return np.empty((0, size or 0, size or 0, 3), np.uint8) if out is None else out


def _read_order(path):
    """Sort key that reads the rows of a Parquet file in sequence, because only its last row group is cached."""
    found = parquet.PLACE.fullmatch(path)
    return (found["file"], int(found["row"])) if found else (path, 0)


def _decoded(path, sha256):
    try:
        data = read_bytes(path)
        if hashlib.sha256(data).hexdigest() != sha256:
            raise Refused("not the file that the manifest describes (its SHA-256 differs)")
        return decode_bytes(data)
    except Refused as problem:
        raise refusal(path, problem) from None
