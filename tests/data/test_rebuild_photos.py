import importlib.util
import shutil
import struct
import subprocess
import zlib

import pytest

from anl.io import UserError
from tests.conftest import ROOT
from tests.data.trees import photo_card, write

SPEC = importlib.util.spec_from_file_location("rebuild_photos", ROOT / "data/rebuild_photos.py")
script = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(script)
PHOTOS = {"hill.jpg": ("wallpapers", "/usr/share/backgrounds/hill.jpg", b"hill"),
          "fox.webp": ("games", "rcc:erase/fox.webp", b"fox"), "harp.webp": ("games", "rcc:music/harp.webp", b"harp" * 100)}
RIGHT = {name: content for name, (_, _, content) in PHOTOS.items()}


def make_rcc(folder, name, content, version=3, compressed=False):
    """A Qt resource file with one file in one folder."""
    names = [struct.pack(">HI", len(word), 0) + word.encode("utf-16-be") for word in (folder, name)]
    nodes = (struct.pack(">IHII", 0, 2, 1, 1), struct.pack(">IHII", 0, 2, 1, 2),
             struct.pack(">IHHHI", len(names[0]), int(compressed), 0, 0, 0))
    tree = b"".join(node + (b"" if version == 1 else bytes(8)) for node in nodes)
    stored = struct.pack(">I", len(content)) + zlib.compress(content) if compressed else content
    data = struct.pack(">I", len(stored)) + stored
    header = 20 if version < 3 else 24
    places = struct.pack(">4I", version, header, header + len(tree), header + len(tree) + len(data))
    return b"qres" + places + bytes(header - 20) + tree + data + b"".join(names)


@pytest.fixture
def card(tmp_path):
    return photo_card(tmp_path / "card.csv", {name: (content, {"package": package, "path_in_package": place})
                                              for name, (package, place, content) in PHOTOS.items()})


@pytest.fixture
def packages(tmp_path):
    """Two unpacked packages, one folder each."""
    return write(tmp_path / "packages", {
        "wallpapers/usr/share/backgrounds/hill.jpg": b"hill",
        "games/usr/share/games/rcc/erase.rcc": make_rcc("erase", "fox.webp", b"fox", 1),
        "games/usr/share/games/rcc/sounds.rcc": make_rcc("music", "harp.webp", b"harp" * 100, compressed=True)})


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
    (b"", "damaged or truncated"), (b"PK\3\4" + bytes(20), "not a Qt resource file"),
    (make_rcc("a", "b", b"c")[:30], "damaged or truncated"),
    (make_rcc("a", "b", b"c").replace(b"qres\0\0\0\3", b"qres\0\0\0\x09"), "not a Qt resource file of format 1 to 3")])
def test_unreadable_resource_files_are_refused(content, words):
    with pytest.raises(UserError, match=f"x.rcc is .*{words}|x.rcc is {words}"):
        script.read_rcc(content, "x.rcc")
