"""Archives of strangers, unpacked without trusting them: zip and tar (plain, gz, bz2, xz) into a new folder.

Nothing but plain files and folders is ever made, each inside the target: no links, no devices, no absolute or climbing
paths, no two members of one name. Members are written as a stream and counted as they are written, so that an archive
that lies about its size stops at the limit. Whoever needs a link in an archive unpacks it by hand.
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

from anl.errors import UserError

BLOCK = 1 << 20
ROOM = 64 << 20  # bytes that any archive may hold, whatever its own size
MAGIC = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\0": lzma.open}
OTHERS = {b"7z\xbc\xaf\x27\x1c": ("a 7z archive", "7z x"), b"Rar!\x1a\x07": ("a RAR archive", "unrar x"),
          b"\x28\xb5\x2f\xfd": ("compressed with zstd", "tar --zstd -xf")}
BROKEN = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, gzip.BadGzipFile)


@dataclass(frozen=True)
class Limits:
    """What an archive may unpack to. ratio: unpacked bytes per byte of the archive; bytes: at most, None for no other
    bound than the ratio. Photographs hardly compress: 1.1 is common, 20 is not a set of images."""

    files: int = 5_000_000
    ratio: float = 20.0
    bytes: int | None = None

    def most(self, packed):
        """Bytes that an archive of `packed` bytes may unpack to."""
        most = max(ROOM, self.ratio * packed)
        return int(most if self.bytes is None else min(most, max(ROOM, self.bytes)))


@dataclass(frozen=True)
class Unpacked:
    """files: number of files written; bytes: of their contents."""

    files: int
    bytes: int


NAMED = ((r"\.7z(\.\d+)?$", "a 7z archive", "7z x"), (r"\.(rar|r\d\d)$", "a RAR archive", "unrar x"),
         (r"\.(zst|tzst)$", "compressed with zstd", "tar --zstd -xf"),
         (r"\.(\d{3}|z\d\d)$", "a part of an archive in several parts", "7z x"))


def unreadable(name, start=b""):
    """(kind, program that reads it) of an archive that `unpack` cannot read, by its name or first bytes; else None."""
    found = [known for magic, known in OTHERS.items() if start.startswith(magic)]
    found += [(kind, program) for pattern, kind, program in NAMED if re.search(pattern, name, re.IGNORECASE)]
    return found[0] if found else None


def is_archive(path):
    """Whether a file is an archive of any kind named in this module."""
    path = Path(path)
    with open(path, "rb") as stream:
        start = stream.read(8)
    return start.startswith((b"PK", *MAGIC, *OTHERS)) or bool(re.search(r"\.(tar|zip)$", path.name)) \
        or unreadable(path.name) is not None


def unpack(archive, folder, limits=None, progress=None):
    """Unpack `archive` into `folder`, which is made if it is not there; returns Unpacked.

    progress: called with the bytes written since the last call. A folder that fails half-way is left as it is: unpack
    into a temporary one and rename it. Raises UserError, naming archive and member, on what is damaged, of an unknown
    kind, unsafe, or larger than `limits` allow, and when the disk cannot hold it.
    """
    archive, folder, limits = Path(archive), Path(folder), limits or Limits()
    try:
        packed = archive.stat().st_size
        with open(archive, "rb") as stream:
            start = stream.read(8)
    except OSError as problem:
        raise UserError(f"{archive} cannot be read: {problem.strerror}") from None
    for magic, (kind, program) in OTHERS.items():
        if start.startswith(magic):
            raise UserError(f"{archive.name} is {kind}, which Python cannot read by itself; unpack it with `{program} "
                            f"{archive.name}`, and give the folder with `--from FOLDER`")
    writer = _Writer(archive, folder, limits.files, limits.most(packed), progress or (lambda count: None))
    try:
        if start.startswith(b"PK"):
            _unpack_zip(archive, packed, writer)
        else:
            _unpack_tar(archive, packed, start, writer)
    except BROKEN as problem:
        raise UserError(f"{archive} is damaged or cut short ({type(problem).__name__}: {problem}); fetch it again") from None
    return Unpacked(writer.files, writer.bytes)


class _Writer:
    """Writes members into the folder; knows how many files and bytes there are already."""

    def __init__(self, archive, folder, most_files, most_bytes, progress):
        self.archive, self.folder, self.progress = archive, folder, progress
        self.most_files, self.most_bytes = most_files, most_bytes
        self.files = self.bytes = 0
        self.made = set()
        folder.mkdir(parents=True, exist_ok=True)

    def need(self, count):
        """Raise UserError if `count` more bytes pass the limit or the disk."""
        if self.bytes + count > self.most_bytes:
            raise self.refusal(f"it unpacks to more than {self.most_bytes:,} bytes, far more than its size or the "
                               "registry lets expect")
        free = shutil.disk_usage(self.folder).free
        if count > free:
            raise UserError(f"{self.archive.name} unpacks to {count:,} bytes more, and {self.folder.parent} has {free:,} "
                            "free; make room or choose another disk with `--to`")

    def refusal(self, reason):
        return UserError(f"{self.archive} is not safe to unpack: {reason}; if you trust it, unpack it by hand and give the "
                         "folder with `--from FOLDER`")

    def place(self, name, is_dir=False):
        """Path for the member `name`, its folders made. Raises UserError for a name that is not plainly inside."""
        shown = name.encode("unicode_escape", "replace").decode()[:120]
        parts = PurePosixPath(name).parts
        if not name or name.startswith("/") or re.match(r"[A-Za-z]:", name) or ".." in parts or "\\" in name:
            raise self.refusal(f"'{shown}' would be written outside the folder")
        if any(ord(letter) < 32 for letter in name) or any(len(os.fsencode(part)) > 255 for part in parts):
            raise self.refusal(f"'{shown}' is no name for a file")
        path = self.folder.joinpath(*parts)
        below = path if is_dir else path.parent
        if below not in self.made:
            try:
                below.mkdir(parents=True, exist_ok=True)
            except (FileExistsError, NotADirectoryError):
                raise self.refusal(f"'{shown}' is a file and a folder at once") from None
            self.made.add(below)
        return path

    def write(self, name, stream, size):
        """Write one member, `size` bytes by its header, whatever the stream then holds."""
        self.files += 1
        if self.files > self.most_files:
            raise self.refusal(f"it holds more than {self.most_files:,} files")
        if self.bytes + size > self.most_bytes or size > ROOM:
            self.need(size)
        try:
            with open(self.place(name), "xb") as target:
                written = 0
                while block := stream.read(min(BLOCK, size - written + 1)):
                    written += len(block)
                    if written > size:
                        raise self.refusal(f"'{name}' is larger than the archive says")
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
        _no_overlap(path, packed, members, archive.start_dir)
        if len(members) > writer.most_files:
            raise writer.refusal(f"it holds more than {writer.most_files:,} files")
        writer.need(sum(member.file_size for member in members))
        for member in members:
            # programs on Windows wrote backslashes; zip itself knows only the slash
            name = member.filename.replace("\\", "/") if member.create_system == 0 else member.filename
            kind = stat.S_IFMT(member.external_attr >> 16)
            if member.flag_bits & 1:
                raise UserError(f"{path} is encrypted; unpack it with its password and give the folder with `--from FOLDER`")
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise writer.refusal(f"'{name}' is a link or a device, not a plain file")
            if name.endswith("/"):
                writer.place(name, is_dir=True)
                continue
            try:
                with archive.open(member) as stream:
                    writer.write(name, stream, member.file_size)
            except NotImplementedError as problem:
                raise UserError(f"{path}: {problem}; unpack it with `7z x {path.name}` and give the folder with "
                                "`--from FOLDER`") from None


def _no_overlap(path, packed, members, end):
    """Raise UserError if two members share bytes: a zip bomb, or an archive that was put together wrongly."""
    if end > packed:
        raise zipfile.BadZipFile("its directory lies outside the file")
    for member in sorted(members, key=lambda member: member.header_offset, reverse=True):
        if member.header_offset + member.compress_size > end:
            raise UserError(f"{path} is damaged or a trap: '{member.filename}' overlaps what follows it (overlapped "
                            "components); fetch it again, or from another mirror")
        end = member.header_offset


def _unpack_tar(path, packed, start, writer):
    opener = next((opener for magic, opener in MAGIC.items() if start.startswith(magic)), open)
    if opener is open:
        writer.need(packed)
    with contextlib.ExitStack() as stack:
        stream = stack.enter_context(opener(path, "rb"))
        try:
            archive = stack.enter_context(tarfile.open(fileobj=stream, mode="r|"))
        except tarfile.ReadError:
            raise UserError(f"{path} is no archive that can be read here (zip, tar, tar.gz, tar.bz2, tar.xz); if it is the "
                            "first of several parts, unpack them together with `7z x` and give the folder with `--from "
                            "FOLDER`") from None
        while (member := archive.next()) is not None:
            archive.members = []  # it would keep every header it has seen
            if member.isdir():
                writer.place(member.name.rstrip("/") or ".", is_dir=True)
            elif member.isreg() and not member.sparse:
                writer.write(member.name, archive.extractfile(member), member.size)
            else:
                raise writer.refusal(f"'{member.name}' is a link or a device, not a plain file")
        _check_end(archive)


def _check_end(archive):
    """Raise EOFError unless the archive ends as tar ends, with empty blocks; tarfile takes any oddity for the end."""
    if archive.fileobj.tell() < archive.offset + tarfile.BLOCKSIZE:
        raise EOFError("its end is missing")
    while block := archive.fileobj.read(BLOCK):
        if block.strip(b"\0"):
            raise tarfile.ReadError("something that is no member stands between its members")
