"""A benchmark's folder: real images and, for each generator, theirs, in one manifest; and how patches become its images.

Both classes take one path: decode, downsample, crop at twice the size, (regenerate), round to 8 bits, halve, round,
encode. With `benchmark.halve: false` crops have the final size. Images lie in one Parquet file per generator, because git and DVC are slow with thousands of small files; the
manifest names them FILE.parquet#ROW, which `anl.data.images` reads like any file.
"""

import hashlib
import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow
from tqdm import tqdm

from anl import seeds
from anl.data import crops
from anl.data.decode import decode
from anl.data.manifest import REAL, file_path
from anl.data.processing import FORMATS, encode
from anl.io import UserError, atomic_file, atomic_folder, identity, read_json, reason, write_json

NAME = "embedded"
CHUNK = 16  # images made at once, and what an interrupted run keeps
COLUMNS = ("image_id", "path", "sha256", "label", "generator", "family", "dataset", "split", "source_real", "width", "height",
           "format", "jpeg_quality", "bytes", "group", "pair")
OWN = r"^images-(.+)\.parquet#\d+$"  # paths of images in the folder itself, by part
PUBLISHED = "published"  # the part whose images lie elsewhere, as they were published
MANIFEST, IDENTITIES = "manifest.parquet", "identities.json"  # identities: part of the benchmark -> what it was made with


# ---- patches -------------------------------------------------------------------------------------------------------------
def cut_patches(photos, data, benchmark, seed, splits=None):
    """All real patches and their pixels as generators get them: (list of Patch, list of uint8 (H, W, 3)).

    Photographs have `id`, `cluster` and `file` (below `data.folder`, as a manifest writes paths); `splits`, {id: split}, is
    drawn by `data.split` if not given. Raises UserError if a photograph cannot be read or is too small.
    """
    splits = splits or crops.split_photos(photos, data.split, seed)
    size, counts = benchmark.cut, dict(benchmark.patches)
    patches, pixels = [], []
    for photo in tqdm(photos, desc="photographs", mininterval=5, file=sys.stderr, disable=None):
        path = Path(data.folder) / file_path(photo.file)
        if benchmark.shrink:  # in place of data.least_factor, which would leave too few pixels of small photographs
            factor = seeds.generator(seed, "shrink", photo.id).uniform(benchmark.shrink[0], benchmark.shrink[-1])
            source = crops.shrink(decode(path), factor, size)
        else:
            source = crops.load_source(path, data.least_factor, data.source_side)
        split = splits[photo.id]
        for patch in crops.choose_patches(source, photo.id, photo.cluster, split, size=size, count=counts[split],
                                          least_std=benchmark.least_std, seed=seed):
            patches.append(patch)
            pixels.append(source[patch.top:patch.top + size, patch.left:patch.left + size].copy())
    return patches, pixels


def real_table(patches, pixels, benchmark, seed, dataset=NAME):
    """Manifest rows of real patches, with the encoded images in the column `image`."""
    rows = pd.DataFrame({"label": 0, "generator": REAL, "family": REAL, "dataset": dataset, "source_real": dataset,
                         "split": [patch.split for patch in patches], "group": [patch.group for patch in patches],
                         "pair": [patch.id for patch in patches]})
    return encoded_table(rows.assign(place=rows["pair"]), pixels, benchmark, seed)


def generated_table(name, family, reals, pixels, benchmark, seed):
    """Manifest rows of the regenerations of some reals (rows), with the encoded images in the column `image`."""
    rows = reals.assign(label=1, generator=name, family=family.model, place=reals["pair"])
    return encoded_table(rows if family.paired else rows.assign(pair=""), pixels, benchmark, seed)


def encoded_table(rows, pixels, benchmark, seed):
    """Rows of patches, halved if the benchmark says so, and encoded; `place` names the patch."""
    found, (low, high) = [], benchmark.encode_quality
    for place, patch in zip(rows["place"], pixels, strict=True):
        rng = seeds.generator(seed, "encode", place)  # both images of a pair have one encoding
        form = benchmark.encode[int(rng.integers(len(benchmark.encode)))]
        quality = int(rng.integers(low, high + 1))
        small = crops.halve(patch) if benchmark.halve else patch
        data = encode(small, form, quality)
        found.append({"sha256": hashlib.sha256(data).hexdigest(), "width": small.shape[1], "height": small.shape[0],
                      "format": FORMATS[form], "jpeg_quality": quality if form == "jpeg" else None, "bytes": len(data),
                      "image": data})
    found = pd.DataFrame(found, columns=["sha256", "width", "height", "format", "jpeg_quality", "bytes", "image"])
    table = rows.drop(columns=[name for name in found if name in rows]).reset_index(drop=True).join(found)
    return table.assign(path="", image_id=table["generator"] + "/" + table["place"])[[*COLUMNS, "image"]]


def regenerated_patches(rows, name, seen, held_out=()):
    """Index of the reals (rows) that a generator regenerates: test patches, if it is held out those of validation, if seen all."""
    splits = ["test", *(["val"] if name in (*seen, *held_out) else []), *(["train"] if name in seen else [])]
    return rows.index[rows["split"].isin(splits)]


def in_chunks(name, ids, pixels, make, cache, about):
    """A generator's images, a list of uint8 (H, W, 3), made in chunks that an interrupted run keeps.

    Parameters
    ----------
    name : str
        Of the generator.
    ids : list of str
        Name the images, and their random streams.
    pixels : list of ndarray
        uint8 (H, W, 3), what they are made from.
    make : callable
        `make(name, ids, pixels)` -> uint8 (n, H, W, 3).
    cache : path-like
        The folder of the chunks.
    about : JSON-able
        What the images depend on besides ids and pixels: chunks kept for something else are not used.
    """
    made = []
    for start in tqdm(range(0, len(ids), CHUNK), desc=name, mininterval=5, file=sys.stderr, disable=None):
        chosen, original = ids[start:start + CHUNK], np.stack(pixels[start:start + CHUNK])
        key = identity([about, chosen, hashlib.sha256(original.tobytes()).hexdigest()])
        part = Path(cache) / f"{name}-{start}-{key}.npy"
        try:
            chunk = np.load(part)
        except (OSError, ValueError, EOFError):
            chunk = make(name, chosen, original)
            with atomic_file(part) as temporary:
                np.save(temporary, chunk)
        made.extend(chunk)
    return made


# ---- the folder ----------------------------------------------------------------------------------------------------------
def write(tables, folder, identities):
    """Write a benchmark's folder, which appears whole or not at all and replaces an old one; returns the manifest.

    Parameters
    ----------
    tables : mapping of str to DataFrame
        For each part (a generator, of a data set) rows with COLUMNS. With a column `image`, encoded bytes, they are
        written to images-PART.parquet; without it the paths stay, and a file of that name is taken from the old folder.
    folder : path-like
    identities : mapping of str to str
        What each part was made with.
    """
    with atomic_folder(folder, replace=True) as temporary:
        manifests = []
        for part, table in tables.items():
            name, rows = f"images-{part}.parquet", table[list(COLUMNS)]
            if "image" in table:
                table[["image_id", "image"]].to_parquet(temporary / name, index=False, compression=None)
                rows = rows.assign(path=[f"{name}#{row}" for row in range(len(rows))])
            elif rows["path"].str.startswith(f"{name}#").any():
                shutil.copyfile(Path(folder) / name, temporary / name)
            manifests.append(rows.astype({"jpeg_quality": "Int16"}))
        manifest = pd.concat(manifests, ignore_index=True)
        manifest.to_parquet(temporary / MANIFEST, index=False)
        write_json(temporary / IDENTITIES, dict(identities))
    return manifest


def read_embedded(folder):
    """The manifest of a benchmark's folder, a DataFrame with COLUMNS and paths relative to the folder.

    Raises UserError if the folder is incomplete or damaged.
    """
    folder = Path(folder)
    fix = "get it with `dvc pull benchmark`, or make it with `anl make benchmark`"
    try:
        rows = pd.read_parquet(folder / MANIFEST, columns=list(COLUMNS))
    except FileNotFoundError:
        raise UserError(f"{folder / MANIFEST} is missing; {fix}") from None
    except (OSError, KeyError, ValueError, pyarrow.ArrowException) as problem:
        raise UserError(f"{folder / MANIFEST} cannot be read ({reason(problem)}); delete {folder} and {fix}") from None
    for name in rows["path"].str.extract(OWN)[0].dropna().map("images-{}.parquet".format).unique():
        if not (folder / name).is_file():
            raise UserError(f"{folder / name} is missing; {fix}")
    return rows


def read_parts(folder):
    """({part: rows}, {part: identity}) of a benchmark's folder; empty if nothing usable is there."""
    try:
        rows, identities = read_embedded(folder), read_json(Path(folder) / IDENTITIES)
    except UserError:
        return {}, {}
    name = rows["path"].str.extract(OWN)[0]
    parts = dict(list(rows.groupby(name.fillna(PUBLISHED), sort=False)))
    return parts, {part: identities.get(part) for part in parts} if isinstance(identities, dict) else {}


def with_images(rows, folder):
    """Rows of one part with the column `image`, the bytes of its file."""
    if rows.empty:
        return rows.assign(image=[])
    file = rows["path"].iloc[0].rpartition("#")[0]
    images = pd.read_parquet(Path(folder) / file, columns=["image"])["image"]
    return rows.assign(image=images.iloc[rows["path"].str.rpartition("#")[2].astype(int)].to_numpy())
