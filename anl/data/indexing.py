"""From a folder tree to a manifest, in constant memory, resumable, with a reason for every file left out."""

import csv
import hashlib
import itertools
import os
import shutil
import sys
from collections import Counter, deque
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from anl.data import layouts, manifest, parquet
from anl.data.decode import Refused, decode_bytes, read_bytes, read_header
from anl.data.duplicates import perceptual_hash
from anl.data.generator_names import canonical, family
from anl.data.layouts import Place
from anl.data.walk import survey, walk
from anl.errors import UserError
from anl.files import identity, read_json, whole_file
from anl.machine import cores

PARQUET_PART = 8192  # rows a part, of sets in Parquet files: whole row groups, each read by one worker
PARQUET = "parquet"  # the layout of a set whose images lie in Parquet files
RECORD = "source.json"  # of anl.data.fetch, which knows the columns of a set of the hub
PART = 2048  # files a part: what a killed run has to do again at most
ALL = "all"
BATCH = 64  # files handed to a worker at once
IMAGE_NAMES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".jp2", ".avif", ".ppm"}
SKIPPED_COLUMNS = ("path", "files", "split", "generator", "label", "reason")
PART_SCHEMA = pa.schema([*manifest.SCHEMA, ("reason", pa.string())])


class Summary(NamedTuple):
    """images: rows written. skipped: [(split, generator, label, files)] and rows: of the table; notes: lines to print."""

    images: int
    skipped: int
    rows: list
    notes: list


def index(root, out, layout=None, dataset=None, expected=None, decode=True, workers=None, one_class=False, say=print,
          columns=None):
    """Write the manifest of a folder tree to `out` and what was left out to `<out>.skipped.csv`; returns Summary.

    layout: its name, or None to guess. dataset: the name in the manifest (default: the layout's). expected:
    {(split, generator, label): images} to compare with, None for all together, or a function that gives it for a
    data set's name. decode: decode every image, one at a time in a worker, to
    find damage and to hash its looks; otherwise headers only. workers: processes (default: one a core, 1 for small
    trees). one_class: accept a tree without real, or without generated, images. A killed run goes on from its last
    part. A folder of Parquet files (layout `parquet`) is read a row group at a time; its images are FILE.parquet#ROW in the
    manifest. columns: its anl.data.parquet.Columns (default: those of the folder's source.json, or found by their names and
    types). Raises UserError where the root is no folder, no layout fits, or a class is missing.
    """
    root, out = Path(root), Path(out)
    if not root.is_dir():
        raise UserError(f"{str(root)!r} is not a folder; give the data set's root")
    name = os.path.basename(os.path.realpath(root))
    out_of_parquet = layout == PARQUET or (layout is None and (columns is not None or _only_parquet(root, out)))
    if out_of_parquet:
        return _index_parquet(root, out, dataset or name, expected, decode, workers, one_class, say, columns)
    folders, clashes = survey(root)
    if layout is None:
        chosen, why = layouts.guess(folders, name, partial(_first_size, root, folders))
        say(f"layout {chosen.name}: {why}")
    else:
        chosen = layouts.check_name(layout)
        say(f"layout {chosen.name}: as asked")
    dataset = dataset or (name if chosen.name in ("binary", "generic", "per_generator") else chosen.name)
    places = {path: layouts.place(chosen, path, name) for path in folders}
    missing = _missing_classes(places, one_class, chosen)
    total = sum(folders[path].files for path, where in places.items() if isinstance(where, Place))
    workers = workers or (min(cores(), 16) if total > 2000 else 1)
    parts = out.with_name(f".{out.name}.parts")
    made = _read_all(root, places, dataset, decode, workers, parts, total)
    problems = [(manifest.path_text(path), 1, "", "", "", reason) for entries in walk(root)
                for path, reason in entries.problems]
    problems += [(manifest.path_text(path) + "/", folders[path].files, "", "", "",
                  where.reason if where else f"outside the layout {chosen.name}")
                 for path, where in places.items() if not isinstance(where, Place)]
    problems += [(pair, 0, pair.split("/")[0], "", label, "class folder missing") for pair, label in missing]
    counted, skipped = _assemble(made, root, out, problems, {"layout": chosen.name, "dataset": dataset,
                                                             "decoded": str(bool(decode)).lower()})
    shutil.rmtree(parts, ignore_errors=True)
    notes = []
    if clashes:
        notes.append(f"{len(clashes)} pair(s) of names differ in case or Unicode form only, the first {clashes[0]!r}; all "
                     "are indexed, but a system that ignores the difference keeps one of each pair")
    return _summary(counted, skipped, expected, dataset, notes)


def _summary(counted, skipped, expected, dataset, notes):
    wanted = expected(dataset) if callable(expected) else expected or {}
    return Summary(sum(counted.values()), sum(skipped.values()), _table(counted, skipped, wanted), notes)


# ---- images in Parquet files -------------------------------------------------------------------------------------------
def _only_parquet(root, out):
    """Whether a tree has Parquet files and no file that is named like an image."""
    found = False
    for entries in walk(root):
        for name in entries.files:
            suffix = os.path.splitext(name)[1].lower()
            if suffix in IMAGE_NAMES:
                return False
            found |= suffix == ".parquet" and os.path.abspath(os.path.join(root, entries.path, name)) != os.path.abspath(out)
    return found


def _index_parquet(root, out, dataset, expected, decode, workers, one_class, say, columns):
    """`index` of a folder of Parquet files."""
    found = parquet.shards(root)
    files = [(path, split) for split, paths in found.items() for path in paths if path.resolve() != out.resolve()]
    record = read_json(root / RECORD) if (root / RECORD).is_file() else {}
    known = (record.get("hub") or {}).get("columns")
    columns = columns or (parquet.Columns(**known) if known else parquet.find_columns(files[0][0]))
    dataset = record.get("id") or dataset
    say(f"layout {PARQUET}: {len(files)} Parquet file(s); images in column {columns.image}, labels in {columns.label}, "
        f"generators {f'in {columns.generator}' if columns.generator else 'unknown'}")
    total = sum(parquet.rows(path) for path, _ in files)
    workers = workers or (min(cores(), 16) if total > 2000 else 1)
    parts = out.with_name(f".{out.name}.parts")
    parts.mkdir(parents=True, exist_ok=True)
    made, pool = [], ProcessPoolExecutor(workers) if workers > 1 else None
    try:
        with tqdm(total=total, desc="indexing", unit="image", file=sys.stderr, disable=None) as bar:
            for path, split, groups, size in _row_groups(files):
                status = path.stat()
                key = identity([PARQUET, dataset, decode, path.relative_to(root).as_posix(), status.st_size, status.st_mtime_ns,
                                split, groups, columns.image, columns.label, columns.generator])
                part = parts / f"{key}.parquet"
                if not part.is_file():
                    work = partial(_describe_group, path, root, split, columns, dataset, decode)
                    with whole_file(part) as temporary, pq.ParquetWriter(temporary, PART_SCHEMA) as stream:
                        for rows in pool.map(work, groups) if pool else map(work, groups):
                            stream.write_table(pa.Table.from_pylist(rows, schema=PART_SCHEMA))
                made.append(part)
                bar.update(size)
    except BrokenProcessPool:
        raise _died() from None
    finally:
        if pool:
            pool.shutdown(cancel_futures=True)
    there = set()
    for part in made:
        table = pq.read_table(part, columns=["label", "reason"])
        there.update(table.filter(table["reason"].is_null())["label"].unique().to_pylist())
    if len(there) < 2 and not one_class:
        lacking = "generated" if there == {0} else "real" if there == {1} else "readable"
        raise UserError(f"{root} has no row of {lacking} images by column '{columns.label}'; give another column with "
                        "--columns, or index one class on its own with --one-class")
    counted, skipped = _assemble(made, root, out, [], {"layout": PARQUET, "dataset": dataset,
                                                       "decoded": str(bool(decode)).lower()})
    shutil.rmtree(parts, ignore_errors=True)
    return _summary(counted, skipped, expected, dataset, [])


def _row_groups(files):
    """(path, split, [row groups], rows) of every part: row groups of one file, PARQUET_PART rows or one group."""
    for path, split in files:
        groups, size = [], 0
        for group, rows in enumerate(parquet.group_sizes(path)):
            if groups and size + rows > PARQUET_PART:
                yield path, split, groups, size
                groups, size = [], 0
            groups.append(group)
            size += rows
        if groups:
            yield path, split, groups, size


def _describe_group(path, root, split, columns, dataset, decode, group):
    """Rows of a part, a list of dicts, of one row group."""
    schema, found = pq.read_schema(path), []
    word = layouts.SPLITS.get(split.lower()) or ("test" if "eval" in split.lower() or "test" in split.lower() else "unsplit")
    for row in parquet.group_rows(path, group, root, split, columns):
        about = describe_bytes(row.data, decode) if row.data else {"reason": "the row holds no image bytes"}
        maker = canonical(row.generator)
        generator = maker if row.label else manifest.REAL
        found.append({"path": manifest.path_text(parquet.row_name(row.shard, row.index, schema, columns.image)),
                      "label": row.label, "generator": generator, "family": family(generator), "dataset": dataset,
                      "split": word, "source_real": "" if row.label else maker, **about})
    return found


def _first_size(root, folders, path):
    try:
        header = read_header(read_bytes(os.path.join(root, path, folders[path].first)))
        return header.width, header.height
    except Refused:
        return None


def _missing_classes(places, one_class, layout):
    """[(place, label)] that have one class only. Raises UserError where the whole tree has."""
    found = {}
    for where in places.values():
        if isinstance(where, Place):
            found.setdefault(where.pair, set()).add(where.label)
    there = set().union(*found.values()) if found else set()
    if not there:
        raise UserError(f"layout {layout.name} has no folder for any of these images: it wants {layout.tree}; choose "
                        "another with --layout, or leave --layout out to have it guessed")
    if len(there) == 1 and not one_class:
        lacking = "generated" if there == {0} else "real"
        raise UserError(f"the tree has no folder of {lacking} images: layout {layout.name} wants {layout.tree}; add "
                        "them, or index one class on its own with --one-class")
    return [(pair, (1 - labels.copy().pop())) for pair, labels in sorted(found.items()) if len(labels) == 1]


def describe(path, decode=True):
    """What the manifest says of one file itself, a dict; {"reason": ...} where it is refused."""
    try:
        return describe_bytes(read_bytes(path), decode)
    except Refused as problem:
        return {"reason": str(problem)}


def describe_bytes(data, decode=True):
    """What the manifest says of one image's bytes, a dict; {"reason": ...} where they are refused."""
    try:
        header = read_header(data)
        looks = perceptual_hash(decode_bytes(data)) if decode else None
    except Refused as problem:
        return {"reason": str(problem)}
    return {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data), **header._asdict(), "phash": looks,
            "reason": None}


def _describe_all(paths, decode):
    return [describe(path, decode) for path in paths]


def _files(root, places):
    """(path from the root, Place) of every file to read, in the order of the walk."""
    for entries in walk(root):
        where = places.get(entries.path)
        if isinstance(where, Place):
            for name in entries.files:
                yield f"{entries.path}/{name}" if entries.path else name, where


def _read_all(root, places, dataset, decode, workers, parts, total):
    """Describe all files, a part at a time; returns the parts' paths. Parts of an earlier run with the same files stay."""
    parts.mkdir(parents=True, exist_ok=True)
    files, made = _files(root, places), []
    pool = ProcessPoolExecutor(workers) if workers > 1 else None
    try:
        with tqdm(total=total, desc="indexing", unit="file", file=sys.stderr, disable=None) as bar:
            while chunk := list(itertools.islice(files, PART)):
                path = parts / f"{_key(root, chunk, dataset, decode)}.parquet"
                if not path.is_file():
                    _write_part(path, root, chunk, dataset, decode, pool)
                made.append(path)
                bar.update(len(chunk))
    except BrokenProcessPool:
        raise _died() from None
    finally:
        if pool:
            pool.shutdown(cancel_futures=True)
    return made


def _died():
    return UserError("a worker process died (out of memory, or a decoder crashed); run the same command again with --workers 1 "
                     "to go on from here")


def _key(root, chunk, dataset, decode):
    """What a part follows from: its files' names, sizes, times and places."""
    marks = []
    for path, where in chunk:
        try:
            status = os.stat(os.path.join(root, path))
            marks.append([manifest.path_text(path), status.st_size, status.st_mtime_ns, *where])
        except OSError:
            marks.append([manifest.path_text(path), None, None, *where])
    return identity([dataset, decode, marks])


def _write_part(path, root, chunk, dataset, decode, pool):
    batches = [[os.path.join(root, file) for file, _ in chunk[start:start + BATCH]] for start in range(0, len(chunk), BATCH)]
    work = partial(_describe_all, decode=decode)
    described = itertools.chain.from_iterable(pool.map(work, batches) if pool else map(work, batches))
    rows = [{"path": manifest.path_text(file), "label": where.label, "generator": where.generator, "family": where.family,
             "dataset": dataset, "split": where.split, "source_real": where.source_real, **about}
            for (file, where), about in zip(chunk, described, strict=True)]
    with whole_file(path) as temporary:
        pq.write_table(pa.Table.from_pylist(rows, schema=PART_SCHEMA), temporary)


def _in_both_classes(parts):
    """uint64: the digests' first 64 bits of bytes that occur as real and as generated, sorted."""
    digests, labels = [np.zeros(0, np.uint64)], [np.zeros(0, np.int8)]
    for path in parts:
        table = pq.read_table(path, columns=["sha256", "label"])
        table = table.filter(table["sha256"].is_valid())
        digests.append(manifest.sha256_prefix(table["sha256"].to_pylist()))
        labels.append(table["label"].to_numpy())
    digest, label = np.concatenate(digests), np.concatenate(labels)
    return np.intersect1d(digest[label == 0], digest[label == 1])


def _assemble(parts, root, out, problems, metadata):
    """Write manifest and list of what was left out; returns two Counters of (split, generator, label)."""
    both = _in_both_classes(parts)
    counted, skipped = Counter(), Counter()
    listing = out.with_name(f"{out.name}.skipped.csv")
    with whole_file(listing) as temporary, open(temporary, "w", newline="", encoding="utf-8") as stream:
        rows = csv.writer(stream, lineterminator="\n")
        rows.writerow(SKIPPED_COLUMNS)
        with manifest.writer(out, root, metadata) as write:
            waiting = deque()
            for path in parts:
                table = pq.read_table(path)
                kept = np.array([reason is None for reason in table["reason"].to_pylist()])
                clash = np.zeros(len(kept), bool)
                clash[kept] = np.isin(manifest.sha256_prefix(table["sha256"].filter(pa.array(kept)).to_pylist()), both)
                for row in np.flatnonzero(~kept | clash):
                    item = table.slice(row, 1).to_pylist()[0]
                    place = (item["split"], item["generator"], item["label"])
                    rows.writerow([item["path"], 1, *place, item["reason"] or "the same bytes are in both classes"])
                    skipped[place] += 1
                table = table.filter(pa.array(kept & ~clash)).drop_columns("reason")
                counted.update(zip(*(table[name].to_pylist() for name in ("split", "generator", "label"))))
                waiting.append(table)
                if sum(map(len, waiting)) >= manifest.ROW_GROUP:
                    write(pa.concat_tables(waiting))
                    waiting.clear()
            if waiting:
                write(pa.concat_tables(waiting))
        for problem in problems:
            rows.writerow(problem)
            skipped["", "", ""] += problem[1]
    return counted, skipped


def _words(place):
    return tuple(ALL if word is None else word for word in place)


def _table(counted, skipped, expected):
    """Rows (split, generator, label, images, skipped, expected) for people, everything that was seen or expected."""
    wanted = {_words(place): images for place, images in expected.items()}
    together = {place for place in wanted if ALL in place}
    for place in together:
        for tally in (counted, skipped):
            tally[place] = sum(count for where, count in tally.items() if ALL not in where and where[0] and
                               all(asked in (ALL, here) for asked, here in zip(place, where)))
    seen = [place for place in {*counted, *skipped, *wanted} if place[0]]
    places = sorted(seen, key=lambda place: (place in together, *map(str, place)))
    rows = [(*place, counted[place], skipped[place], wanted.get(place)) for place in places]
    if skipped["", "", ""]:
        rows.append(("-", "outside or not entered", "-", 0, skipped["", "", ""], None))
    return rows
