"""Safe unpacking of untrusted archives: zip and tar (plain, gz, bz2, xz).

Only plain files and folders inside the target are created: no links, no devices, no absolute or climbing paths, no member
twice. Members are streamed and counted while they are written, so that an archive that lies about its size stops at the limit.
"""

import bz2
import contextlib
import gzip
import lzma
import os
import re
import shutil
import stat
import tarfile
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from anl.io import UserError

BLOCK = 1 << 20
MIN_BYTES = 64 << 20  # bytes that any archive may unpack to, independent of its size
COMPRESSIONS = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\0": lzma.open}
# (first bytes, pattern of the name, kind, program) of archives that are not unpacked here
FOREIGN = ((b"7z\xbc\xaf\x27\x1c", r"\.7z(\.\d+)?$", "a 7z archive", "7z x"),
           (b"Rar!\x1a\x07", r"\.(rar|r\d\d)$", "a RAR archive", "unrar x"),
           (b"\x28\xb5\x2f\xfd", r"\.(zst|tzst)$", "compressed with zstd", "tar --zstd -xf"),
           (None, r"\.(\d{3}|z\d\d)$", "part of a multi-part archive", "7z x"))
BROKEN = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, gzip.BadGzipFile)
BY_HAND = "unpack it by hand and give the folder with `--from FOLDER`"


@dataclass(frozen=True)
class Limits:
    """What an archive may unpack to: files, unpacked bytes per byte of the archive, and bytes (None: only the ratio limits).

    Photographs hardly compress: a ratio of 1.1 is common, 20 is no image set.
    """

    files: int = 5_000_000
    ratio: float = 20.0
    bytes: int | None = None

    def most(self, packed):
        """Bytes that an archive of `packed` bytes may unpack to."""
        most = max(MIN_BYTES, self.ratio * packed)
        return int(most if self.bytes is None else min(most, max(MIN_BYTES, self.bytes)))


@dataclass(frozen=True)
class Unpacked:
    """Number of files written, and bytes of their contents."""

    files: int
    bytes: int


def unreadable(name, start=b""):
    """(kind, program) of an archive that `unpack` cannot read, by its first bytes or its name; None otherwise."""
    known = [entry for entry in FOREIGN if entry[0] and start.startswith(entry[0])]
    known += [entry for entry in FOREIGN if re.search(entry[1], name, re.IGNORECASE)]
    return known[0][2:] if known else None


def is_archive(path):
    """Whether a file is an archive that this module knows, including those it cannot unpack."""
    path, start = Path(path), _start(path)
    return start.startswith((b"PK", *COMPRESSIONS)) or bool(re.search(r"\.(tar|zip)$", path.name)) \
        or unreadable(path.name, start) is not None


def _start(path):
    with open(path, "rb") as stream:
        return stream.read(8)


def unpack(archive, folder, limits=None, progress=None):
    """Unpack an archive.

    Parameters
    ----------
    archive, folder : path-like
        The target folder is created; after a failure it holds what was unpacked so far.
    limits : Limits, optional
        What the archive may unpack to.
    progress : callable, optional
        Called with the bytes written since the last call.

    Returns
    -------
    Unpacked

    Raises
    ------
    UserError
        If the archive is damaged, unsafe, of an unknown kind, over the limits, or too large for the disk.
    """
    archive, folder, limits = Path(archive), Path(folder), limits or Limits()
    try:
        packed, start = archive.stat().st_size, _start(archive)
    except OSError as problem:
        raise UserError(f"{archive} cannot be read ({problem.strerror}); give another file") from None
    if known := unreadable("", start):
        raise UserError(f"{archive.name} is {known[0]}, which Python cannot unpack; run `{known[1]} {archive.name}` and give the "
                        "folder with `--from FOLDER`")
    writer = _Writer(archive, folder, limits.files, limits.most(packed), progress or (lambda count: None))
    try:
        if start.startswith(b"PK"):
            _unpack_zip(archive, packed, writer)
        else:
            _unpack_tar(archive, packed, start, writer)
    except BROKEN as problem:
        raise UserError(f"{archive} is damaged or truncated ({type(problem).__name__}: {problem}); fetch it again") from None
    return Unpacked(writer.files, writer.bytes)


class _Writer:
    """Writes members into the folder and counts files and bytes."""

    def __init__(self, archive, folder, most_files, most_bytes, progress):
        self.archive, self.folder, self.progress = archive, folder, progress
        self.most_files, self.most_bytes = most_files, most_bytes
        self.files = self.bytes = 0
        self.folders = set()
        folder.mkdir(parents=True, exist_ok=True)

    def refusal(self, why):
        return UserError(f"{self.archive} is not safe to unpack: {why}; if you trust it, {BY_HAND}")

    def reserve(self, count):
        """Raise UserError if `count` more bytes exceed the limit or the disk."""
        if self.bytes + count > self.most_bytes:
            raise self.refusal(f"it unpacks to more than {self.most_bytes:,} bytes, far more than expected")
        free = shutil.disk_usage(self.folder).free
        if count > free:
            raise UserError(f"{self.archive.name} needs {count:,} more bytes, and {self.folder.parent} has {free:,} free; free some "
                            "space or choose another disk with `--to`")

    def place(self, name, is_dir=False):
        """Path of the member `name`, with its folders created. Raises UserError for names that leave the folder."""
        shown = name.encode("unicode_escape", "replace").decode()[:120]
        parts = PurePosixPath(name).parts
        if not name or name.startswith("/") or re.match(r"[A-Za-z]:", name) or ".." in parts or "\\" in name:
            raise self.refusal(f"'{shown}' would be written outside the folder")
        if any(ord(letter) < 32 for letter in name) or any(len(os.fsencode(part)) > 255 for part in parts):
            raise self.refusal(f"'{shown}' is not a valid file name")
        path = self.folder.joinpath(*parts)
        below = path if is_dir else path.parent
        if below not in self.folders:
            try:
                below.mkdir(parents=True, exist_ok=True)
            except (FileExistsError, NotADirectoryError):
                raise self.refusal(f"'{shown}' is both a file and a folder") from None
            self.folders.add(below)
        return path

    def write(self, name, stream, size):
        """Write a member of `size` bytes according to its header, even if the stream holds more."""
        self.files += 1
        if self.files > self.most_files:
            raise self.refusal(f"it holds more than {self.most_files:,} files")
        if self.bytes + size > self.most_bytes or size > MIN_BYTES:
            self.reserve(size)
        written = 0
        try:
            with open(self.place(name), "xb") as target:
                while block := stream.read(min(BLOCK, size - written + 1)):
                    written += len(block)
                    if written > size:
                        raise self.refusal(f"'{name}' is larger than the archive states")
                    target.write(block)
        except (FileExistsError, IsADirectoryError):
            raise self.refusal(f"two members are called '{name}'") from None
        if written < size:
            raise EOFError(f"'{name}' ends after {written} of {size} bytes")
        self.bytes += written
        self.progress(written)


def _unpack_zip(path, packed, writer):
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        _check_overlap(path, packed, members, archive.start_dir)
        if len(members) > writer.most_files:
            raise writer.refusal(f"it holds more than {writer.most_files:,} files")
        writer.reserve(sum(member.file_size for member in members))
        for member in members:
            # some programs on Windows write backslashes; the standard allows slashes only
            name = member.filename.replace("\\", "/") if member.create_system == 0 else member.filename
            if member.flag_bits & 1:
                raise UserError(f"{path} is encrypted; {BY_HAND}")
            if stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise writer.refusal(f"'{name}' is a link or a device")
            if name.endswith("/"):
                writer.place(name, is_dir=True)
                continue
            try:
                with archive.open(member) as stream:
                    writer.write(name, stream, member.file_size)
            except NotImplementedError as problem:
                raise UserError(f"{path}: {problem}; {BY_HAND}") from None


def _check_overlap(path, packed, members, end):
    """Raise if two members share bytes: a zip bomb, or a damaged archive."""
    if end > packed:
        raise zipfile.BadZipFile("its directory lies outside the file")
    for member in sorted(members, key=lambda member: member.header_offset, reverse=True):
        if member.header_offset + member.compress_size > end:
            raise UserError(f"{path} is damaged or malicious: '{member.filename}' overlaps the next member (overlapped "
                            "components); fetch it again, or from another mirror")
        end = member.header_offset


def _unpack_tar(path, packed, start, writer):
    opener = next((opener for magic, opener in COMPRESSIONS.items() if start.startswith(magic)), open)
    if opener is open:
        writer.reserve(packed)
    with contextlib.ExitStack() as stack:
        stream = stack.enter_context(opener(path, "rb"))
        try:
            archive = stack.enter_context(tarfile.open(fileobj=stream, mode="r|"))
        except tarfile.ReadError:
            raise UserError(f"{path} is not a zip, tar, tar.gz, tar.bz2 or tar.xz archive; {BY_HAND}") from None
        while (member := archive.next()) is not None:
            archive.members = []  # it would keep all headers
            if member.isdir():
                writer.place(member.name.rstrip("/") or ".", is_dir=True)
            elif member.isreg() and not member.sparse:
                writer.write(member.name, archive.extractfile(member), member.size)
            else:
                raise writer.refusal(f"'{member.name}' is a link or a device")
        # tarfile accepts anything as the end; the format requires empty blocks
        if archive.fileobj.tell() < archive.offset + tarfile.BLOCKSIZE:
            raise EOFError("its end is missing")
        while block := archive.fileobj.read(BLOCK):
            if block.strip(b"\0"):
                raise tarfile.ReadError("invalid data between members")
