"""Files that are either whole or absent."""

import contextlib
import csv
import errno
import hashlib
import json
import math
import os
import tempfile
from pathlib import Path

from anl.errors import UserError


@contextlib.contextmanager
def whole_file(path):
    """Yield a temporary path beside `path`; rename it into place if the block ends well, remove it otherwise.

    Raises UserError, naming the file, when the disk is full or the folder cannot be written.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
    except OSError as problem:
        raise _disk_error(path, problem) from problem
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp makes private files; results are for everyone
        os.replace(temporary, path)
    except OSError as problem:
        if problem.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise _disk_error(path, problem) from problem
        raise
    finally:
        temporary.unlink(missing_ok=True)


def _disk_error(path, problem):
    return UserError(f"cannot write {path}: {problem.strerror or problem}; free some space or check the folder's "
                     "permissions, then run the same command again")


def write_text(path, text):
    """Write `text` (UTF-8) to `path`, whole or not at all."""
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path, value):
    """Write `value` as JSON with sorted keys, 6 significant digits and a final newline, so that a diff is readable."""
    write_text(path, json.dumps(rounded(value), indent=1, sort_keys=True, allow_nan=False) + "\n")


def read_json(path):
    """Read a JSON file. Raises UserError if it is missing or broken."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing; run `dvc repro` to make it") from None
    except json.JSONDecodeError as problem:
        raise UserError(f"{path} is not JSON ({problem}); delete it and run `dvc repro`") from None


def write_csv(path, rows, columns=None):
    """Write a list of dicts as CSV with fixed digits; `columns` fixes their order (default: that of the first row)."""
    columns = columns or list(rows[0])
    with whole_file(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows([{key: rounded(value) for key, value in row.items()} for row in rows])


def rounded(value, digits=6):
    """Round every float inside `value` to `digits` significant digits; numpy scalars become Python's, NaN None."""
    if isinstance(value, dict):
        return {str(key): rounded(item, digits) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(item, digits) for item in value]
    if hasattr(value, "tolist"):
        return rounded(value.tolist(), digits)
    if isinstance(value, float):
        return None if math.isnan(value) else float(f"{value:.{digits}g}")
    return value


def sha256_of(path):
    """Hex SHA-256 of a file, or of a folder's sorted relative names and contents."""
    path = Path(path)
    digest = hashlib.sha256()
    files = sorted(item for item in path.rglob("*") if item.is_file()) if path.is_dir() else [path]
    for file in files:
        if path.is_dir():
            digest.update(file.relative_to(path).as_posix().encode() + b"\0")
        with open(file, "rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def identity(value):
    """A short stable hash of a JSON-able value: the identity of a run, a target or a checkpoint."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]
