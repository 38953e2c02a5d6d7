"""List the files of a folder tree in a fixed order, and the folders that are not entered, with the reason."""

import os
from collections import deque
from typing import NamedTuple


class Entries(NamedTuple):
    """A folder: its path from the root (parts joined by "/"), sorted file names, and [(path, reason)] if it is not entered."""

    path: str
    files: list
    problems: list


class Folder(NamedTuple):
    """Number of files in a folder, and the name of the first."""

    files: int
    first: str


def walk(root):
    """Yield the Entries of every folder, parents first, names in the order of their bytes.

    Symbolic links are followed, and each folder (device and inode) is entered once. Folders reached through a link come
    last, so that a folder inside the tree is listed under its real path.
    """
    seen, stack, links = set(), [""], deque()
    while stack or links:
        path = stack.pop() if stack else links.popleft()
        try:
            status = os.stat(os.path.join(root, path))
            if (status.st_dev, status.st_ino) in seen:
                yield Entries(path, [], [(path, "symbolic link to a folder that is already listed")])
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(os.path.join(root, path)) as found:
                entries = sorted(found, key=lambda entry: os.fsencode(entry.name))
        except OSError as problem:
            yield Entries(path, [], [(path, f"folder cannot be read ({problem.strerror})")])
            continue
        files, below = [], []
        for entry in entries:
            inner = f"{path}/{entry.name}" if path else entry.name
            if entry.is_dir(follow_symlinks=False):
                below.append(inner)
            elif entry.is_symlink() and os.path.isdir(entry.path):
                links.append(inner)
            else:
                files.append(entry.name)
        stack.extend(reversed(below))
        yield Entries(path, files, [])


def survey(root):
    """The folders that contain files, {path: Folder}, and [(path, reason)] of those that are not entered."""
    folders, problems = {}, []
    for entries in walk(root):
        problems += entries.problems
        if entries.files:
            folders[entries.path] = Folder(len(entries.files), entries.files[0])
    return folders, problems
