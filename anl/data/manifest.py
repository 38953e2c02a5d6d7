"""The manifest: one row an image, one Parquet file a benchmark; written, read, counted and sampled a row group at a time.

| column | what it holds |
| --- | --- |
| path | relative to the manifest's root, as `path_text` writes it |
| sha256 | hex digest of the file's bytes |
| label | 1 generated, 0 real |
| generator | what made the image; `real` for real ones |
| family | the generator's kind (`gan`, `latent diffusion`, ...); `real`, or `unknown` |
| dataset, split | the published set, and `train`, `val` or `test`; `unsplit` where the folders do not tell |
| source_real | the set of reals that a real image belongs to, or that a generated one is compared with; empty: any |
| width, height | pixels, after EXIF rotation |
| format, jpeg_quality, bytes | of the file; the quality is null for other formats than JPEG |
| phash | perceptual hash (`anl.data.duplicates`), null where images were not decoded |
"""

import contextlib
import os
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from anl.errors import UserError, reason
from anl.files import whole_file

REAL = "real"
ROW_GROUP = 65536
SCHEMA = pa.schema([
    ("path", pa.string()), ("sha256", pa.string()), ("label", pa.int8()), ("generator", pa.string()),
    ("family", pa.string()), ("dataset", pa.string()), ("split", pa.string()), ("source_real", pa.string()),
    ("width", pa.int32()), ("height", pa.int32()), ("format", pa.string()), ("jpeg_quality", pa.int16()),
    ("bytes", pa.int64()), ("phash", pa.uint64())])
NAMES = ("generator", "family", "dataset", "split", "source_real", "format")  # few values, repeated: read as categories
ROOT_KEY = "anl.root"


def path_text(path):
    r"""A path as one printable line of UTF-8: backslashes double; control characters and bytes that are no UTF-8 become \xNN.

    `a\nb` (a newline) is written `a\x0ab`. `file_path` turns it back, byte for byte.
    """
    text = os.fsencode(path).decode("utf-8", "surrogateescape").replace("\\", "\\\\")
    return re.sub(r"[\x00-\x1f\x7f\udc80-\udcff]", lambda found: f"\\x{ord(found[0]) & 0xff:02x}", text)


def file_path(text):
    """The path, str with the system's surrogate escapes, that `path_text` wrote."""
    raw = re.sub(rb"\\(\\|x[0-9a-f]{2})", lambda found: b"\\" if found[1] == b"\\" else bytes([int(found[1][1:], 16)]),
                 text.encode())
    return os.fsdecode(raw)


@contextlib.contextmanager
def writer(path, root, metadata=None):
    """Yield write(table): appends a pyarrow table of SCHEMA as row groups. The file is whole or absent.

    root: the folder that paths are relative to; kept relative to the manifest's own, so that both can move together.
    metadata: {name: text}, kept in the file.
    """
    path = Path(path)
    relative = os.path.relpath(os.path.abspath(root), os.path.abspath(path.parent))
    schema = SCHEMA.with_metadata({ROOT_KEY: path_text(relative),
                                   **{f"anl.{key}": str(value) for key, value in (metadata or {}).items()}})
    with whole_file(path) as temporary, pq.ParquetWriter(temporary, schema, compression="zstd") as stream:
        yield lambda table: stream.write_table(table.cast(SCHEMA), row_group_size=ROW_GROUP)


def _open(path):
    try:
        file = pq.ParquetFile(path)
    except FileNotFoundError:
        raise UserError(f"{path} is missing; make it with `anl index FOLDER --out {path}`") from None
    except Exception as problem:
        raise UserError(f"{path} is no manifest ({reason(problem)}); make it again with `anl index`") from None
    missing = [name for name in SCHEMA.names if name not in file.schema_arrow.names and name != "phash"]
    if missing:
        raise UserError(f"{path} is no manifest: it lacks the column(s) {', '.join(missing)}; make it with `anl index`")
    return file


def metadata(path):
    """{name: text} of what the writer noted, `root` among it (as it stands in the file)."""
    found = _open(path).schema_arrow.metadata or {}
    return {key.decode().removeprefix("anl."): value.decode() for key, value in found.items() if key.startswith(b"anl.")}


def root_of(path):
    """The folder that the manifest's paths are relative to."""
    return Path(os.path.normpath(Path(path).parent / file_path(metadata(path).get("root", "."))))


def tables(path, columns=None, where=None):
    """Yield the manifest's rows as pyarrow tables, a row group at a time, names as dictionaries.

    where: {column: value or list of values}; a row group whose statistics exclude them is not read. Raises UserError for
    what is no manifest, or a damaged one, or no column.
    """
    where = {name: [value] if isinstance(value, (str, int)) else list(value) for name, value in (where or {}).items()
             if value is not None}
    unknown = set(columns or ()) | set(where)
    unknown -= set(SCHEMA.names)
    if unknown:
        raise UserError(f"a manifest has no column {', '.join(sorted(unknown))}; it has {', '.join(SCHEMA.names)}")
    file = _open(path)
    there = set(file.schema_arrow.names)
    columns = [name for name in (columns or SCHEMA.names) if name in there]
    needed = list(dict.fromkeys([*columns, *where]))
    file = pq.ParquetFile(path, read_dictionary=[name for name in NAMES if name in needed])
    for group in range(file.num_row_groups):
        if any(_excluded(file.metadata.row_group(group), name, values) for name, values in where.items()):
            continue
        try:
            table = file.read_row_group(group, columns=needed)
            table.validate(full=True)  # text that is no UTF-8, places outside a dictionary
            for name, values in where.items():
                table = table.filter(pc.is_in(table[name].cast(SCHEMA.field(name).type),
                                              pa.array(values, SCHEMA.field(name).type)))
        except (OSError, MemoryError, pa.ArrowException) as problem:  # the footer is whole, what it points at is not
            raise UserError(f"{path} is damaged ({reason(problem)}); index the images again") from None
        if len(table):
            yield table.select(columns)


def _excluded(group, name, values):
    for index in range(group.num_columns):
        column = group.column(index)
        if column.path_in_schema == name and column.statistics is not None and column.statistics.has_min_max:
            return all(value < column.statistics.min or value > column.statistics.max for value in values)
    return False


def read(path, columns=None, **where):
    """The manifest, or some of its columns and rows, as a DataFrame: read(path, split="test", generator=["adm", "real"]).

    Names are categories, so that a million rows stay small. Raises UserError for what is no manifest or no column.
    """
    found = list(tables(path, columns, where))
    if not found:
        return SCHEMA.empty_table().select(columns or SCHEMA.names).to_pandas()
    return pa.concat_tables(found).unify_dictionaries().combine_chunks().to_pandas(split_blocks=True)


def counts(path, by=("split", "generator", "label"), **where):
    """Images of every combination of `by`: a DataFrame with those columns and `images`, sorted."""
    parts = []
    for table in tables(path, list(by), where):
        plain = pa.table({name: table[name].cast(SCHEMA.field(name).type) for name in by})
        parts.append(plain.group_by(list(by)).aggregate([([], "count_all")]).to_pandas())
    if not parts:
        return pd.DataFrame(columns=[*by, "images"])
    found = pd.concat(parts).groupby(list(by), as_index=False)["count_all"].sum()
    return found.rename(columns={"count_all": "images"}).sort_values(list(by), ignore_index=True)


def sample(path, per_generator, seed, **where):
    """A seeded, balanced sample: `per_generator` images of each generator, and as many reals as of all generators together.

    The draw follows from the seed and each image's SHA-256 alone, so it is the same however rows are ordered, and adding
    images moves few others. Returns a DataFrame in the order generator, draw. Raises UserError where there are too few.
    """
    keep = {}
    generators = [name for name in counts(path, ("generator",), **where)["generator"] if name != REAL]
    size = {REAL: per_generator * len(generators)} | dict.fromkeys(generators, per_generator)
    for table in tables(path, None, where):
        rows = table.to_pandas()
        rows["draw"] = _draw(rows["sha256"], seed)
        for name, group in rows.groupby("generator", observed=True):
            best = pd.concat([keep[name], group]) if name in keep else group
            keep[name] = best.sort_values(["draw", "path"]).drop_duplicates("sha256").head(size.get(name, 0))
    for name, wanted in size.items():
        there = len(keep.get(name, ()))
        if there < wanted:
            raise UserError(f"{path}: a balanced sample needs {wanted} different images of '{name}', and there are "
                            f"{there}; ask for fewer")
    if not generators:
        raise UserError(f"{path}: no generated images among the rows asked for, so no balanced sample")
    found = pd.concat([keep[name].astype({column: "str" for column in NAMES}) for name in [REAL, *generators]])
    return found.drop(columns="draw").reset_index(drop=True)


def sha256_prefix(column):
    """The first 64 bits of hex digests, uint64 (N,)."""
    text = "".join(digest[:16] for digest in column)
    return np.frombuffer(bytes.fromhex(text), ">u8").astype(np.uint64)


def _draw(digests, seed):
    """A number for every digest under a seed, uint64 (N,): splitmix64 (Steele et al. 2014), which mixes every bit."""
    start = int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0])
    value = sha256_prefix(digests) ^ np.uint64(start)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        value = (value ^ (value >> np.uint64(shift))) * np.uint64(factor)  # modulo 2**64
    return value ^ (value >> np.uint64(31))
