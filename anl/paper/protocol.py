"""Which images of the published sets train, validate and test a detector: rows of manifests, no pixels."""

import hashlib
import os
import shutil

import numpy as np
import pandas as pd

from anl.data import indexing, manifest
from anl.data.manifest import REAL
from anl.errors import UserError

COLUMNS = ["path", "sha256", "label", "generator", "split", "source_real", "format", "jpeg_quality"]


def index(settings, name, say=print):
    """Write the manifest of one set, every image decoded once to find damage; returns its path."""
    if not settings.root(name).is_dir():
        raise UserError(f"{settings.root(name)} is missing; get the data set with `anl fetch {name}`, or say where it "
                        f"is with `anl fetch {name} --from FOLDER`")
    out = settings.manifest(name)
    root = settings.root(name) if settings.limit is None else _sampled(settings, name)
    indexing.index(root, out, settings.sets[name].layout, name, say=say)
    return out


def _sampled(settings, name):
    """A tree of links to the first `limit` files of every folder, so that a handful of images is indexed and not the set."""
    root, sampled = settings.root(name), settings.manifest(name).with_suffix("")
    shutil.rmtree(sampled, ignore_errors=True)
    for folder, _, files in os.walk(root):
        for file in sorted(files)[:settings.limit]:
            link = sampled / os.path.relpath(folder, root) / file
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(os.path.abspath(os.path.join(folder, file)))
    return sampled


def rows_of(settings, name, split=None):
    """A DataFrame of COLUMNS, `sample_id`, `file` (absolute path) and `number` (place among the test images, or among the others:
    anl.paper.store), sorted by a draw of the seed and the images' own bytes, without bytes that came before in their split and
    source; at most settings.limit rows of each split, generator, source and label."""
    path = settings.manifest(name)
    table = manifest.read(path, COLUMNS, **({"split": split} if split else {}))
    for column in ("generator", "split", "source_real", "format"):
        table[column] = table[column].astype(str)
    table["draw"] = [hashlib.sha256(f"{settings.seed}/{digest}".encode()).hexdigest() for digest in table["sha256"]]
    table = table.sort_values(["draw", "path"]).drop_duplicates(["sha256", "split", "source_real"])
    if settings.limit is not None:
        table = table[table.groupby(["split", "generator", "source_real", "label"]).cumcount() < settings.limit]
    table["sample_id"] = name + "/" + table["path"]
    root = manifest.root_of(path)
    table["file"] = [os.path.join(root, manifest.file_path(text)) for text in table["path"]]
    table["number"] = table.groupby(table["split"] == "test").cumcount()
    return table.reset_index(drop=True)


def training_rows(settings, name):
    """(train, val) rows of the protocol `name`, each with as many real as generated images, reals first, pair by pair.

    Learned from are the images of its generators in the training split, with the photographs published for them. Bytes that
    are in the test split of any tested set that is indexed are left out. Validation is the set's own split, or else a share of the training
    images. Raises UserError where a class is missing.
    """
    protocol = settings.protocols[name]
    table = rows_of(settings, protocol.train)
    table = table[table["split"] != "test"]
    if protocol.source:
        table = table[table["source_real"] == protocol.source]
    fake = table["generator"].isin(protocol.generators)
    real = (table["label"] == 0) & table["source_real"].isin(set(table.loc[fake, "source_real"]))
    table = table[fake | real]
    tested = set().union(*(manifest.read(settings.manifest(other), ["sha256"], split="test")["sha256"]
                           for other in settings.tested if settings.manifest(other).is_file()))
    table = table[~table["sha256"].isin(tested)]
    train, val = table[table["split"] != "val"], table[table["split"] == "val"]
    parts = {"train": [], "val": []}
    for label in (0, 1):
        mine, own = train[train["label"] == label], val[val["label"] == label]
        if not len(own):
            cut = min(settings.validation.most, max(1, round(settings.validation.share * len(mine))))
            own, mine = mine.head(cut), mine.iloc[cut:]
        parts["train"].append(mine)
        parts["val"].append(own.head(settings.validation.most))
    found = []
    for split, (reals, fakes) in parts.items():
        pairs = min(len(reals), len(fakes))
        if not pairs:
            what = "real" if not len(reals) else "generated"
            raise UserError(f"{settings.manifest(protocol.train)} holds no {what} image to {split} protocol {name} with "
                            f"(generators {', '.join(protocol.generators)}); mend protocols.{name}")
        found.append(pd.concat([reals.head(pairs), fakes.head(pairs)], ignore_index=True).assign(split=split))
    return tuple(found)


def test_rows(settings, name):
    """The rows of a set's test split. Raises UserError where a class is missing."""
    rows = rows_of(settings, name, "test")
    if rows["label"].nunique() < 2:
        raise UserError(f"{settings.manifest(name)} lacks real or generated test images; look at `anl index`'s table")
    return rows


def generators(rows):
    """{generator: rows of its images and of the photographs published for it}, in order of name."""
    found = {}
    for name in sorted(set(rows["generator"]) - {REAL}):
        fakes = rows[rows["generator"] == name]
        reals = rows[(rows["label"] == 0) & rows["source_real"].isin(set(fakes["source_real"]))]
        if not len(reals):  # published without photographs of their own: all of the set's
            reals = rows[rows["label"] == 0]
        found[name] = pd.concat([reals, fakes])
    return found


def pair_batch(pairs, size, seed, step):
    """Places of the real and the generated images of batch `step`, each (size,): both classes shuffled anew each epoch.

    A pure function of the seed and the step, so that a resumed training sees the batches it would have seen.
    """
    from anl import seeds

    wanted = np.arange(step * size, (step + 1) * size)
    drawn = []
    for label in (REAL, "fake"):
        epochs = {e: seeds.generator(seed, "paper", label, e).permutation(pairs) for e in np.unique(wanted // pairs).tolist()}
        drawn.append(np.array([epochs[place // pairs][place % pairs] for place in wanted.tolist()]))
    return tuple(drawn)
