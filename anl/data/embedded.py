"""The embedded benchmark: patches of photographs and, for each generator, their regenerations, in one manifest.

Both classes take one path: decode, downsample, crop at twice the size, (regenerate), round to 8 bits, halve, round,
encode. Images lie in one Parquet file per generator, because git and DVC are slow with thousands of small files; the
manifest names them FILE.parquet#ROW, which `anl.data.images` reads like any file.
"""

import hashlib
import io
import os
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow
from PIL import Image
from pyarrow import parquet as pq
from tqdm import tqdm

from anl import seeds
from anl.data import crops
from anl.data.decode import decode
from anl.data.manifest import REAL
from anl.io import UserError, atomic_file, atomic_folder, identity, reason

NAME = "embedded"
CHUNK = 16  # patches regenerated at once, and what an interrupted run keeps
COLUMNS = ("image_id", "path", "sha256", "label", "generator", "family", "dataset", "split", "source_real", "width", "height",
           "format", "jpeg_quality", "bytes", "group", "pair")
FORMATS = {"png": "PNG", "jpeg": "JPEG", "webp": "WEBP"}


def build(photos, data, benchmark, families, regenerate, seed, *, cache=".cache/anl/embedded", key=None, splits=None):
    """Write the benchmark's folder: manifest.parquet and images-<generator>.parquet.

    Parameters
    ----------
    photos : sequence
        Photographs with `id`, `cluster` and `file` (below `data.folder`).
    data : DataConfig
        folder, split, least_factor and source_side.
    benchmark : BenchmarkConfig
        folder, size, seen, patches, least_std, shrink, encode and encode_quality.
    families : mapping of str to FamilyConfig
        For each generator `model`, `paired` and `val_patches`.
    regenerate : callable
        `regenerate(name, pixels, start)` -> uint8 (n, H, W, 3), for uint8 (n, H, W, 3) patches at twice the benchmark's
        size; `start` is the first one's position among the generator's patches and names its random stream.
    seed : int
        Base seed of split, patches and encodings.
    cache : path-like
        Where regenerated chunks are kept until the folder is written, so that an interrupted run continues.
    key : JSON-able
        What regenerations depend on besides patches and families, such as hashes of weights: chunks made under another
        key are not used.
    splits : mapping of str to str, optional
        Photo id -> split, for photographs that come with a split; by default drawn by `data.split`.

    Returns
    -------
    DataFrame
        The manifest, with COLUMNS.

    Raises
    ------
    UserError
        If a photograph cannot be read or is too small, or `regenerate` returns another shape or type.
    """
    patches, pixels = cut_patches(photos, data, benchmark, seed, splits)
    parts = Path(cache)
    tables = {REAL: _table(REAL, REAL, patches, pixels, benchmark, seed)}
    for name, family in families.items():
        chosen = _patches_of(name, family, patches, benchmark.seen)
        mine, own = [patches[i] for i in chosen], [pixels[i] for i in chosen]
        about = {"family": crops.as_mapping(family), "name": name, "seed": seed, "key": key}
        made = _regenerated(name, mine, own, regenerate, parts, about)
        tables[name] = _table(name, family.model, mine, made, benchmark, seed, family.paired)
    manifest = write(tables, benchmark.folder)
    for part in parts.glob("*.npy"):
        part.unlink()
    return manifest


def cut_patches(photos, data, benchmark, seed, splits=None):
    """All real patches and their pixels at twice the benchmark's size: (list of Patch, list of uint8 (H, W, 3))."""
    splits = splits or crops.split_photos(photos, data.split, seed)
    size, counts = 2 * benchmark.size, crops.as_mapping(benchmark.patches)
    patches, pixels = [], []
    for photo in tqdm(photos, desc="photographs", mininterval=5, file=sys.stderr, disable=None):
        if benchmark.shrink:  # in place of data.least_factor, which would leave too few pixels of small photographs
            factor = seeds.generator(seed, "shrink", photo.id).uniform(benchmark.shrink[0], benchmark.shrink[-1])
            source = crops.shrink(decode(Path(data.folder) / photo.file), factor, size)
        else:
            source = crops.load_source(Path(data.folder) / photo.file, data.least_factor, data.source_side)
        split = splits[photo.id]
        for patch in crops.choose_patches(source, photo.id, photo.cluster, split, size=size, count=counts[split],
                                          least_std=benchmark.least_std, seed=seed):
            patches.append(patch)
            pixels.append(source[patch.top:patch.top + size, patch.left:patch.left + size].copy())
    return patches, pixels


def _patches_of(name, family, patches, seen):
    """Positions of the patches that a generator regenerates: training ones if it is seen, and up to `val_patches` of each
    photograph for validation, spread over it."""
    found = {}
    for index, patch in enumerate(patches):
        if patch.split != "train" or name in seen:
            found.setdefault((patch.split, patch.photo), []).append(index)
    chosen = []
    for (split, _), places in found.items():
        if split == "val" and family.val_patches:
            count = min(family.val_patches, len(places))
            places = [places[int(place)] for place in np.linspace(0, len(places) - 1, count).round()]
        chosen += places
    return chosen


def _regenerated(name, patches, pixels, regenerate, parts, about):
    """The regenerated patches, a list of uint8 (H, W, 3); chunks are kept below `parts` and read from there."""
    made = []
    for start in tqdm(range(0, len(pixels), CHUNK), desc=name, mininterval=5, file=sys.stderr, disable=None):
        original = np.stack(pixels[start:start + CHUNK])
        digest = hashlib.sha256(original.tobytes()).hexdigest()
        part = parts / f"{name}-{start}-{identity(about | {'start': start, 'pixels': digest})}.npy"
        try:
            chunk = np.load(part)
        except (OSError, ValueError, EOFError):
            chunk = np.asarray(regenerate(name, original, start))
            if chunk.dtype != np.uint8 or chunk.shape != original.shape:
                raise UserError(f"generator '{name}' returned {chunk.dtype} {chunk.shape} for patches of uint8 "
                                f"{original.shape}; check the family's model") from None
            with atomic_file(part) as temporary:
                np.save(temporary, chunk)
        made.extend(chunk)
    return made


def _table(generator, family, patches, pixels, benchmark, seed, paired=True):
    """Manifest rows of one generator, with the encoded images in the column `image`."""
    rows = []
    for patch, patch_pixels in zip(patches, pixels, strict=True):
        form, quality = draw_encoding(patch.id, benchmark, seed)
        small = crops.halve(patch_pixels)
        data = encode(small, form, quality)
        rows.append({"image_id": f"{generator}/{patch.id}", "path": "", "sha256": hashlib.sha256(data).hexdigest(),
                     "label": int(generator != REAL), "generator": generator, "family": family, "dataset": NAME,
                     "split": patch.split, "source_real": NAME, "width": small.shape[1], "height": small.shape[0],
                     "format": FORMATS[form], "jpeg_quality": quality if form == "jpeg" else None, "bytes": len(data),
                     "group": patch.group, "pair": patch.id if paired else "", "image": data})
    return pd.DataFrame(rows, columns=[*COLUMNS, "image"])


def draw_encoding(pair, benchmark, seed):
    """(format, quality) of both images of a pair, drawn from `benchmark.encode` and `encode_quality`; PNG has none."""
    rng = seeds.generator(seed, "encode", pair)
    form = benchmark.encode[int(rng.integers(len(benchmark.encode)))]
    low, high = benchmark.encode_quality
    quality = int(rng.integers(low, high + 1))
    return form, None if form == "png" else quality


def encode(pixels, form="png", quality=None):
    """uint8 (H, W, 3) -> bytes; one encoder setting for both classes (JPEG with 4:2:0 chroma)."""
    options = {"png": {"compress_level": 9}, "jpeg": {"quality": quality, "subsampling": "4:2:0"},
               "webp": {"quality": quality, "method": 4}}[form]
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format=FORMATS[form], **options)
    return stream.getvalue()


def write(tables, folder):
    """Write a benchmark's folder, which appears whole or not at all.

    Parameters
    ----------
    tables : mapping of str to DataFrame
        For each generator, rows with COLUMNS and encoded bytes in the column `image`; paths are assigned here.
    folder : path-like
        Replaced if it exists.

    Returns
    -------
    DataFrame
        The manifest.
    """
    with atomic_folder(folder, replace=True) as temporary:
        manifests = []
        for generator, table in tables.items():
            name = f"images-{generator}.parquet"
            table[["image_id", "image"]].to_parquet(temporary / name, index=False, compression=None)
            manifests.append(table[list(COLUMNS)].assign(path=[f"{name}#{row}" for row in range(len(table))]))
        manifest = pd.concat(manifests, ignore_index=True).astype({"jpeg_quality": "Int16"})
        manifest.to_parquet(temporary / "manifest.parquet", index=False)
    return manifest


def read_embedded(folder, *others):
    """The manifest of a benchmark's folder, written by this edition or the first one.

    Parameters
    ----------
    folder : path-like
        Holds manifest.parquet and the image files; what the paths in the result are relative to.
    *others : path-like
        Folders of further generators of the same patches, whose rows follow.

    Returns
    -------
    DataFrame
        COLUMNS.

    Raises
    ------
    UserError
        If a folder is incomplete or damaged, or `others` hold generators or patches that do not fit.
    """
    rows = [_read_folder(Path(folder))]
    for other in map(Path, others):
        more = _read_folder(other)
        more["path"] = (os.path.relpath(other, folder) + "/" + more["path"]).str.replace(os.sep, "/")
        known, reals = set(rows[0]["pair"]), rows[0]["generator"]
        lost = sorted(set(more["pair"]) - known - {""})
        twice = sorted(set(more["generator"]) & set(reals))
        if lost or twice:
            raise UserError(f"{other} does not belong to {folder}: " + (f"its patch {lost[0]} is not there" if lost else
                            f"both hold '{twice[0]}'") + "; get both folders from one run with `dvc pull`")
        rows.append(more)
    return pd.concat(rows, ignore_index=True)


def _read_folder(folder):
    fix = f"get it with `dvc pull {folder.name}`, or make it with `dvc repro {folder.name}`"
    path = folder / "manifest.parquet"
    if not path.is_file():
        raise UserError(f"{path} is missing; {fix}")
    try:
        rows = pd.read_parquet(path)
        rows = _from_first_edition(rows, folder) if "sample_id" in rows else rows
        lacking = [name for name in COLUMNS if name not in rows]
    except FileNotFoundError as problem:
        raise UserError(f"{problem.filename or problem} is missing; {fix}") from None
    except (OSError, KeyError, ValueError, pyarrow.ArrowException) as problem:
        raise UserError(f"{folder} cannot be read ({reason(problem)}); delete it and {fix}") from None
    if lacking:
        raise UserError(f"{path} lacks the column(s) {', '.join(lacking)}; delete {folder} and {fix}")
    for name in rows["path"].str.rpartition("#")[0].unique():
        if not (folder / name).is_file():
            raise UserError(f"{folder / name} is missing; {fix}")
    return rows[list(COLUMNS)].reset_index(drop=True)


def _from_first_edition(rows, folder):
    """Rows of a first-edition manifest (sample_id, photo, cluster; images by sample_id) with this edition's columns."""
    place = {}
    for generator in rows["generator"].unique():
        name = f"images-{generator}.parquet"
        samples = pq.read_table(folder / name, columns=["sample_id"])["sample_id"].to_pylist()
        place.update({sample: f"{name}#{row}" for row, sample in enumerate(samples)})
    paired = rows["paired"] if "paired" in rows else pd.Series(True, rows.index)
    patch = rows["sample_id"].str.split("/", n=1).str[1]
    quality = rows["jpeg_quality"] if "jpeg_quality" in rows else pd.Series(None, rows.index, dtype="Int16")
    return pd.DataFrame({
        "image_id": rows["sample_id"], "path": [place[sample] for sample in rows["sample_id"]], "sha256": rows["sha256"],
        "label": rows["label"], "generator": rows["generator"], "family": rows["generator"], "dataset": NAME,
        "split": rows["split"], "source_real": NAME, "width": rows["width"], "height": rows["height"],
        "format": rows["format"], "jpeg_quality": quality.astype("Int16"), "bytes": rows["bytes"], "group": rows["cluster"],
        "pair": patch.where(paired, "")})
