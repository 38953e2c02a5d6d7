"""Rows of a benchmark that consists of published data sets, split so that no image's bytes occur in two splits."""

import os
from pathlib import Path

import numpy as np
import pandas as pd

from anl.data import REAL, crops, manifest
from anl.data.manifest import file_path, path_text
from anl.io import UserError, sha256_of

KEPT = ("path", "sha256", "label", "generator", "family", "dataset", "split", "source_real", "width", "height", "format",
        "jpeg_quality", "bytes")


def settings(benchmark):
    """The settings that determine `rows`: hashes of the manifests, and how they are split."""
    section = benchmark.model_dump(mode="json", include={"seen", "source", "val_share", "val_most"})
    tests = {name: _hash(path) for name, path in benchmark.other_sets.items()}
    return section | {"index": _hash(benchmark.manifest), "tests": tests}


def rows(benchmark, seed):
    """The rows of a benchmark of kind `manifest`.

    Parameters
    ----------
    benchmark : BenchmarkConfig
    seed : int
        With the images' bytes, determines which images are used for validation.

    Returns
    -------
    DataFrame
        The columns KEPT of a manifest, image_id, group and pair. Training and validation images come from
        `benchmark.manifest`: real images (of `source`, if that is set) and images of the seen generators. Test images
        also come from `benchmark.test_sets`; their dataset is the name of the set there. Paths are relative to the root
        of `benchmark.manifest`. No bytes of a test image occur in another split.

    Raises
    ------
    UserError
        If a manifest is missing or damaged, or a class has no training or no validation images.
    """
    main, root = _read(benchmark.manifest), manifest.root_of(benchmark.manifest)
    same = [name for name, path in benchmark.test_sets.items() if Path(path) == Path(benchmark.manifest)]
    main["dataset"] = same[0] if same else main["dataset"]
    learned = main["generator"].isin([REAL, *benchmark.seen])
    if benchmark.source:
        learned &= main["source_real"].isin([benchmark.source, ""])
    parts = [main[(main["split"] == "test") | learned]]
    for name, path in benchmark.other_sets.items():
        more, place = _read(path), manifest.root_of(path)
        more = more[more["split"].isin(["test", "unsplit"])] if (more["split"] == "test").any() else more
        relative = [path_text(os.path.relpath(place / file_path(text), root)) for text in more["path"]]
        parts.append(more.assign(dataset=name, split="test", path=relative))
    found = pd.concat(parts, ignore_index=True)
    found["image_id"] = found["generator"] + "/" + found["dataset"] + "/" + found["path"]
    found = hold_out(found.assign(group=found["sha256"], pair=""), benchmark.val_share, benchmark.val_most, seed)
    source = f" and source {benchmark.source}" if benchmark.source else ""
    for name in (REAL, *benchmark.seen):
        lacking = {"train", "val"} - set(found.loc[found["generator"] == name, "split"])
        if lacking:
            raise UserError(f"{benchmark.manifest} has no {'training' if 'train' in lacking else 'validation'} images of "
                            f"'{name}'{source}; change benchmark.seen, or val_share")
    return found


def hold_out(rows, share, most, seed):
    """Remove duplicates from the training images and, if there is no validation split, take one from them.

    Parameters
    ----------
    rows : DataFrame
        Rows outside the test split are dropped if their bytes occur in the test split or in an earlier row. The split
        `unsplit` becomes `train`.
    share, most : float, int
        Share of each generator's training images that is used for validation, and largest number; 0 is no limit.
    seed : int
        With the images' bytes, determines which ones are used for validation.
    """
    rows = rows.assign(split=rows["split"].astype(str).replace("unsplit", "train"), draw=crops.draw_order(rows, seed))
    rows = rows.sort_values(["draw", "path"], kind="stable")
    tested = set(rows.loc[rows["split"] == "test", "sha256"])
    learned = rows["split"] != "test"
    rows = rows[~learned | ~(rows["sha256"].isin(tested) | (rows["sha256"].duplicated() & learned))]
    if not (rows["split"] == "val").any():
        train = rows[rows["split"] == "train"].groupby("generator")["sha256"]
        size = train.transform("size")
        limit = np.maximum(1, np.rint(share * size)) if share else 0 * size
        limit = np.minimum(limit, most) if most else limit
        held = size.index[train.cumcount() < limit]
        rows = rows.assign(split=rows["split"].mask(rows.index.isin(held), "val"))
    return rows.drop(columns="draw").reset_index(drop=True)


def _hash(path):
    manifest.metadata(path)  # raises UserError, with the fix, if the manifest is missing
    return sha256_of(path)


def _read(path):
    table = manifest.read(path, list(KEPT))
    table = table.astype({name: object for name in table if isinstance(table[name].dtype, pd.CategoricalDtype)})
    return table.assign(source_real=table["source_real"].fillna(""), jpeg_quality=table["jpeg_quality"].astype("Int16"))
