"""Images in Parquet files, as the hub stores them: bytes, label and generator in columns, read as a stream.

An image column is the hub's `Image` feature, a struct {bytes, path}, or plain bytes. Its bytes are handed on as they are,
never decoded and encoded again, so that the format audit sees the published files. Hugging Face `datasets` reads them a
few rows at a time, one row group after the other: memory holds one row group, however large the set is. (Left to itself
Arrow reads a whole shard ahead of a reader that is slower than the disk, as one that decodes is.)
"""

import functools
import os
import re
from dataclasses import dataclass
from pathlib import Path

from anl.errors import UserError

REAL = {"real", "nature", "0_real", "human", "authentic", "false", "0"}
GENERATED = {"fake", "ai", "1_fake", "generated", "synthetic", "aigc", "true", "1"}
BATCH = 16  # rows; a hub's row of 1024 px is about 2 MB
PLACE = re.compile(r"(?P<file>.*\.parquet)#(?:(?P<column>[^/#]+):)?(?P<row>\d+)", re.DOTALL | re.IGNORECASE)
IMAGES = ("image", "img", "image_data", "picture", "jpg", "png")  # what a column of images is called, by preference
LABELS = ("label", "labels", "class", "target")
MAKERS = ("generator", "model_name", "model", "source")
SHARD = re.compile(r"(?P<split>[A-Za-z][\w.]*?)(-\d+(-of-\d+)?)?")


@dataclass(frozen=True)
class Columns:
    """Names of the columns; generator None where there is none, which makes every generated image's generator unknown."""

    image: str = "image"
    label: str = "label"
    generator: str | None = "generator"


@dataclass(frozen=True)
class Row:
    """One image. data: the bytes of its file; label: 0 real, 1 generated; name: path in the published set, or None."""

    data: bytes
    label: int
    generator: str
    split: str
    name: str | None
    shard: str
    index: int


def shards(folder):
    """{split: [path]} of the Parquet files under `folder`, sorted; the split is the file's name up to its number.

    Raises UserError if there are none.
    """
    found = {}
    for path in sorted(Path(folder).rglob("*.parquet")):
        if not any(part.startswith(".") for part in path.relative_to(folder).parts):
            match = SHARD.fullmatch(path.stem)
            found.setdefault(match["split"] if match else path.stem, []).append(path)
    if not found:
        raise UserError(f"{folder} holds no Parquet files")
    return found


def rows(path):
    """Number of rows of one Parquet file, from its footer. Raises UserError if it is damaged."""
    return _schema(Path(path))[1]


def images(folder, columns=None, split=None, labels=None, batch=BATCH):
    """Yield a Row for each image of a folder of Parquet files, in the order of file names and rows.

    columns: Columns, by default image, label and generator. split: one of shards(folder), None for all. labels: {value of
    the label column: 0 or 1}; without it 0 and 1, booleans and the field's words (real, nature, fake, ai, ...) are
    understood, and a column of named classes goes by its names: some sets count 0 as fake. batch: rows read at a time.
    Raises UserError naming the file and the column that is missing, damaged, or holds what no label is.
    """
    found = shards(folder)
    if split is not None and split not in found:
        raise UserError(f"{folder} has no split '{split}'; it has {', '.join(found)}")
    for name, paths in found.items():
        if split in (None, name):
            for path in paths:
                yield from _file_images(path, Path(folder), name, columns or Columns(), labels, batch)


def extract(folder, target, columns=None, labels=None):
    """Write each image's bytes to target/split/generator/{0_real,1_fake}/NUMBER.ENDING; returns their number.

    The tree is the field's binary layout. Raises UserError as images() does.
    """
    number = 0
    for row in images(folder, columns, labels=labels):
        generator = re.sub(r"[^\w.+-]+", "_", row.generator).strip(".") or "unknown"
        place = Path(target) / row.split / generator / ("0_real", "1_fake")[row.label]
        if not place.is_dir():
            place.mkdir(parents=True)
        (place / f"{number:08d}{ending(row.data)}").write_bytes(row.data)
        number += 1
    return number


def ending(data):
    """File ending of an image's bytes by its first ones; .bin if unknown."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return ".webp"
    starts = {b"\xff\xd8\xff": ".jpg", b"\x89PNG\r\n\x1a\n": ".png", b"GIF8": ".gif", b"BM": ".bmp", b"II*\0": ".tif",
              b"MM\0*": ".tif"}
    return next((suffix for start, suffix in starts.items() if data.startswith(start)), ".bin")


# ---- one image of one row, named FILE.parquet#ROW ----------------------------------------------------------------------
def row_name(file, row, schema, column):
    """How a manifest names the image of a row: FILE#ROW, or FILE#COLUMN:ROW where `image_column` finds another column."""
    return f"{file}#{row}" if column == image_column(schema) else f"{file}#{column}:{row}"


def is_row(path):
    """Whether a path is that of a row, as `row_name` writes it, of a Parquet file that is there."""
    found = PLACE.fullmatch(os.fspath(path))
    return bool(found) and not os.path.exists(path) and os.path.isfile(found["file"])


def read_row(path):
    """The image bytes of FILE.parquet#ROW, as they were stored. Raises UserError if there are none.

    The row group of the last call stays in memory, so that rows read in their order cost one reading of the file.
    """
    found = PLACE.fullmatch(os.fspath(path))
    file, row = found["file"], int(found["row"])
    schema, count = _schema(Path(file))
    column = found["column"] or image_column(schema)
    if column not in schema.names:
        raise UserError(f"{file} has no column of images{f' {column!r}' if column else ''}; it has {', '.join(schema.names)}")
    if row >= count:
        raise UserError(f"{file} has {count} rows, and no row {row}")
    group, first = 0, 0
    for group, size in enumerate(group_sizes(file)):
        if row < first + size:
            break
        first += size
    status = os.stat(file)
    stored = _stored(file, status.st_mtime_ns, status.st_size, group, column)
    return _image(stored[row - first].as_py(), file, row)[0]


@functools.lru_cache(maxsize=1)
def _stored(file, _changed, _size, group, column):
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(file, pre_buffer=False) as stream:
            return stream.read_row_group(group, columns=[column])[column]
    except (OSError, pyarrow.ArrowException) as problem:
        raise UserError(f"{file} is damaged ({str(problem).splitlines()[0][:120]}); fetch it again") from None


def group_sizes(path):
    """Rows of each row group of a Parquet file, a list."""
    from pyarrow import parquet

    _schema(Path(path))
    with parquet.ParquetFile(path) as file:
        return [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]


def image_column(schema):
    """Name of the column that holds images, or None: a struct with `bytes`, else plain bytes; one of IMAGES is preferred."""
    import pyarrow

    def is_struct(kind):
        return pyarrow.types.is_struct(kind) and any(field.name == "bytes" for field in kind)

    def is_plain(kind):
        return pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind)

    for fits in (is_struct, is_plain):
        found = [field.name for field in schema if fits(field.type)]
        if found:
            return next((name for name in IMAGES if name in found), found[0])
    return None


def find_columns(path):
    """Columns of a Parquet file, by the kinds and names of its columns. Raises UserError where no label column is found."""
    schema, _ = _schema(Path(path))
    image = image_column(schema)
    label, maker = (next((name for name in names if name in schema.names), None) for names in (LABELS, MAKERS))
    if image is None or label is None:
        raise UserError(f"{path}: which columns hold the images and the labels? it has {', '.join(schema.names)}; say so with "
                        "--columns IMAGE,LABEL or --columns IMAGE,LABEL,GENERATOR")
    return Columns(image, label, maker)


def group_rows(path, group, folder, split, columns, labels=None):
    """Yield a Row for every row of one row group; data is None where the row has no image bytes.

    Raises UserError as `images` does for a missing column, a damaged file, or a value that is no label.
    """
    import datasets  # takes a second to import
    import pyarrow
    from pyarrow import parquet

    schema = _checked_schema(path, columns)
    features = datasets.Features.from_arrow_schema(schema)
    names = {name: feature.names for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)}
    wanted = [name for name in (columns.image, columns.label, columns.generator) if name is not None]
    shard, index = path.relative_to(folder).as_posix(), sum(group_sizes(path)[:group])
    try:
        with parquet.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20) as file:  # pages, not whole columns
            for part in file.iter_batches(BATCH, row_groups=[group], columns=wanted, use_threads=False):
                for row in part.to_pylist():
                    cell = row[columns.image]
                    data, name = (cell.get("bytes"), cell.get("path")) if isinstance(cell, dict) else (cell, None)
                    label, maker = _words(row, columns, names, labels, path, index)
                    yield Row(data or None, label, maker, split, name, shard, index)
                    index += 1
    except (OSError, pyarrow.ArrowException) as problem:
        raise UserError(f"{path} is damaged ({type(problem).__name__}: {str(problem).splitlines()[0][:120]}); fetch it "
                        "again") from None


def _checked_schema(path, columns):
    schema, _ = _schema(path)
    wanted = [name for name in (columns.image, columns.label, columns.generator) if name is not None]
    if missing := [name for name in wanted if name not in schema.names]:
        raise UserError(f"{path} has no column '{missing[0]}'; it has {', '.join(schema.names)}")
    return schema


def _words(row, columns, names, labels, path, index):
    """(label, generator) of a row, by the names of the classes where there are some."""

    def text(column):
        value = row[column]
        return names[column][value] if column in names and isinstance(value, int) and value >= 0 else value

    label = _label(text(columns.label), labels, row[columns.label], path, index, columns.label)
    maker = text(columns.generator) if columns.generator else None
    return label, str(maker) if maker not in (None, "") else ("unknown" if label else "real")


def _schema(path):
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            return file.schema_arrow, file.metadata.num_rows
    except (OSError, pyarrow.ArrowException) as problem:
        raise UserError(f"{path} is no whole Parquet file ({str(problem).splitlines()[0][:120]}); fetch it again") from None


def _file_images(path, folder, split, columns, labels, batch):
    import datasets  # takes a second to import
    import pyarrow

    schema = _checked_schema(path, columns)
    wanted = [name for name in (columns.image, columns.label, columns.generator) if name is not None]
    features = datasets.Features.from_arrow_schema(schema)
    shard = path.relative_to(folder).as_posix()
    stream = datasets.load_dataset("parquet", data_files=[str(path)], split="train", streaming=True, columns=wanted,
                                   batch_size=batch).reshard()
    if isinstance(features[columns.image], datasets.Image):
        stream = stream.cast_column(columns.image, datasets.Image(decode=False))
    names = {name: feature.names for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)}
    try:
        for index, row in enumerate(stream):
            data, name = _image(row[columns.image], path, index)
            label, maker = _words(row, columns, names, labels, path, index)
            yield Row(data, label, maker, split, name, shard, index)
    except (OSError, pyarrow.ArrowException, datasets.exceptions.DatasetsError) as problem:
        raise UserError(f"{path} is damaged ({type(problem).__name__}: {str(problem).splitlines()[0][:120]}); fetch it "
                        "again") from None


def _image(value, path, index):
    """(bytes, name) of an image cell."""
    data, name = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)
    if not isinstance(data, bytes) or not data:
        raise UserError(f"{path}: row {index} holds no image bytes, only {name or 'nothing'}; the set points at files that "
                        "it does not contain")
    return data, name


def _label(named, labels, raw, path, index, column):
    if labels is not None:
        for value in (raw, named):
            if value in labels:
                return labels[value]
    else:
        word = str(named).strip().lower()
        if word in REAL | GENERATED:
            return int(word in GENERATED)
    raise UserError(f"{path}: row {index} has '{named}' in column '{column}'; say which values are real (0) and which "
                    "generated (1) with `labels`")
