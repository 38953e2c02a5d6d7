import csv
import hashlib
import importlib.util
import shutil
import struct
import subprocess
import zlib

import pytest

from anl.data.photos import CARD_COLUMNS
from anl.io import UserError
from tests.conftest import ROOT

SPEC = importlib.util.spec_from_file_location("rebuild_photos", ROOT / "data/rebuild_photos.py")
script = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(script)
PHOTOS = {"hill.jpg": ("wallpapers", "/usr/share/backgrounds/hill.jpg", b"hill"), "fox.webp": ("games", "rcc:erase/fox.webp", b"fox"),
          "harp.webp": ("games", "rcc:music/harp.webp", b"harp" * 100)}
RIGHT = {name: content for name, (_, _, content) in PHOTOS.items()}


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
        inside = [path for path in files if path.startswith(f"{folder}/")]
        nodes.append(struct.pack(">IHII", offsets[folder], 2, len(inside), first + len(leaves)) + stamp)
        for path in inside:
            content, flags = files[path], 0
            if path in compressed:
                content, flags = struct.pack(">I", len(content)) + zlib.compress(content), 1
            leaves.append(struct.pack(">IHHHI", offsets[path.split("/")[1]], flags, 0, 0, len(data)) + stamp)
            data += struct.pack(">I", len(content)) + content
    header, tree = 20 if version < 3 else 24, b"".join(nodes + leaves)
    places = struct.pack(">4I", version, header, header + len(tree), header + len(tree) + len(data))
    return b"qres" + places + (b"" if version < 3 else bytes(4)) + tree + data + names


@pytest.fixture
def card(tmp_path):
    with open(tmp_path / "card.csv", "w", newline="") as stream:
        writer = csv.DictWriter(stream, CARD_COLUMNS)
        writer.writeheader()
        for name, (package, place, content) in PHOTOS.items():
            writer.writerow(dict.fromkeys(CARD_COLUMNS, "") | {
                "file": name, "sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content), "width": 1, "height": 1,
                "package": package, "path_in_package": place})
    return tmp_path / "card.csv"


@pytest.fixture
def packages(tmp_path):
    """Two unpacked packages, one folder each."""
    picture = tmp_path / "packages/wallpapers/usr/share/backgrounds/hill.jpg"
    resources = tmp_path / "packages/games/usr/share/games/rcc"
    picture.parent.mkdir(parents=True)
    resources.mkdir(parents=True)
    picture.write_bytes(b"hill")
    (resources / "erase.rcc").write_bytes(make_rcc({"erase/fox.webp": b"fox"}, 1))
    (resources / "sounds.rcc").write_bytes(make_rcc({"music/harp.webp": b"harp" * 100}, compressed=("music/harp.webp",)))
    return tmp_path / "packages"


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_rebuild_from_packages_and_repair(card, packages, tmp_path):
    assert script.rebuild(card, tmp_path / "photos", packages) == 3 and contents(tmp_path / "photos") == RIGHT
    (tmp_path / "photos/fox.webp").write_bytes(b"broken")
    shutil.rmtree(packages / "wallpapers")  # not needed any more
    script.rebuild(card, tmp_path / "photos", packages)
    assert contents(tmp_path / "photos") == RIGHT


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="no dpkg-deb")
def test_rebuild_from_deb_files(card, packages, tmp_path):
    for package in packages.iterdir():
        (package / "DEBIAN").mkdir()
        (package / "DEBIAN/control").write_text(f"Package: {package.name}\nVersion: 1\nArchitecture: all\n"
                                                "Maintainer: nobody <nobody@example.org>\nDescription: none\n")
        subprocess.run(["dpkg-deb", "-b", package, tmp_path / f"{package.name}_1_all.deb"], check=True, capture_output=True)
    script.rebuild(card, tmp_path / "photos", tmp_path)
    assert contents(tmp_path / "photos") == RIGHT
    (tmp_path / "games_1_all.deb").write_bytes(b"no archive")
    with pytest.raises(UserError, match="cannot unpack .*games_1_all.deb"):
        script.rebuild(card, tmp_path / "other", tmp_path)


def test_failures_are_explained(card, packages, tmp_path, monkeypatch):
    (packages / "wallpapers/usr/share/backgrounds/hill.jpg").write_bytes(b"another hill")
    with pytest.raises(UserError, match=r"1 of 3 photographs were not found in their packages, the first hill\.jpg"):
        script.rebuild(card, tmp_path / "photos", packages)
    assert contents(tmp_path / "photos") == {"fox.webp": RIGHT["fox.webp"], "harp.webp": RIGHT["harp.webp"]}
    with pytest.raises(UserError, match="nowhere is not a folder"):
        script.rebuild(card, tmp_path / "other", tmp_path / "nowhere")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="cannot download games; .*`dvc pull data.dvc`: `apt-get` is not installed"):
        script.rebuild(card, tmp_path / "other")


@pytest.mark.parametrize("content, words", [
    (b"", "damaged or truncated"), (b"PK\3\4" + bytes(20), "not a Qt resource file"), (make_rcc({"a/b": b"c"})[:30], "damaged or truncated"),
    (make_rcc({"a/b": b"c"}).replace(b"qres\0\0\0\3", b"qres\0\0\0\x09"), "not a Qt resource file of format 1 to 3")])
def test_unreadable_resource_files_are_refused(content, words):
    with pytest.raises(UserError, match=f"x.rcc is .*{words}|x.rcc is {words}"):
        script.read_rcc(content, "x.rcc")
