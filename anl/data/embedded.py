"""The folder of a benchmark: how patches of photographs become its images, and how the folder is written and read.

Real and generated images take the same path: decode, downsample, crop at twice the final size, (regenerate), round to
8 bits, halve, round, encode. With `benchmark.halve: false` crops have the final size and are not halved.

The folder has one manifest, and one Parquet file of images per generator, because git and DVC are slow with thousands of
small files. The manifest names an image FILE.parquet#ROW, a path that `anl.data.images` reads like any file.
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
from anl.data import REAL, crops
from anl.data.decode import decode
from anl.data.manifest import file_path
from anl.data.processing import FORMATS, encode
from anl.io import UserError, atomic_file, atomic_folder, identity, read_json, reason, write_json

NAME = "embedded"
CHUNK = 16  # images generated at once; an interrupted run keeps its complete chunks
COLUMNS = ("image_id", "path", "sha256", "label", "generator", "family", "dataset", "split", "source_real", "width", "height",
           "format", "jpeg_quality", "bytes", "group", "pair")
OWN = r"^images-(.+)\.parquet#\d+$"  # paths of images in the folder itself; the group is the part
PUBLISHED = "published"  # the part whose images are stored outside the folder, as they were published
MANIFEST, IDENTITIES = "manifest.parquet", "identities.json"  # identities: part -> hash of what it was made from


# ---- patches -------------------------------------------------------------------------------------------------------------
def cut_patches(photos, data, benchmark, seed, splits=None):
    """Cut the real patches of a benchmark from photographs.

    Parameters
    ----------
    photos : list
        Objects with `id`, `cluster` and `file`, a path below `data.folder` as `path_text` writes it.
    data, benchmark : DataConfig, BenchmarkConfig
    seed : int
    splits : dict of str to str, optional
        {id: split}; drawn by `data.split` if not given.

    Returns
    -------
    patches : list of Patch
    pixels : list of ndarray
        uint8 (H, W, 3) of each patch, before halving: the input of generators.

    Raises
    ------
    UserError
        If a photograph cannot be read or is too small.
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
    """Manifest rows of `pixels`, regenerated from the real rows `reals`, with the encoded images in the column `image`."""
    rows = reals.assign(label=1, generator=name, family=family.model, place=reals["pair"])
    return encoded_table(rows if family.paired else rows.assign(pair=""), pixels, benchmark, seed)


def encoded_table(rows, pixels, benchmark, seed):
    """Manifest rows of patches, halved if `benchmark.halve`, and encoded; the column `place` names each patch."""
    found, (low, high) = [], benchmark.encode_quality
    for place, patch in zip(rows["place"], pixels, strict=True):
        rng = seeds.generator(seed, "encode", place)  # both images of a pair get the same encoding
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
    """Index of the real rows that a generator regenerates: test; also validation if it is held out; all if it is seen."""
    splits = ["test", *(["val"] if name in (*seen, *held_out) else []), *(["train"] if name in seen else [])]
    return rows.index[rows["split"].isin(splits)]


def in_chunks(name, ids, pixels, make, cache, about):
    """A generator's images, a list of uint8 (H, W, 3), made in chunks that an interrupted run keeps.

    Parameters
    ----------
    name : str
        Name of the generator.
    ids : list of str
        Ids of the images, which also name their random streams.
    pixels : list of ndarray
        The real patches that they are made from, uint8 (H, W, 3).
    make : callable
        `make(name, ids, pixels)` -> uint8 (n, H, W, 3).
    cache : path-like
        Folder in which the chunks are kept.
    about : JSON-able
        What the images depend on besides ids and pixels. Chunks made with another value are not used.
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
    """Write a benchmark's folder, atomically; an existing one is replaced.

    Parameters
    ----------
    tables : mapping of str to DataFrame
        For each part (a generator's images of one data set) rows with COLUMNS. If there is a column `image` (encoded
        bytes), it is written to images-PART.parquet. Otherwise the paths are kept; if they are rows of
        images-PART.parquet, that file is copied from the existing folder.
    folder : path-like
    identities : mapping of str to str
        Hash of what each part was made from.

    Returns
    -------
    DataFrame
        The manifest.
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
    """({part: rows}, {part: identity}) of a benchmark's folder; both empty if it is missing or damaged."""
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
