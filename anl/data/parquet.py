"""Images in Parquet files, as the hub stores them: bytes, label and generator in columns, read as a stream.

An image column is the hub's `Image` feature, a struct {bytes, path}, or plain bytes. Its bytes are handed on as they are,
never decoded and encoded again, so that the format audit sees the published files. Hugging Face `datasets` reads them a
few rows at a time, one row group after the other: memory holds one row group, however large the set is. (Left to itself
Arrow reads a whole shard ahead of a reader that is slower than the disk, as one that decodes is.)
"""

import re
from dataclasses import dataclass
from pathlib import Path

from anl.errors import UserError

REAL = {"real", "nature", "0_real", "human", "authentic", "false", "0"}
GENERATED = {"fake", "ai", "1_fake", "generated", "synthetic", "aigc", "true", "1"}
BATCH = 16  # rows; a hub's row of 1024 px is about 2 MB
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

    schema, _ = _schema(path)
    wanted = [name for name in (columns.image, columns.label, columns.generator) if name is not None]
    if missing := [name for name in wanted if name not in schema.names]:
        raise UserError(f"{path} has no column '{missing[0]}'; it has {', '.join(schema.names)}")
    features = datasets.Features.from_arrow_schema(schema)
    shard = path.relative_to(folder).as_posix()
    stream = datasets.load_dataset("parquet", data_files=[str(path)], split="train", streaming=True, columns=wanted,
                                   batch_size=batch).reshard()
    if isinstance(features[columns.image], datasets.Image):
        stream = stream.cast_column(columns.image, datasets.Image(decode=False))
    names = {name: feature.names for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)}

    def text(column, value):
        return names[column][value] if column in names and isinstance(value, int) and value >= 0 else value

    try:
        for index, row in enumerate(stream):
            data, name = _image(row[columns.image], path, index)
            label = _label(text(columns.label, row[columns.label]), labels, row[columns.label], path, index, columns.label)
            generator = text(columns.generator, row[columns.generator]) if columns.generator else None
            yield Row(data, label, str(generator) if generator not in (None, "") else ("unknown" if label else "real"), split,
                      name, shard, index)
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
