import struct
import zlib

import pytest

from anl.data.rcc import read_rcc
from anl.errors import UserError


def make_rcc(files, version=3, compressed=()):
    """A Qt resource file of flat folders: {'folder/name': bytes}."""
    folders = sorted({path.split("/")[0] for path in files})
    names, data, offsets = b"", b"", {}
    for word in [*folders, *(path.split("/")[1] for path in files)]:
        offsets[word] = len(names)
        names += struct.pack(">HI", len(word), 0) + word.encode("utf-16-be")
    stamp = b"" if version == 1 else bytes(8)
    nodes = [struct.pack(">IHII", 0, 2, len(folders), 1) + stamp]
    leaves, first = [], 1 + len(folders)
    for folder in folders:
        mine = [path for path in files if path.startswith(f"{folder}/")]
        nodes.append(struct.pack(">IHII", offsets[folder], 2, len(mine), first + len(leaves)) + stamp)
        for path in mine:
            content, flags = files[path], 0
            if path in compressed:
                content, flags = struct.pack(">I", len(content)) + zlib.compress(content), 1
            leaves.append(struct.pack(">IHHHI", offsets[path.split("/")[1]], flags, 0, 0, len(data)) + stamp)
            data += struct.pack(">I", len(content)) + content
    header = 20 if version < 3 else 24
    tree = b"".join(nodes + leaves)
    places = struct.pack(">4I", version, header, header + len(tree), header + len(tree) + len(data))
    return b"qres" + places + (b"" if version < 3 else bytes(4)) + tree + data + names


FILES = {"erase/alpaca.webp": b"alpaca", "erase/café.webp": b"", "music/harp.webp": b"harp" * 100}


@pytest.mark.parametrize("version", [1, 2, 3])
@pytest.mark.parametrize("compressed", [(), ("music/harp.webp",)])
def test_every_file_comes_back(version, compressed):
    found = read_rcc(make_rcc(FILES, version, compressed))
    assert {path: content() for path, content in found.items()} == FILES


@pytest.mark.parametrize("content, words", [
    (b"", "is not a Qt resource file"), (b"PK\3\4 and more", "is not a Qt resource file"),
    (make_rcc(FILES)[:30], "damaged or cut short"),
    (make_rcc(FILES).replace(b"qres\0\0\0\3", b"qres\0\0\0\x09"), "of format 9; formats 1 to 3 are known"),
])
def test_what_cannot_be_read_is_named(content, words):
    with pytest.raises(UserError, match=words) as problem:
        read_rcc(content, "x.rcc")
    assert str(problem.value).startswith("x.rcc")


def test_damaged_content_is_named():
    whole = make_rcc(FILES, compressed=("music/harp.webp",))
    place = whole.index(b"\x78\x9c")
    found = read_rcc(whole[:place] + b"\0\0" + whole[place + 2:], "x.rcc")
    with pytest.raises(UserError, match="x.rcc:music/harp.webp is damaged"):
        found["music/harp.webp"]()


def test_a_tree_in_a_circle_ends():
    whole = bytearray(make_rcc({"a/b": b"x"}))
    struct.pack_into(">II", whole, 24 + 22 + 6, 1, 0)  # the folder's child is the root
    with pytest.raises(UserError, match="runs in a circle"):
        read_rcc(bytes(whole), "x.rcc")
