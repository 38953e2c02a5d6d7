"""The files of a folder tree, in a fixed order, with what cannot be entered and why."""

import os
import unicodedata
from typing import NamedTuple


class Entries(NamedTuple):
    """path: from the root, parts joined by "/". files: sorted names. problems: [(path, reason)]. clashes: pairs of names
    that differ in case or Unicode form only, and are one name on some file systems."""

    path: str
    files: list
    problems: list
    clashes: list


class Folder(NamedTuple):
    """files: how many. first: the name of one of them."""

    files: int
    first: str


def walk(root):
    """Yield Entries of every folder, parents first, names in the order of their bytes.

    Symbolic links are followed, once round: a link to a folder that leads back to one of its own parents is a problem.
    """
    start = os.stat(root)
    stack = [("", frozenset([(start.st_dev, start.st_ino)]))]
    while stack:
        path, above = stack.pop()
        try:
            with os.scandir(os.path.join(root, path)) as found:
                entries = sorted(found, key=lambda entry: os.fsencode(entry.name))
        except OSError as problem:
            yield Entries(path, [], [(path, f"folder cannot be read ({problem.strerror})")], [])
            continue
        files, problems, below = [], [], []
        for entry in entries:
            inner = f"{path}/{entry.name}" if path else entry.name
            try:
                status = entry.stat()
                folder = entry.is_dir()
            except OSError as problem:
                link = "symbolic link that leads nowhere or to itself" if entry.is_symlink() else "cannot be opened"
                problems.append((inner, f"{link} ({problem.strerror})"))
                continue
            mark = (status.st_dev, status.st_ino)
            if not folder:
                files.append(entry.name)
            elif mark in above:
                problems.append((inner, "symbolic link that leads back to a folder above it"))
            else:
                below.append((inner, above | {mark}))
        stack.extend(reversed(below))
        yield Entries(path, files, problems, _clashes(path, entries))


def _clashes(path, entries):
    seen, found = {}, []
    for entry in entries:
        key = unicodedata.normalize("NFC", entry.name).casefold()
        if key in seen:
            found.append((f"{path}/{seen[key]}", f"{path}/{entry.name}"))
        seen[key] = entry.name
    return found


def survey(root):
    """{path: Folder} of the folders that hold files, and the pairs of clashing names."""
    folders, clashes = {}, []
    for entries in walk(root):
        clashes += entries.clashes
        if entries.files:
            folders[entries.path] = Folder(len(entries.files), entries.files[0])
    return folders, clashes
