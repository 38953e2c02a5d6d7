"""Whether files changed during a run, whose output may then mix two versions."""

import hashlib
import os
import sys
from pathlib import Path

LEFT_OUT = ("__pycache__", ".ipynb_checkpoints")  # made by reading, not by editing


def fingerprints(paths):
    """{path: (SHA-256, size, time of change in ns)} of files, and of the files in folders; a missing path stands as None.

    The time is part of it because a file that was edited and put back has been read in between, by whom nobody knows.
    """
    found = {}
    for path in map(Path, paths):
        if not path.exists():
            found[str(path)] = None
        for file in _files(path):
            status = file.stat()
            with open(file, "rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
            found[str(file)] = (digest, status.st_size, status.st_mtime_ns)
    return found


def changed(before, after):
    """Sorted paths that differ between two `fingerprints`: edited, added or removed."""
    return sorted(path for path in before.keys() | after.keys() if before.get(path) != after.get(path))


def _files(path):
    if path.is_file():
        return [path]
    return sorted(item for item in path.rglob("*")
                  if item.is_file() and not set(LEFT_OUT) & set(item.relative_to(path).parts))


def edited(since_ns, params):
    """Paths of this process's `anl` modules, and of the file `params`, that changed after `since_ns` (ns since the epoch).

    DVC hashes a stage's inputs when the stage has ended, so an edit during the run is recorded as what made the outputs.
    Modules of the command line decide nothing and are left out; a notebook's kernel is another process, not seen here.
    """
    read = [loaded.__file__ for module, loaded in sorted(sys.modules.items())
            if module.partition(".")[0] == "anl" and not module.startswith("anl.cli") and getattr(loaded, "__file__", None)]
    return [os.path.relpath(path) for path in [*read, params]
            if not os.path.exists(path) or os.stat(path).st_mtime_ns > since_ns]
