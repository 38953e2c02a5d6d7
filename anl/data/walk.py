"""The files of a folder tree, in a fixed order, and what cannot be entered."""

import os
import unicodedata
from collections import deque
from typing import NamedTuple

LISTED = "symbolic link to a folder that is already listed"


class Entries(NamedTuple):
    """A folder: its path from the root (parts joined by "/"), sorted file names, [(path, reason)] of entries that cannot be
    read, and pairs of names that are equal on file systems that ignore case or Unicode form."""

    path: str
    files: list
    problems: list
    clashes: list


class Folder(NamedTuple):
    """Number of files, and the name of the first."""

    files: int
    first: str


def walk(root):
    """Yield the Entries of every folder, parents first, names in the order of their bytes.

    Symbolic links are followed, and each folder (device and inode) is entered once. Folders reached through a link come
    last, so that a folder inside the tree is listed under its real path.
    """
    seen, stack, links = {_inode(root)}, [""], deque()
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
        files, problems, below = [], [], []
        for entry in entries:
            inner = f"{path}/{entry.name}" if path else entry.name
            try:
                entry.stat()
                mark = _inode(entry.path) if entry.is_dir() else None
            except OSError as problem:
                what = "broken or circular symbolic link" if entry.is_symlink() else "cannot be opened"
                problems.append((inner, f"{what} ({problem.strerror})"))
                continue
            if mark is None:
                files.append(entry.name)
            elif mark in seen:
                problems.append((inner, LISTED))
            elif entry.is_symlink():
                links.append((inner, mark))
            else:
                seen.add(mark)
                below.append(inner)
        stack.extend(reversed(below))
        yield Entries(path, files, problems, _clashes(path, entries))


def _inode(path):
    status = os.stat(path)  # DirEntry.stat has no inode on Windows
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
    """The folders that contain files, {path: Folder}, and all pairs of clashing names."""
    folders, clashes = {}, []
    for entries in walk(root):
        clashes += entries.clashes
        if entries.files:
            folders[entries.path] = Folder(len(entries.files), entries.files[0])
    return folders, clashes
