"""Atomic files, JSON, hashes, processor cores, and the error that a user reads."""

import contextlib
import errno
import hashlib
import json
import math
import os
import shutil
import tempfile
from difflib import get_close_matches
from pathlib import Path

__all__ = ["UserError", "atomic_file", "atomic_folder", "cores", "identity", "pick", "printable", "read_json", "reason",
           "rounded", "sha256_of", "suggestion", "write_json", "write_text"]

DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG)
IN_THE_WAY = {errno.EEXIST: "a file has the name of a folder in that path", errno.ENOTDIR: "a file has the name of a folder in that path",
              errno.EISDIR: "that is a folder"}


class UserError(Exception):
    """A mistake that the user can correct. The command line prints its message as one line and exits with status 2."""


def reason(problem, most=120):
    """Message of another library's error, shortened for use in a UserError: one line of at most `most` printable characters."""
    words = printable(" ".join(str(problem).split()))
    return words[:most] or type(problem).__name__


def printable(text):
    """`text` with control characters and undecodable bytes escaped, so that any terminal or file can show it."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in text)


def suggestion(name, known):
    """A hint for an unknown name: the most similar known name, or all of them."""
    known = [str(one) for one in known if one]
    close = get_close_matches(str(name), known, 1)
    return f"did you mean '{close[0]}'?" if close else f"choose one of {', '.join(known)}" if known else "none are here"


def pick(what, name, known):
    """Return `name` if it is in `known`. Otherwise raise UserError with a suggestion."""
    if name not in known:
        raise UserError(f"there is no {what} '{name}'; {suggestion(name, known)}")
    return name


def cores():
    """Number of processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS and Windows
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextlib.contextmanager
def atomic_file(path):
    """Yield a temporary path in the same folder that replaces `path` when the block ends without an error.

    Raises
    ------
    UserError
        If the disk is full or the folder cannot be written; the message names the file.
    """
    path = Path(path)
    with _disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            temporary.chmod(0o666 & ~_umask())  # mkstemp makes private files
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path, *, replace=False):
    """Yield a new folder next to `path` that is renamed to `path` when the block ends without an error.

    Parameters
    ----------
    path : path-like
        The folder to create.
    replace : bool
        Whether an existing folder is replaced. Only for folders that the project made, because the old content is lost.

    Raises
    ------
    UserError
        If `path` exists, is not empty and `replace` is false, or the parent folder cannot be written.
    """
    path = Path(path)
    occupied = path.is_file() or path.is_symlink() or (path.is_dir() and any(path.iterdir()))
    if occupied and not (replace and path.is_dir() and not path.is_symlink()):
        raise UserError(f"{path} already exists and is not empty; remove it or choose another folder")
    with _disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".new"))
        try:
            yield temporary
            temporary.chmod(0o777 & ~_umask())
            if path.exists():
                shutil.rmtree(path)
            temporary.rename(path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def _disk_errors(path):
    """Turn the error of a full disk or of a folder that cannot be written into a UserError that names `path`."""
    try:
        yield
    except OSError as problem:
        if problem.errno not in DISK_ERRORS:
            raise
        if problem.errno in IN_THE_WAY:
            raise UserError(f"cannot write {path}: {IN_THE_WAY[problem.errno]}; choose another name") from problem
        raise UserError(f"cannot write {path}: {problem.strerror}; free some space or check the folder's permissions, then "
                        "run the same command again") from problem


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_text(path, text):
    """Write `text` as UTF-8."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path, value):
    """Write `value` as JSON with sorted keys and floats of 6 significant digits, so that a diff is readable."""
    write_text(path, json.dumps(rounded(value), indent=1, sort_keys=True, allow_nan=False) + "\n")


def read_json(path, fix="run `dvc repro`"):
    """Read a JSON file. Raises UserError, whose message contains the advice `fix`, if it is missing or broken."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing; {fix} to make it") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as problem:
        raise UserError(f"{path} is not JSON ({reason(problem)}); delete it and {fix}") from None


def rounded(value, digits=6):
    """Round floats to `digits` significant digits; numpy values become Python values, NaN becomes None."""
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
    """A short stable hash (12 hex digits) of a JSON-able value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]
