"""Resumable download of one file over HTTP, checked against its size and hash before it gets its final name."""

import hashlib
import os
import shutil
import sys
import time

import requests
from tqdm import tqdm

from anl.io import UserError, reason

BLOCK = 1 << 20
TIMEOUT = (10, 60)  # seconds to connect, and between two blocks
TEMPORARY = {408, 425, 429, 500, 502, 503, 504}  # statuses after which another attempt may succeed
TRIES = 6  # attempts in a row without progress; the pause between them doubles from 1 s
BY_HAND = "download it by hand and give it with `--from PATH`"


def download(file, path):
    """Download a file, or continue an interrupted download (PATH.part). An existing file is only checked.

    Parameters
    ----------
    file : anl.data.registry.File
        The URL, and size and hashes if known. A hash also detects a file whose parts come from two versions.
    path : Path
        Where the file is written.

    Returns
    -------
    str
        SHA-256 of the file.

    Raises
    ------
    UserError
        If the file is not available, has another size or hash (it is removed), does not fit on the disk, or the connection
        fails (what has been downloaded is kept).
    """
    part = path.with_name(f"{path.name}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_file():
        os.replace(path, part)
    else:
        _download(file.url, part)
    try:
        found = check(file, part)
    except UserError:
        part.unlink()
        raise
    os.replace(part, path)
    return found


def check(file, path):
    """SHA-256 of a local file. Raises UserError if its size or a hash is not the one of `file`."""
    found = {"bytes": path.stat().st_size, "sha256": _hash(path, "sha256"), "md5": _hash(path, "md5") if file.md5 else None}
    for name, value in found.items():
        wanted = getattr(file, name)
        if wanted is not None and value != wanted:
            raise UserError(f"{path} is not the registry's file: {name} {value}, expected {wanted}; fetch it again; if it "
                            "still differs, the publisher has changed it")
    return found["sha256"]


def _hash(path, name):
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.new(name, usedforsecurity=False)).hexdigest()


def _length(path):
    return path.stat().st_size if path.is_file() else 0


def _download(url, part):
    failures = 0
    while True:
        before = _length(part)
        try:
            return _request(url, part)
        except requests.RequestException as problem:
            status = None if problem.response is None else problem.response.status_code
            if status is not None and status not in TEMPORARY:
                raise UserError(f"{url} is not available (status {status}); look at the data set's page, which may require "
                                f"a login or an agreement, and {BY_HAND}") from None
            failures = 1 if _length(part) > before else failures + 1
            why = f"{type(problem).__name__}: {reason(problem)}"
            if failures == TRIES:
                raise UserError(f"{url} cannot be downloaded ({why}); {_length(part):,} bytes are kept, run the same command "
                                f"again to continue, or {BY_HAND}") from None
            print(f"{part.stem}: {why}; trying again in {2 ** (failures - 1)} s", file=sys.stderr)
            time.sleep(2 ** (failures - 1))


def _request(url, part):
    """One request: append the missing bytes to `part`, or write it anew if the server sends the whole file."""
    start = _length(part)
    # a server that compressed the file would change lengths and ranges
    headers = {"Accept-Encoding": "identity", "User-Agent": "anl"} | ({"Range": f"bytes={start}-"} if start else {})
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
        if start and response.status_code == 416:  # nothing is missing
            return
        response.raise_for_status()
        length, free = int(response.headers.get("Content-Length", 0)), shutil.disk_usage(part.parent).free
        if length > free:
            raise UserError(f"{url}: {length:,} bytes remain, and {part.parent} has {free:,} free; free some space or choose "
                            "another disk with `--to`")
        start, mode = (start, "ab") if response.status_code == 206 else (0, "wb")
        total = start + length if length else None
        with open(part, mode) as target, tqdm(desc=part.stem, initial=start, total=total, unit="B", unit_scale=True,
                                              disable=None) as bar:
            for block in response.iter_content(BLOCK):
                target.write(block)
                bar.update(len(block))
