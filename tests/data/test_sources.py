import csv
import hashlib
import shutil
import subprocess

import pytest

from anl.data import sources
from anl.data.photos import CARD_COLUMNS
from anl.errors import UserError
from tests.data.test_rcc import make_rcc

CONTENT = {("wallpapers", "/usr/share/backgrounds/hill.jpg"): b"hill", ("games", "rcc:erase/fox.webp"): b"fox",
           ("games", "rcc:music/harp.webp"): b"harp"}


@pytest.fixture
def card(tmp_path):
    rows = [dict.fromkeys(CARD_COLUMNS, "") | {
        "file": place.split("/")[-1], "sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content), "width": 1,
        "height": 1, "package": package, "path_in_package": place} for (package, place), content in CONTENT.items()]
    with open(tmp_path / "card.csv", "w", newline="") as stream:
        writer = csv.DictWriter(stream, CARD_COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    return tmp_path / "card.csv"


@pytest.fixture
def packages(tmp_path):
    """Two unpacked packages, one folder each."""
    picture = tmp_path / "packages/wallpapers/usr/share/backgrounds/hill.jpg"
    picture.parent.mkdir(parents=True)
    picture.write_bytes(b"hill")
    resources = tmp_path / "packages/games/usr/share/games/rcc"
    resources.mkdir(parents=True)
    (resources / "erase.rcc").write_bytes(make_rcc({"erase/fox.webp": b"fox"}))
    (resources / "sounds.rcc").write_bytes(make_rcc({"music/harp.webp": b"harp"}, compressed=("music/harp.webp",)))
    return tmp_path / "packages"


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


RIGHT = {"hill.jpg": b"hill", "fox.webp": b"fox", "harp.webp": b"harp"}


def test_from_unpacked_packages(card, packages, tmp_path):
    assert sources.rebuild(card, tmp_path / "photos", packages) == 3
    assert contents(tmp_path / "photos") == RIGHT


def test_from_one_common_root(card, packages, tmp_path):
    root = tmp_path / "root"
    for package in packages.iterdir():
        shutil.copytree(package, root, dirs_exist_ok=True)
    sources.rebuild(card, tmp_path / "photos", root)
    assert contents(tmp_path / "photos") == RIGHT


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="no dpkg-deb")
def test_from_deb_files(card, packages, tmp_path):
    debs = tmp_path / "debs"
    debs.mkdir()
    for package in packages.iterdir():
        (package / "DEBIAN").mkdir()
        (package / "DEBIAN/control").write_text(f"Package: {package.name}\nVersion: 1\nArchitecture: all\n"
                                                "Maintainer: nobody <nobody@example.org>\nDescription: none\n")
        subprocess.run(["dpkg-deb", "-b", package, debs / f"{package.name}_1_all.deb"], check=True, capture_output=True)
    sources.rebuild(card, tmp_path / "photos", debs)
    assert contents(tmp_path / "photos") == RIGHT
    (debs / "games_1_all.deb").write_bytes(b"no archive")
    with pytest.raises(UserError, match="games_1_all.deb cannot be unpacked"):
        sources.rebuild(card, tmp_path / "other", debs)


def test_only_what_is_wrong_is_made_again(card, packages, tmp_path):
    sources.rebuild(card, tmp_path / "photos", packages)
    (tmp_path / "photos/fox.webp").write_bytes(b"broken")
    shutil.rmtree(packages / "wallpapers")
    sources.rebuild(card, tmp_path / "photos", packages)
    assert contents(tmp_path / "photos") == RIGHT


def test_another_release_of_a_package_is_named_and_the_rest_is_made(card, packages, tmp_path):
    (packages / "wallpapers/usr/share/backgrounds/hill.jpg").write_bytes(b"another hill")
    with pytest.raises(UserError, match=r"1 of 3 photographs are not as the data card has them, the first hill\.jpg"):
        sources.rebuild(card, tmp_path / "photos", packages)
    assert contents(tmp_path / "photos") == {"fox.webp": b"fox", "harp.webp": b"harp"}


def test_off_debian(card, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(UserError, match="`apt-get` is not on this machine.*`dvc pull data.dvc` fetches the same files"):
        sources.rebuild(card, tmp_path / "photos")


def test_a_package_that_cannot_be_downloaded(card, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(subprocess, "run", lambda *a, **o: subprocess.CompletedProcess(a, 100, "", "E: no such package\n"))
    with pytest.raises(UserError, match=r"apt-get cannot download games \(E: no such package\); run `apt-get update`"):
        sources.rebuild(card, tmp_path / "photos")


def test_a_folder_that_is_none(card, tmp_path):
    with pytest.raises(UserError, match="nowhere is not a folder"):
        sources.rebuild(card, tmp_path / "photos", tmp_path / "nowhere")
