"""Index a folder of images: write its manifest, and the reason for every file left out.

Memory is constant, and an interrupted run continues after the last complete part. A part has some thousand images; its
file is named by a hash of everything that its content depends on.
"""

import csv
import hashlib
import itertools
import os
import shutil
import sys
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from anl.data import REAL, layouts, manifest, parquet
from anl.data.decode import SUFFIXES, Refused, decode_bytes, read_bytes, read_header
from anl.data.duplicates import perceptual_hash
from anl.data.generator_names import canonical, family
from anl.data.layouts import Place
from anl.data.walk import survey, walk
from anl.io import UserError, atomic_file, cores, identity, pick, read_json

PARQUET = "parquet"  # the layout of sets whose images are in Parquet files
RECORD = "source.json"  # written by anl.data.fetch; states the columns of a data set of the hub
PART = 2048  # image files in a part; a Parquet file is one part
BATCH = 64  # files passed to a worker at once
SMALL = 2000  # images up to which one process is enough
ALL = "all"
SKIPPED_COLUMNS = ("path", "files", "split", "generator", "label", "reason")
PART_SCHEMA = pa.schema([*manifest.SCHEMA, ("reason", pa.string())])


class Summary(NamedTuple):
    """Numbers of rows written and skipped, and a table (split, generator, label, images, skipped, expected)."""

    images: int
    skipped: int
    rows: list


class _Part(NamedTuple):
    """A piece of work: what its result depends on, its number of images, and batches of them for `describe`."""

    key: list
    size: int
    describe: object
    batches: list


def index(root, out, layout=None, dataset=None, expected=None, decode=True, workers=None, one_class=False, columns=None):
    """Write the manifest of a folder tree, and `<out>.skipped.csv` with the reason for every file left out.

    Parameters
    ----------
    root, out : path-like
        The data set's root, and the manifest.
    layout : str, optional
        Name of the layout; guessed by default. Layout `parquet`: images are FILE.parquet#ROW in the manifest.
    dataset : str, optional
        Name in the manifest; default: the layout's, or the folder's.
    expected : callable, optional
        Function from the data set's name to the expected counts, {(split, generator, label): images}; None in a key means
        all.
    decode : bool
        Decode every image, to find damage and compute its perceptual hash; otherwise read headers only.
    workers : int, optional
        Processes; by default one for each core (at most 16), or 1 for small sets.
    one_class : bool
        Accept a set without real, or without generated, images.
    columns : anl.data.parquet.Columns, optional
        Columns of Parquet files. Default: those in the folder's source.json, or found by name and type.

    Returns
    -------
    Summary

    Raises
    ------
    UserError
        If the root is not a folder, no layout fits, or a class is missing.
    """
    root, out = Path(root), Path(out)
    if not root.is_dir():
        raise UserError(f"{str(root)!r} is not a folder; give the data set's root")
    name, problems = os.path.basename(os.path.realpath(root)), []
    if layout == PARQUET or (layout is None and (columns is not None or _only_parquet(root))):
        layout, dataset, parts, total = _parquet_parts(root, out, name, dataset, columns, decode)
    else:
        layout, dataset, parts, total, problems = _file_parts(root, name, layout, dataset, one_class, decode)
    work = out.with_name(f".{out.name}.parts")
    made = _describe_parts(parts, work, total, workers or (min(cores(), 16) if total > SMALL else 1))
    both, labels = _in_both_classes(made)
    if len(labels) < 2 and not one_class and layout != "photographs":
        lacking = "generated" if labels == {0} else "real" if labels == {1} else "readable"
        raise UserError(f"{root} has no {lacking} images that can be read; see what was refused with --one-class, or choose "
                        "another label column of Parquet files with --columns")
    about = {"layout": layout, "dataset": dataset, "decoded": str(decode).lower()}
    counted, skipped = _assemble(made, both, root, out, problems, about)
    shutil.rmtree(work, ignore_errors=True)
    wanted = expected(dataset) if expected else {}
    return Summary(sum(counted.values()), sum(skipped.values()), _table(counted, skipped, wanted))


def _describe(images, dataset, decode):
    """Rows of a part, a dict for each (path, Place, function that reads the bytes), with `reason` if it is refused."""
    rows = []
    for path, where, read in images:
        try:
            data = read()
            about = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data), **read_header(data)._asdict(),
                     "phash": perceptual_hash(decode_bytes(data)) if decode else None}
        except Refused as problem:
            about = {"reason": str(problem)}
        rows.append({"path": manifest.path_text(path), "dataset": dataset, **where._asdict(), **about})
    return rows


# ---- folders of files ----------------------------------------------------------------------------------------------------
def _file_parts(root, name, layout, dataset, one_class, decode):
    """(layout, data set, iterator of parts, number of files, problems) of a tree of image files."""
    folders, problems = survey(root)
    if layout is None:
        chosen, why = layouts.guess(folders, name, partial(_first_size, root, folders))
    else:
        chosen, why = layouts.LAYOUTS[pick("layout", layout, [*layouts.LAYOUTS, PARQUET])], "chosen with --layout"
    print(f"layout {chosen.name}: {why}")
    dataset = dataset or (name if chosen.name in ("binary", "generic", "per_generator", "photographs") else chosen.name)
    places = {path: layouts.place(chosen, path, name) for path in folders}
    missing = _missing_classes(places, one_class, chosen) if chosen.name != "photographs" else []
    problems = [(manifest.path_text(path), 1, "", "", "", why) for path, why in problems]
    problems += [(manifest.path_text(path) + "/", folders[path].files, "", "", "",
                  where or f"outside the layout {chosen.name}")
                 for path, where in places.items() if not isinstance(where, Place)]
    problems += [(pair, 0, pair.split("/")[0], "", label, "class folder missing") for pair, label in missing]
    total = sum(folders[path].files for path, where in places.items() if isinstance(where, Place))
    return chosen.name, dataset, _chunks(root, places, dataset, decode), total, problems


def _chunks(root, places, dataset, decode):
    files = ((f"{entries.path}/{name}" if entries.path else name, places[entries.path]) for entries in walk(root)
             if isinstance(places.get(entries.path), Place) for name in entries.files)
    while chunk := list(itertools.islice(files, PART)):
        key = [dataset, decode, [[manifest.path_text(path), *_version(root / path), *where] for path, where in chunk]]
        batches = [chunk[start:start + BATCH] for start in range(0, len(chunk), BATCH)]
        yield _Part(key, len(chunk), partial(_describe_files, root, dataset, decode), batches)


def _version(path):
    try:
        status = os.stat(path)
        return status.st_size, status.st_mtime_ns
    except OSError:
        return None, None


def _describe_files(root, dataset, decode, batch):
    return _describe([(path, where, partial(read_bytes, os.path.join(root, path))) for path, where in batch], dataset, decode)


def _first_size(root, folders, path):
    try:
        header = read_header(read_bytes(os.path.join(root, path, folders[path].first)))
        return header.width, header.height
    except Refused:
        return None


def _missing_classes(places, one_class, layout):
    """[(pair, missing label)] of pairs with one class. Raises UserError if the tree has no images, or only one class."""
    found = {}
    for where in places.values():
        if isinstance(where, Place):
            found.setdefault(where.pair, set()).add(where.label)
    present = set().union(*found.values())
    if not present:
        raise UserError(f"layout {layout.name} ({layout.tree}) matches no folder with images; choose another with --layout, "
                        "or leave it out to guess")
    if len(present) == 1 and not one_class:
        raise UserError(f"the tree has no folder of {'generated' if present == {0} else 'real'} images for layout "
                        f"{layout.name} ({layout.tree}); add them, or index one class with --one-class")
    return [(pair, 1 - next(iter(labels))) for pair, labels in sorted(found.items()) if len(labels) == 1]


# ---- Parquet files -------------------------------------------------------------------------------------------------------
def _only_parquet(root):
    """Whether a tree has Parquet files and no file that is named like an image."""
    found = False
    for entries in walk(root):
        suffixes = {os.path.splitext(name)[1].lower() for name in entries.files}
        if suffixes & SUFFIXES:
            return False
        found |= ".parquet" in suffixes
    return found


def _parquet_parts(root, out, name, dataset, columns, decode):
    """(layout, data set, iterator of parts, number of rows) of a folder of Parquet files."""
    files = [(path, split) for split, paths in parquet.shards(root).items() for path in paths
             if path.resolve() != out.resolve()]
    if not files:
        raise UserError(f"{root} contains no Parquet files of a data set; choose another folder")
    record = read_json(root / RECORD, "fetch the data set again") if (root / RECORD).is_file() else {}
    known = (record.get("hub") or {}).get("columns")
    columns = columns or (parquet.Columns(**known) if known else parquet.find_columns(files[0][0]))
    dataset = dataset or record.get("id") or name
    print(f"layout {PARQUET}: {len(files)} Parquet file(s); images in column {columns.image}, labels in {columns.label}, "
          f"generators {f'in {columns.generator}' if columns.generator else 'unknown'}")
    return PARQUET, dataset, _group_parts(root, files, dataset, columns, decode), sum(parquet.rows(path) for path, _ in files)


def _group_parts(root, files, dataset, columns, decode):
    """A part for each file."""
    for path, split in files:
        name, (_, sizes) = path.relative_to(root).as_posix(), parquet.read_footer(path)
        key = [PARQUET, dataset, decode, name, *_version(path), split, columns.image, columns.label, columns.generator]
        yield _Part(key, sum(sizes), partial(_describe_group, path, name, split, columns, dataset, decode), range(len(sizes)))


def _describe_group(path, name, split, columns, dataset, decode, group):
    schema, _ = parquet.read_footer(path)
    word = layouts.SPLITS.get(split.lower()) or ("test" if "eval" in split.lower() or "test" in split.lower() else "unsplit")
    rows = []
    for row in parquet.group_rows(path, group, columns):
        maker = canonical(row.generator)
        generator = maker if row.label else REAL
        where = Place(row.label, generator, family(generator), word, "" if row.label else maker, "")
        place = parquet.row_name(name, row.index, schema, columns.image), where, partial(bytes, row.data)
        rows += _describe([place], dataset, decode)
    return rows


# ---- parts to manifest ---------------------------------------------------------------------------------------------------
def _describe_parts(parts, folder, total, workers):
    """Write the parts that do not exist yet into `folder`; returns the paths of all."""
    folder.mkdir(parents=True, exist_ok=True)
    made, pool = [], ProcessPoolExecutor(workers) if workers > 1 else None
    try:
        with tqdm(total=total, desc="indexing", unit="image", file=sys.stderr, disable=None) as bar:
            for part in parts:
                path = folder / f"{identity(part.key)}.parquet"
                if not path.is_file():
                    with atomic_file(path) as temporary, pq.ParquetWriter(temporary, PART_SCHEMA) as stream:
                        for rows in (pool.map if pool else map)(part.describe, part.batches):
                            stream.write_table(pa.Table.from_pylist(rows, schema=PART_SCHEMA))
                made.append(path)
                bar.update(part.size)
    except BrokenProcessPool:
        raise UserError("a worker process died (out of memory, or a decoder crashed); run the same command again with "
                        "--workers 1 to continue") from None
    finally:
        if pool:
            pool.shutdown(cancel_futures=True)
    return made


def _in_both_classes(parts):
    """Digests (first 64 bits) of files that occur as real and as generated, and the set of labels of readable images."""
    digests, labels = [np.zeros(0, np.uint64)], [np.zeros(0, np.int8)]
    for path in parts:
        table = pq.read_table(path, columns=["sha256", "label"])
        table = table.filter(table["sha256"].is_valid())
        digests.append(manifest.sha256_prefix(table["sha256"].to_pylist()))
        labels.append(table["label"].to_numpy())
    digest, label = np.concatenate(digests), np.concatenate(labels)
    return np.intersect1d(digest[label == 0], digest[label == 1]), set(label.tolist())


def _assemble(parts, both, root, out, problems, metadata):
    """Write the manifest and the list of skipped files; returns two Counters of (split, generator, label)."""
    counted, skipped = Counter(), Counter()
    with atomic_file(out.with_name(f"{out.name}.skipped.csv")) as temporary, \
            open(temporary, "w", newline="", encoding="utf-8") as stream, manifest.writer(out, root, metadata) as write:
        rows, waiting = csv.writer(stream, lineterminator="\n"), []
        rows.writerow(SKIPPED_COLUMNS)
        for path in parts:
            table = pq.read_table(path)
            kept = table["reason"].is_null().to_numpy()
            clash = np.zeros(len(kept), bool)
            clash[kept] = np.isin(manifest.sha256_prefix(table["sha256"].filter(pa.array(kept)).to_pylist()), both)
            for item in table.filter(pa.array(~kept | clash)).to_pylist():
                place = (item["split"], item["generator"], item["label"])
                rows.writerow([item["path"], 1, *place, item["reason"] or "the same bytes are in both classes"])
                skipped[place] += 1
            table = table.filter(pa.array(kept & ~clash)).drop_columns("reason")
            counted.update(zip(*(table[name].to_pylist() for name in ("split", "generator", "label"))))
            waiting.append(table)
            if sum(map(len, waiting)) >= manifest.ROW_GROUP:
                write(pa.concat_tables(waiting))
                waiting = []
        if waiting:
            write(pa.concat_tables(waiting))
        for problem in problems:
            rows.writerow(problem)
            skipped["", "", ""] += problem[1]
    return counted, skipped


def _table(counted, skipped, expected):
    """Rows (split, generator, label, images, skipped, expected) of everything that was found or expected."""
    wanted = {tuple(ALL if word is None else word for word in place): images for place, images in expected.items()}
    sums = {place for place in wanted if ALL in place}
    for place in sums:
        for tally in (counted, skipped):
            tally[place] = sum(count for where, count in tally.items() if ALL not in where and where[0]
                               and all(word in (ALL, own) for word, own in zip(place, where)))
    seen = [place for place in {*counted, *skipped, *wanted} if place[0]]
    places = sorted(seen, key=lambda place: (place in sums, *map(str, place)))
    rows = [(*place, counted[place], skipped[place], wanted.get(place)) for place in places]
    if skipped["", "", ""]:
        rows.append(("-", "outside the layout or unreadable", "-", 0, skipped["", "", ""], None))
    return rows
