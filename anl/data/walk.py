"""The files of a folder tree, in a fixed order, with what cannot be entered and why."""

import os
import unicodedata
from collections import deque
from typing import NamedTuple

LISTED = "symbolic link to a folder that is listed already"


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

    Symbolic links are followed, and each folder (device and inode) is entered once. Folders reached through a link come
    after all others, so that a folder of the tree is listed under its real path; a second way to a folder is a problem.
    """
    seen, stack, links = {_mark(root)}, [""], deque()
    while stack or links:
        if stack:
            path = stack.pop()
        else:
            path, mark = links.popleft()
            if mark in seen:
                yield Entries(path, [], [(path, LISTED)], [])
                continue
            seen.add(mark)
        try:
            with os.scandir(os.path.join(root, path)) as found:
                entries = sorted(found, key=lambda entry: os.fsencode(entry.name))
        except OSError as problem:
            yield Entries(path, [], [(path, f"folder cannot be read ({problem.strerror})")], [])
            continue
        files, here, below = [], [], []
        for entry in entries:
            inner = f"{path}/{entry.name}" if path else entry.name
            try:
                entry.stat()
                folder = entry.is_dir()
                mark = _mark(entry.path) if folder else None
            except OSError as problem:
                link = "symbolic link that leads nowhere or to itself" if entry.is_symlink() else "cannot be opened"
                here.append((inner, f"{link} ({problem.strerror})"))
                continue
            if not folder:
                files.append(entry.name)
            elif mark in seen:
                here.append((inner, LISTED))
            elif entry.is_symlink():
                links.append((inner, mark))
            else:
                seen.add(mark)
                below.append(inner)
        stack.extend(reversed(below))
        yield Entries(path, files, here, _clashes(path, entries))


def _mark(path):
    """What is the same for every path to one folder. os.stat, because DirEntry.stat has no inode on Windows."""
    status = os.stat(path)
    return status.st_dev, status.st_ino


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
