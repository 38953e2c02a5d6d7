"""The images of published data sets, as a benchmark's rows: which train, validate and test, and no bytes in two splits."""

import os
from pathlib import Path

import numpy as np
import pandas as pd

from anl.data import crops, manifest
from anl.data.manifest import REAL, file_path, path_text
from anl.io import UserError, sha256_of

KEPT = ("path", "sha256", "label", "generator", "family", "dataset", "split", "source_real", "width", "height", "format",
        "jpeg_quality", "bytes")


def settings(benchmark):
    """What decides `rows`: hashes of the indices, and how they are split."""
    section = benchmark.model_dump(mode="json", include={"seen", "source", "val_share", "val_most"})
    tests = {name: _hash(path) for name, path in benchmark.other_sets.items()}
    return section | {"index": _hash(benchmark.manifest), "tests": tests}


def rows(benchmark, seed):
    """The rows of a benchmark of kind `manifest`.

    Parameters
    ----------
    benchmark : BenchmarkConfig
    seed : int
        Which images validate follows from the seed and their bytes.

    Returns
    -------
    DataFrame
        Columns of an index, image_id, group and pair. Training and validation images are reals (of `source`, if that is set)
        and the seen generators', from `manifest`; test images also those of the `test_sets`, whose dataset is their name
        there. Paths are relative to the folder of `manifest`'s images. No bytes of a test image are in another split.

    Raises
    ------
    UserError
        If an index is missing or damaged, or a class is left without training or validation images.
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
    """Give a published set without a validation split one, cut from its training images.

    Parameters
    ----------
    rows : DataFrame
        Training rows whose bytes occur in the test split, or earlier in the training split, are dropped.
    share, most : float, int
        Share of each generator's training images that validate, and how many at most; `most` 0 is no limit.
    seed : int
        Which ones follows from the seed and their bytes.
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
    manifest.metadata(path)  # a missing index is named, with how to make it
    return sha256_of(path)


def _read(path):
    table = manifest.read(path, list(KEPT))
    table = table.astype({name: object for name in table if isinstance(table[name].dtype, pd.CategoricalDtype)})
    return table.assign(source_real=table["source_real"].fillna(""), jpeg_quality=table["jpeg_quality"].astype("Int16"))
