"""The pictures that `anl detect` was asked for: files, folders, patterns, a list; read ahead in threads, in order."""

import collections
import glob
import os
from concurrent.futures import ThreadPoolExecutor

from anl.data.decode import Refused
from anl.data.walk import walk
from anl.errors import UserError, printable


def find(names, listed=()):
    """Yield (path, reason) for what the command's arguments name, each path once: reason None, or why it is not read.

    names: files, folders (searched with what is below them; links are followed, never in a circle), patterns such as
    `*.jpg`, and `-` for the list. listed: binary stream of paths, one a line, bytes that are not UTF-8 included.
    Raises UserError, before anything is read, if a name is nothing at all.
    """
    for name in names:
        if name != "-" and not os.path.lexists(name) and not glob.glob(name):
            raise UserError(f"there is no file, folder or match '{printable(name)}'; check the path")
    return _each(names, listed)


def without(found, file=None, folder=None):
    """The items of `find` but what the command itself writes: the file `file`, and what lies in `folder`."""
    file, folder = (None if path is None else os.path.realpath(path) for path in (file, folder))
    for path, reason in found:
        real = os.path.realpath(path) if file or folder else None
        if real is None or (real != file and os.path.dirname(real) != folder):
            yield path, reason


def _each(names, listed):
    seen = set()
    for name in names:
        for path, reason in _one(name, listed):
            if path not in seen:
                seen.add(path)
                yield path, reason


def _one(name, listed):
    if name == "-":
        for line in listed:
            if path := os.fsdecode(line.rstrip(b"\r\n")):
                yield path, None
    elif os.path.isdir(name):
        for entries in walk(name):
            folder = os.path.join(name, entries.path) if entries.path else name
            yield from ((os.path.join(name, inner), reason) for inner, reason in entries.problems)
            yield from ((os.path.join(folder, file), None) for file in entries.files)
    elif os.path.lexists(name):
        yield name, None
    else:
        yield from ((path, None) for path in sorted(glob.glob(name)) if not os.path.isdir(path))


def read_ahead(paths, read, workers=2, ahead=0):
    """Yield (path, read(path) or the Refused it raised) in the order of `paths`, computed in threads some way ahead.

    Memory holds at most `ahead` results, or three times `workers` where that is more, however long `paths` is. The threads
    never wait for who takes the results as long as he needs no more than `ahead` at once.
    """
    def guarded(path):
        try:
            return path, read(path)
        except Refused as problem:
            return path, problem

    with ThreadPoolExecutor(workers) as pool:
        waiting = collections.deque()
        try:
            for path in paths:
                waiting.append(pool.submit(guarded, path))
                if len(waiting) >= max(3 * workers, ahead):
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
