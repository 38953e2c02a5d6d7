"""Which images of a public data set train, validate and test: no bytes twice, none of the test set in training."""

import hashlib

import numpy as np
import pandas as pd

from anl.data import manifest as manifests
from anl.data.manifest import REAL
from anl.errors import UserError

COLUMNS = ["path", "sha256", "label", "generator", "split", "width", "height", "format", "jpeg_quality", "bytes"]


def split(params):
    """(rows, counts) of the data set that a profile names in `published`.

    rows: a DataFrame of COLUMNS and `number`, the image's place in its split and class, in an order drawn by the seed and
    the SHA-256 alone. Validation is cut from the published training images; every split holds as many generated images
    as real ones. counts: a row a split and class: images published, left out since their bytes are in the test set too or
    came before, and used. Raises UserError on a manifest that is missing, lacks a class, or holds images of another size.
    """
    path, seen, size = params.published.manifest, params.benchmark.seen, params.benchmark.size
    table = manifests.read(path)[COLUMNS]
    for name in ("sha256", "generator", "split", "format"):
        table[name] = table[name].astype(str)
    table = table[table["generator"].isin([REAL, seen])]
    odd = table[(table["width"] != size) | (table["height"] != size)]
    if len(odd):
        raise UserError(f"{path}: {odd['path'].iloc[0]} has {odd['width'].iloc[0]} x {odd['height'].iloc[0]} pixels, and "
                        f"benchmark.size is {size}; index a set of that size, or change the profile")
    table["draw"] = [hashlib.sha256(f"{params.seed}/{digest}".encode()).hexdigest() for digest in table["sha256"]]
    table = table.sort_values(["draw", "path"], ignore_index=True)
    train, test = table[table["split"] != "test"], table[table["split"] == "test"]
    leaked = train["sha256"].isin(set(test["sha256"]))
    repeated = ~leaked & train["sha256"].duplicated()
    kept = train[~leaked & ~repeated]
    parts, counts = [], []
    for generator in (REAL, seen):
        mine, tested = kept[kept["generator"] == generator], test[test["generator"] == generator]
        if len(mine) <= params.published.val or not len(tested):
            raise UserError(f"{path} holds {len(mine)} different training images and {len(tested)} test images of "
                            f"'{generator}'; it needs more than published.val ({params.published.val}) and at least one")
        parts += [mine.head(params.published.val).assign(split="val"),
                  mine.iloc[params.published.val:].assign(split="train"), tested]
        here = train["generator"] == generator
        published = {"published": int(here.sum()), "in_test_too": int(leaked[here].sum()),
                     "repeated": int(repeated[here].sum())}
        counts += [{"split": "train and val", "generator": generator, **published},
                   {"split": "test", "generator": generator, "published": len(tested), "in_test_too": 0, "repeated": 0}]
    rows = pd.concat(parts, ignore_index=True).drop(columns="draw")
    rows["number"] = rows.groupby(["split", "generator"]).cumcount()
    pairs = rows.groupby(["split", "generator"]).size().unstack().min(axis=1)
    rows = rows[rows["number"] < rows["split"].map(pairs)].reset_index(drop=True)
    for row in counts:
        used = rows[(rows["generator"] == row["generator"]) & ((rows["split"] == "test") == (row["split"] == "test"))]
        row["used"] = len(used)
    return rows, pd.DataFrame(counts)


def training_reals(params):
    """The training images of class real, uint8 (H, W, 3) each: what prior and generators learn from."""
    from anl.data.decode import decode_bytes

    rows, _ = split(params)
    mine = rows[(rows["split"] == "train") & (rows["generator"] == REAL)]
    return [np.ascontiguousarray(decode_bytes(data)) for data in read_files(params, mine)]


def read_files(params, rows):
    """Yield the bytes of each row's file. Raises UserError on a file that is missing or no longer what was indexed."""
    root = manifests.root_of(params.published.manifest)
    for text, digest in zip(rows["path"], rows["sha256"]):
        path = root / manifests.file_path(text)
        try:
            data = path.read_bytes()
        except OSError as problem:
            raise UserError(f"{path} cannot be read ({problem.strerror}); fetch the data set again") from None
        if hashlib.sha256(data).hexdigest() != digest:
            raise UserError(f"{path} is not what was indexed; fetch the data set again, or index it anew")
        yield data
