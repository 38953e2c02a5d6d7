"""Images in rows of Parquet files, as the Hugging Face hub stores them: bytes, label and generator in columns.

An image column is the hub's `Image` feature, a struct {bytes, path}, or plain bytes. Bytes are passed on unchanged, so that
the format audit sees the published files. Memory holds one row group, however large the set is.
"""

import contextlib
import functools
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from anl.io import UserError, reason

REAL = {"real", "nature", "0_real", "human", "authentic", "false", "0"}
GENERATED = {"fake", "ai", "1_fake", "generated", "synthetic", "aigc", "true", "1"}
BATCH = 16  # rows; at 1024 pixels a row has about 2 MB
PLACE = re.compile(r"(?P<file>.*\.parquet)#(?:(?P<column>[^/#]+):)?(?P<row>\d+)", re.DOTALL | re.IGNORECASE)
IMAGE_COLUMNS = ("image", "img", "image_data", "picture", "jpg", "png")  # usual names, the most likely first
LABEL_COLUMNS = ("label", "labels", "class", "target")
GENERATOR_COLUMNS = ("generator", "model_name", "model", "source")
SHARD = re.compile(r"(?P<split>[A-Za-z][\w.]*?)(-\d+(-of-\d+)?)?")


@dataclass(frozen=True)
class Columns:
    """Names of the columns; without a generator column, generated images have the generator `unknown`."""

    image: str
    label: str
    generator: str | None = None


class Row(NamedTuple):
    """An image: its bytes (empty if the row has none), label (1 is generated), generator, and row number in the file."""

    data: bytes
    label: int
    generator: str
    index: int


def shards(folder):
    """Parquet files below `folder` by split: {split: [path]}. The split is the file's name up to its number."""
    found = {}
    for path in sorted(Path(folder).rglob("*.parquet")):
        if not any(part.startswith(".") for part in path.relative_to(folder).parts):
            match = SHARD.fullmatch(path.stem)
            found.setdefault(match["split"] if match else path.stem, []).append(path)
    return found


@contextlib.contextmanager
def _opened(path):
    try:  # pages are read as they are needed, not whole columns
        with pq.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20) as file:
            yield file
    except (OSError, pa.ArrowException) as problem:
        raise UserError(f"{path} is not a complete Parquet file ({reason(problem)}); fetch it again") from None


def read_footer(path):
    """(Arrow schema, list of the number of rows of each row group). Raises UserError if the file is damaged."""
    with _opened(path) as file:
        return file.schema_arrow, [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]


def rows(path):
    """Number of rows of a Parquet file, from its footer. Raises UserError if it is damaged."""
    return sum(read_footer(path)[1])


def image_column(schema):
    """Name of the column that holds images, or None: a struct with `bytes`, else bytes; usual names are preferred."""
    structs = [field.name for field in schema
               if pa.types.is_struct(field.type) and any(inner.name == "bytes" for inner in field.type)]
    plain = [field.name for field in schema if pa.types.is_binary(field.type) or pa.types.is_large_binary(field.type)]
    found = structs or plain
    return next((name for name in IMAGE_COLUMNS if name in found), found[0] if found else None)


def find_columns(path):
    """Columns of a Parquet file, by type and name. Raises UserError if there is no image or label column."""
    schema, _ = read_footer(path)
    image = image_column(schema)
    label, generator = (next((name for name in names if name in schema.names), None)
                        for names in (LABEL_COLUMNS, GENERATOR_COLUMNS))
    if image is None or label is None:
        raise UserError(f"{path} has no column with a usual name for images or labels (it has {', '.join(schema.names)}); "
                        "state them with --columns IMAGE,LABEL or --columns IMAGE,LABEL,GENERATOR")
    return Columns(image, label, generator)


def group_rows(path, group, columns):
    """Yield a Row for each row of a row group.

    Labels may be 0 and 1, booleans, the usual words (real, nature, fake, ai, ...), or a `ClassLabel` of `datasets` whose
    class names are such words. Class names take precedence over numbers, because in some sets 0 means fake.

    Raises
    ------
    UserError
        If a column is missing, the file is damaged, or a label is none of these.
    """
    schema, sizes = read_footer(path)
    wanted = [name for name in (columns.image, columns.label, columns.generator) if name is not None]
    if missing := [name for name in wanted if name not in schema.names]:
        raise UserError(f"{path} has no column '{missing[0]}', only {', '.join(schema.names)}; state others with --columns")
    names, index = _class_names(schema), sum(sizes[:group])
    with _opened(path) as file:
        for part in file.iter_batches(BATCH, row_groups=[group], columns=wanted, use_threads=False):
            for row in part.to_pylist():
                word = {name: names[name][row[name]] if name in names and isinstance(row[name], int) and row[name] >= 0
                        else row[name] for name in wanted[1:]}
                label = _label(word[columns.label], f"{path}: row {index}", columns.label)
                generator = word.get(columns.generator)
                generator = ("unknown" if label else "real") if generator in (None, "") else str(generator)
                yield Row(_bytes(row[columns.image]), label, generator, index)
                index += 1


def _class_names(schema):
    """{column: names of its classes}, from the features that `datasets` stores in a file's metadata."""
    try:
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        return {name: feature["names"] for name, feature in features.items()
                if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and "names" in feature}
    except (TypeError, KeyError, ValueError, AttributeError):
        return {}


def _label(value, where, column):
    word = str(value).strip().lower()
    if word not in REAL | GENERATED:
        raise UserError(f"{where} has '{value}' in column '{column}', which is neither real (0) nor generated (1); state "
                        "another label column with --columns")
    return int(word in GENERATED)


def _bytes(cell):
    data = cell.get("bytes") if isinstance(cell, dict) else cell
    return data if isinstance(data, bytes) else b""


# ---- one image of one row, named FILE.parquet#ROW ----------------------------------------------------------------------
def row_name(file, row, schema, column):
    """A row's path in a manifest: FILE#ROW, or FILE#COLUMN:ROW if `image_column` finds another column."""
    return f"{file}#{row}" if column == image_column(schema) else f"{file}#{column}:{row}"


def is_row(path):
    """Whether a path, as `row_name` writes it, names a row of an existing Parquet file."""
    found = PLACE.fullmatch(os.fspath(path))
    return bool(found) and not os.path.exists(path) and os.path.isfile(found["file"])


def read_row(path):
    """The stored bytes of the image at a `row_name`; UserError if it does not exist. The last row group is cached."""
    found = PLACE.fullmatch(os.fspath(path))
    file, row, status = found["file"], int(found["row"]), os.stat(found["file"])
    version = file, status.st_mtime_ns, status.st_size
    schema, starts = _footer(*version)
    column = found["column"] or image_column(schema)
    if column not in schema.names:
        raise UserError(f"{file} has no image column{f' {column!r}' if column else ''}, only {', '.join(schema.names)}")
    if row >= starts[-1]:
        raise UserError(f"{file} has only {starts[-1]} rows, and no row {row}")
    group = int(np.searchsorted(starts, row, side="right")) - 1
    return _bytes(_group(*version, group, column)[row - int(starts[group])].as_py())


@functools.lru_cache(maxsize=64)
def _footer(file, *_version):
    schema, sizes = read_footer(file)
    return schema, np.cumsum([0, *sizes])


@functools.lru_cache(maxsize=1)
def _group(file, _changed, _size, group, column):
    with _opened(file) as stream:
        return stream.read_row_group(group, columns=[column])[column]
