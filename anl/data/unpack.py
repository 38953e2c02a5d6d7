"""Safe unpacking of untrusted archives: zip and tar (plain, gz, bz2, xz).

Only plain files and folders inside the target are created: no links, no devices, no absolute paths, no paths with `..`,
and no member twice. Bytes are counted while they are written, because the sizes declared in an archive may be wrong.
"""

import bz2
import gzip
import lzma
import re
import shutil
import stat
import sys
import tarfile
import zipfile
import zlib
from functools import partial
from pathlib import PureWindowsPath

from tqdm import tqdm

from anl.io import UserError, printable, reason

BLOCK = 1 << 20
MOST_FILES = 5_000_000
RATIO = 20  # most unpacked bytes per byte of the archive; photographs hardly compress
MIN_BYTES = 64 << 20  # unpacked bytes that are allowed for every archive
COMPRESSIONS = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\0": lzma.open}
# (first bytes, pattern of the name, kind, program) of archives that are not unpacked here
FOREIGN = ((b"7z\xbc\xaf\x27\x1c", r"\.7z(\.\d+)?$", "a 7z archive", "7z x"),
           (b"Rar!\x1a\x07", r"\.(rar|r\d\d)$", "a RAR archive", "unrar x"),
           (b"\x28\xb5\x2f\xfd", r"\.(zst|tzst)$", "compressed with zstd", "tar --zstd -xf"),
           (None, r"\.(\d{3}|z\d\d)$", "part of a multi-part archive", "7z x"))
BROKEN = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, gzip.BadGzipFile)
BY_HAND = "unpack it by hand and give the folder with `--from FOLDER`"


def unreadable(name, start=b""):
    """(kind, program) of an archive that `unpack` cannot read, by its first bytes or its name; None otherwise."""
    known = [entry for entry in FOREIGN if entry[0] and start.startswith(entry[0])]
    known += [entry for entry in FOREIGN if re.search(entry[1], name, re.IGNORECASE)]
    return known[0][2:] if known else None


def is_archive(name):
    """Whether a file's name has the suffix of an archive that `unpack` can read."""
    return bool(re.search(r"\.(zip|tgz|tar(\.(gz|bz2|xz))?)$", name, re.IGNORECASE))


def unpack(archive, folder, most_files=MOST_FILES, most_bytes=None):
    """Unpack an archive.

    Parameters
    ----------
    archive, folder : Path
        The target folder is created; after a failure it holds what was unpacked so far.
    most_files, most_bytes : int
        Limits on the unpacked files and bytes. Bytes are always limited to RATIO times the archive's size, too, but
        MIN_BYTES are always allowed.

    Raises
    ------
    UserError
        If the archive is damaged, unsafe, of an unknown kind, over the limits, or too large for the disk.
    """
    def refusal(why):
        return UserError(f"{archive} is not safe to unpack: {why}; if you trust it, {BY_HAND}")

    with open(archive, "rb") as stream:
        start = stream.read(8)
    if known := unreadable("", start):
        raise UserError(f"{archive} is {known[0]}, which Python cannot unpack; run `{known[1]} {archive.name}` and give the "
                        "folder with `--from FOLDER`")
    packed = archive.stat().st_size
    left = max(MIN_BYTES, min(RATIO * packed, most_bytes or RATIO * packed))
    folder.mkdir(parents=True, exist_ok=True)
    if packed > (free := shutil.disk_usage(folder).free):
        raise UserError(f"{archive} unpacks to {packed:,} bytes or more, and {folder} has {free:,} free; free some space or "
                        "choose another disk with `--to`")
    members = _zip_members(archive) if start.startswith(b"PK") else _tar_members(archive, start)
    files = 0
    try:
        with tqdm(desc=f"unpacking {archive.name}", unit="B", unit_scale=True, file=sys.stderr, disable=None, delay=1) as bar:
            for name, is_folder, is_file, opened in members:
                shown, place = printable(name)[:120], PureWindowsPath(name)  # which knows the separators of both systems
                if not (is_folder or is_file):
                    raise refusal(f"'{shown}' is a link or a device")
                if place.anchor or ".." in place.parts:
                    raise refusal(f"'{shown}' would be written outside the folder")
                path = folder / name
                (path if is_folder else path.parent).mkdir(parents=True, exist_ok=True)
                if is_folder:
                    continue
                files += 1
                if files > most_files:
                    raise refusal(f"it holds more than {most_files:,} files")
                with opened() as source, open(path, "xb") as target:
                    while block := source.read(BLOCK):
                        bar.update(len(block))
                        left -= len(block)
                        if left < 0:
                            raise refusal("it unpacks to far more bytes than expected")
                        target.write(block)
    except BROKEN as problem:
        raise UserError(f"{archive} is damaged, or no zip, tar, tar.gz, tar.bz2 or tar.xz archive ({reason(problem)}); "
                        f"fetch it again, or {BY_HAND}") from None
    except NotImplementedError as problem:
        raise UserError(f"{archive} cannot be unpacked by Python ({reason(problem)}); {BY_HAND}") from None
    except OSError as problem:  # a full disk, a name that is too long or occurs twice
        raise UserError(f"{archive} cannot be unpacked ({reason(problem, 300)}); free some space if the disk is full, or "
                        f"{BY_HAND}") from None


def _zip_members(path):
    """Yield (name, whether it is a folder, whether it is a plain file, function that opens it)."""
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if member.flag_bits & 1:
                raise NotImplementedError("it is encrypted")
            plain = stat.S_IFMT(member.external_attr >> 16) in (0, stat.S_IFREG)
            # some programs on Windows write backslashes; the standard allows slashes only
            yield member.filename.replace("\\", "/"), member.is_dir(), plain, partial(archive.open, member)


def _tar_members(path, start):
    opener = next((opener for magic, opener in COMPRESSIONS.items() if start.startswith(magic)), open)
    with opener(path, "rb") as stream, tarfile.open(fileobj=stream, mode="r|") as archive:
        while (member := archive.next()) is not None:
            archive.members = []  # otherwise tarfile keeps every header in memory
            yield member.name, member.isdir(), member.isreg(), partial(archive.extractfile, member)
        # tarfile accepts anything as the end; the format requires empty blocks
        if archive.fileobj.tell() < archive.offset + tarfile.BLOCKSIZE:
            raise EOFError("its end is missing")
        while block := archive.fileobj.read(BLOCK):
            if block.strip(b"\0"):
                raise tarfile.ReadError("invalid data between members")
