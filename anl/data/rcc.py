"""Reads Qt's binary resource files (.rcc), in which some packages ship their pictures."""

import struct
import zlib

from anl.errors import UserError

MAGIC = b"qres"
ZLIB, FOLDER, ZSTD = 1, 2, 4  # flags of a node


def read_rcc(content, name="resource file"):
    """The files inside an .rcc file: dict path (no leading slash) -> function that returns the file's bytes.

    content: the whole .rcc as bytes, format 1 to 3; name: what to call it in an error. Raises UserError on anything
    else, on a truncated file, and on zstd compression where Python has no module for it (before 3.14).
    """
    try:
        if content[:4] != MAGIC:
            raise UserError(f"{name} is not a Qt resource file")
        version, tree, data, names = struct.unpack_from(">4I", content, 4)
        if version not in (1, 2, 3):
            raise UserError(f"{name} is a Qt resource file of format {version}; formats 1 to 3 are known")
        node_size = 14 if version == 1 else 22  # from format 2 on, 8 more bytes say when the file was changed
        files, seen = {}, set()

        def walk(index, folder):
            if index in seen:
                raise UserError(f"{name} is damaged: its tree runs in a circle")
            seen.add(index)
            offset = tree + index * node_size
            name_offset, flags = struct.unpack_from(">IH", content, offset)
            path = folder + _name_at(content, names + name_offset) if index else folder
            if flags & FOLDER:
                count, first = struct.unpack_from(">II", content, offset + 6)
                for child in range(first, first + count):
                    walk(child, f"{path}/" if index else path)
            else:
                _, _, data_offset = struct.unpack_from(">HHI", content, offset + 6)
                files[path] = lambda: _data_at(content, data + data_offset, flags, f"{name}:{path}")

        walk(0, "")
        return files
    except (struct.error, UnicodeDecodeError, RecursionError):
        raise UserError(f"{name} is damaged or cut short") from None


def _name_at(content, offset):
    length, _ = struct.unpack_from(">HI", content, offset)
    return content[offset + 6:offset + 6 + 2 * length].decode("utf-16-be")


def _data_at(content, offset, flags, name):
    try:
        (size,) = struct.unpack_from(">I", content, offset)
        stored = content[offset + 4:offset + 4 + size]
        if len(stored) != size:
            raise UserError(f"{name} is cut short")
        if flags & ZLIB:
            return zlib.decompress(stored[4:])  # qCompress puts the inflated size in front
        return _unzstd(stored, name) if flags & ZSTD else stored
    except (struct.error, zlib.error):
        raise UserError(f"{name} is damaged") from None


def _unzstd(stored, name):
    try:
        from compression import zstd
    except ImportError:
        raise UserError(f"{name} is compressed with zstd, which Python reads from version 3.14 on") from None
    return zstd.decompress(stored)
