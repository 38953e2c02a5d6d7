"""The manifest of a data set: a Parquet file with a row for each image.

| column | content |
| --- | --- |
| path | relative to the manifest's root, as `path_text` writes it |
| sha256 | hex digest of the file's bytes |
| label | 1 generated, 0 real |
| generator | name of the generator; `real` for real images |
| family | kind of generator (`gan`, `latent diffusion`, ...), `real` or `unknown` |
| dataset, split | name of the data set; `train`, `val`, `test`, or `unsplit` if its folders do not tell |
| source_real | the set of reals that the image belongs to or, if generated, is compared with; empty: any |
| width, height | pixels, after EXIF rotation |
| format, jpeg_quality, bytes | of the file; jpeg_quality is null for other formats |
| phash | perceptual hash (`anl.data.duplicates`), null if images were not decoded |
"""

import contextlib
import os
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from anl.io import UserError, atomic_file, reason

ROW_GROUP = 65536
SCHEMA = pa.schema([
    ("path", pa.string()), ("sha256", pa.string()), ("label", pa.int8()), ("generator", pa.string()),
    ("family", pa.string()), ("dataset", pa.string()), ("split", pa.string()), ("source_real", pa.string()),
    ("width", pa.int32()), ("height", pa.int32()), ("format", pa.string()), ("jpeg_quality", pa.int16()),
    ("bytes", pa.int64()), ("phash", pa.uint64())])
NAMES = ("generator", "family", "dataset", "split", "source_real", "format")  # read as categories
ROOT_KEY = "anl.root"


def path_text(path):
    r"""A path as one printable line of UTF-8: backslashes are doubled, control characters and invalid bytes become \xNN.

    `a\nb` (a newline) is written `a\x0ab`. `file_path` is the inverse.
    """
    text = os.fsencode(path).decode("utf-8", "surrogateescape").replace("\\", "\\\\")
    return re.sub(r"[\x00-\x1f\x7f\udc80-\udcff]", lambda found: f"\\x{ord(found[0]) & 0xff:02x}", text)


def file_path(text):
    """The path (str with the system's surrogate escapes) that `path_text` wrote."""
    raw = re.sub(rb"\\(\\|x[0-9a-f]{2})", lambda found: b"\\" if found[1] == b"\\" else bytes([int(found[1][1:], 16)]),
                 text.encode())
    return os.fsdecode(raw)


@contextlib.contextmanager
def writer(path, root, metadata=None):
    """Write a manifest, atomically: a context manager that yields a function which appends a pyarrow table of SCHEMA.

    Parameters
    ----------
    path : path-like
    root : path-like
        The folder that the paths are relative to. It is stored relative to the manifest, so that both can be moved
        together.
    metadata : dict of str to str, optional
        Stored in the file's metadata.
    """
    path = Path(path)
    relative = os.path.relpath(os.path.abspath(root), os.path.abspath(path.parent))
    schema = SCHEMA.with_metadata({ROOT_KEY: path_text(relative),
                                   **{f"anl.{key}": str(value) for key, value in (metadata or {}).items()}})
    with atomic_file(path) as temporary, pq.ParquetWriter(temporary, schema, compression="zstd") as stream:
        yield lambda table: stream.write_table(table.cast(SCHEMA), row_group_size=ROW_GROUP)


def _schema(path):
    try:
        schema = pq.read_schema(path)
    except FileNotFoundError:
        raise UserError(f"{path} is missing; make it with `anl data index FOLDER`") from None
    except Exception as problem:
        raise UserError(f"{path} is not a manifest ({reason(problem)}); make it with `anl data index FOLDER`") from None
    missing = [name for name in SCHEMA.names if name not in schema.names and name != "phash"]
    if missing:
        raise UserError(f"{path} is not a manifest: it lacks the column(s) {', '.join(missing)}; make it with "
                        "`anl data index FOLDER`")
    return schema


def metadata(path):
    """{name: text} that the writer stored, including `root`."""
    found = _schema(path).metadata or {}
    return {key.decode().removeprefix("anl."): value.decode() for key, value in found.items() if key.startswith(b"anl.")}


def root_of(path):
    """The folder that the manifest's paths are relative to."""
    return Path(os.path.normpath(Path(path).parent / file_path(metadata(path).get("root", "."))))


def read(path, columns=None, **where):
    """Read a manifest, or some of its columns and rows.

    Parameters
    ----------
    path : path-like
    columns : list of str, optional
        All by default.
    **where : str, int or list
        Values of columns: `read(path, split="test", generator=["adm", "real"])`.

    Returns
    -------
    DataFrame
        The columns NAMES are categorical, which saves memory.

    Raises
    ------
    UserError
        If the file is missing, damaged, or not a manifest.
    """
    where = {name: [value] if isinstance(value, (str, int)) else list(value) for name, value in where.items()}
    present = _schema(path).names
    columns = [name for name in columns or SCHEMA.names if name in present]
    try:
        table = pq.read_table(path, columns=columns, filters=[(name, "in", values) for name, values in where.items()] or None,
                              read_dictionary=[name for name in NAMES if name in columns], pre_buffer=False)
        table.validate(full=True)  # invalid UTF-8, indices outside a dictionary
    except (OSError, MemoryError, pa.ArrowException) as problem:  # the footer is intact, the pages are not
        raise UserError(f"{path} is damaged ({reason(problem)}); index the images again") from None
    return table.unify_dictionaries().combine_chunks().to_pandas(split_blocks=True)


def sha256_prefix(column):
    """The first 64 bits of hex digests, uint64 (N,)."""
    text = "".join(digest[:16] for digest in column)
    return np.frombuffer(bytes.fromhex(text), ">u8").astype(np.uint64)
