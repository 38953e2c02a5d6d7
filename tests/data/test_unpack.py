import io
import shutil
import struct
import tarfile
import tracemalloc
import zipfile
import zlib

import pytest

from anl.data import unpack as module
from anl.data.unpack import is_archive, unpack, unreadable
from anl.io import UserError

FILES = {"train/REAL/0 (2).jpg": b"real" * 500, "train/FAKE/0.jpg": b"fake", "empty.txt": b""}


def make_zip(path, files, **options):
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def make_tar(path, files, mode="w"):
    """files: {name: content} or [(name, content)]."""
    with tarfile.open(path, mode) as archive:
        for name, content in files.items() if isinstance(files, dict) else files:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def member_tar(path, name="x", **fields):
    """A tar of one member with any header fields, for example type=tarfile.SYMTYPE."""
    with tarfile.open(path, "w") as archive:
        member = tarfile.TarInfo(name)
        for key, value in fields.items():
            setattr(member, key, value)
        archive.addfile(member, io.BytesIO(b"\0" * member.size) if member.isreg() else None)
    return path


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(archive, folder, words, **limits):
    with pytest.raises(UserError, match=words) as problem:
        unpack(archive, folder, **limits)
    assert "\n" not in str(problem.value)


@pytest.mark.parametrize("make", [
    lambda path: make_zip(path, FILES), lambda path: make_zip(path, FILES, compression=zipfile.ZIP_DEFLATED),
    *(lambda path, mode=mode: make_tar(path, FILES, mode) for mode in ("w", "w:gz", "w:bz2", "w:xz"))])
def test_archives_are_recognised_by_content_and_unpacked(make, tmp_path):
    unpack(make(tmp_path / "archive"), tmp_path / "out")
    assert contents(tmp_path / "out") == FILES


def test_a_tar_that_contains_a_zip_is_a_tar(tmp_path):
    inner = make_zip(tmp_path / "inner.zip", {"a": b"1"}).read_bytes()
    unpack(make_tar(tmp_path / "outer.tar", {"inner.zip": inner}), tmp_path / "out")
    assert contents(tmp_path / "out") == {"inner.zip": inner}


def test_empty_folders_and_names_of_windows(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("empty/", b"")
        member = zipfile.ZipInfo("x")
        member.filename, member.create_system = "val\\nature\\1.jpg", 0
        archive.writestr(member, b"1")
    unpack(tmp_path / "a.zip", tmp_path / "out")
    assert contents(tmp_path / "out") == {"val/nature/1.jpg": b"1"} and (tmp_path / "out/empty").is_dir()


@pytest.mark.parametrize("name, known", [("a.zip", True), ("a.TAR.gz", True), ("a.png", False), ("a.7z", False)])
def test_archives_by_name(name, known):
    assert is_archive(name) == known and (unreadable(name) is not None) == name.endswith("7z")


# ---- unsafe members ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("make", [make_zip, make_tar])
@pytest.mark.parametrize("name, words", [
    *((name, "is not safe to unpack: .* would be written outside.*--from FOLDER") for name in
      ("../evil.txt", "a/../../evil.txt", "/tmp/anl-evil.txt", "C:/evil.txt", "a/b\\..\\evil.txt", "a/../b")),
    ("x" * 300, "cannot be unpacked .*name too long"), ("good.txt/evil.txt", "cannot be unpacked .*(exists|Not a dir)")])
def test_no_member_leaves_the_folder(make, name, words, tmp_path):
    refused(make(tmp_path / "evil", {"good.txt": b"good", name: b"evil"}), tmp_path / "deep/out", words)
    assert not [path for path in tmp_path.rglob("*evil.txt")]


@pytest.mark.parametrize("kind, fields", [
    (tarfile.SYMTYPE, {"linkname": "/etc/passwd"}), (tarfile.SYMTYPE, {"linkname": "inside"}),
    (tarfile.LNKTYPE, {"linkname": "/etc/passwd"}), (tarfile.CHRTYPE, {"devmajor": 1, "devminor": 3}), (tarfile.FIFOTYPE, {})])
def test_links_and_devices_are_refused(kind, fields, tmp_path):
    refused(member_tar(tmp_path / "a.tar", "thing", type=kind, **fields), tmp_path / "out", "'thing' is a link or a device")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        link = zipfile.ZipInfo("link")
        link.create_system, link.external_attr = 3, 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    refused(tmp_path / "a.zip", tmp_path / "out", "'link' is a link or a device")
    assert not list((tmp_path / "out").iterdir())


def test_permissions_are_not_taken_over_and_a_name_occurs_once(tmp_path):
    unpack(member_tar(tmp_path / "a.tar", "x", size=4, mode=0o6777, uid=1), tmp_path / "out")
    assert (tmp_path / "out/x").stat().st_mode & 0o7111 == 0
    refused(make_tar(tmp_path / "b.tar", [("same", b"1"), ("same", b"2")]), tmp_path / "out", "unpacked .*exists.*same")


# ---- bombs ---------------------------------------------------------------------------------------------------------------
def test_the_ratio_stops_bombs(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MIN_BYTES", 1000)
    zeros = {f"zeros{index}": bytes(100_000) for index in range(10)}
    packed = make_zip(tmp_path / "a.zip", zeros, compression=zipfile.ZIP_DEFLATED)
    for archive in (packed, make_tar(tmp_path / "a.tgz", zeros, "w:gz")):
        refused(archive, tmp_path / "out", "it unpacks to far more bytes than expected")
        assert sum(map(len, contents(tmp_path / "out").values())) <= 20 * archive.stat().st_size
        shutil.rmtree(tmp_path / "out")


def test_a_zip_that_lies_about_its_size_stops_there(tmp_path):
    archive = make_zip(tmp_path / "a.zip", {"x": bytes(5000)}, compression=zipfile.ZIP_DEFLATED)
    archive.write_bytes(archive.read_bytes().replace(struct.pack("<L", 5000), struct.pack("<L", 10)))
    refused(archive, tmp_path / "out", "damaged")
    assert sum(map(len, contents(tmp_path / "out").values())) <= 10


def test_limits_of_bytes_files_and_disk(tmp_path, monkeypatch):
    archive = make_tar(tmp_path / "a", {"a": bytes(50), "b": bytes(50), "c": bytes(50)})
    refused(archive, tmp_path / "files", "more than 2 files", most_files=2)
    monkeypatch.setattr(module, "MIN_BYTES", 10)
    refused(archive, tmp_path / "bytes", "far more bytes than expected", most_bytes=60)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: type("usage", (), {"free": 100}))
    refused(archive, tmp_path / "disk", "has 100 free; free some space")


def test_members_that_share_bytes_are_refused(tmp_path):
    """GenImage's damaged archive: two directory entries for the same bytes."""
    archive = make_zip(tmp_path / "a.zip", {"a": b"1" * 100, "b": b"2" * 100})
    data = bytearray(archive.read_bytes())
    second = data.rindex(b"PK\x01\x02")
    data[second + 42:second + 46] = struct.pack("<L", 0)  # offset of the first member's header
    archive.write_bytes(data)
    refused(archive, tmp_path / "out", "damaged")


# ---- damage --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz"])
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_truncated_tars_are_refused(mode, share, tmp_path):
    noise = {f"{index}": zlib.compress(bytes([index])) * 200 for index in range(20)}
    whole = make_tar(tmp_path / "a.tar", noise, mode).read_bytes().rstrip(b"\0") + (b"\0" * 1024 if mode == "w" else b"")
    (tmp_path / "cut.tar").write_bytes(whole[:int(len(whole) * share)])
    refused(tmp_path / "cut.tar", tmp_path / "out", "cut.tar is damaged")


def test_damage_that_tarfile_does_not_see(tmp_path):
    data = make_tar(tmp_path / "a.tar", {"a": b"1" * 512, "b": b"2" * 512, "c": b"3"}).read_bytes()
    (tmp_path / "cut.tar").write_bytes(data[:1024])  # between two members
    refused(tmp_path / "cut.tar", tmp_path / "out", "its end is missing")
    (tmp_path / "bad.tar").write_bytes(data[:1024] + b"broken" + data[1030:])  # a header
    refused(tmp_path / "bad.tar", tmp_path / "out2", "bad.tar is damaged")


def test_damaged_zips_are_refused(tmp_path):
    data = make_zip(tmp_path / "a.zip", {"a": b"1234567890" * 100}).read_bytes()
    for number, bad in enumerate((data[:-10], data[:50], data.replace(b"1234567890", b"1234567891", 1))):
        (tmp_path / "bad.zip").write_bytes(bad)
        refused(tmp_path / "bad.zip", tmp_path / f"out{number}", "bad.zip is damaged")
    encrypted = bytearray(data)
    encrypted[encrypted.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "a.zip").write_bytes(encrypted)
    refused(tmp_path / "a.zip", tmp_path / "out", "is encrypted")


@pytest.mark.parametrize("start, words", [(b"7z\xbc\xaf\x27\x1c", "a 7z archive.*`7z x a`"),
                                          (b"Rar!\x1a\x07\0", "RAR.*unrar x"),
                                          (b"\x28\xb5\x2f\xfd", "zstd.*tar --zstd -xf"), (b"text", "or no zip, tar")])
def test_other_files_are_refused(start, words, tmp_path):
    (tmp_path / "a").write_bytes(start + bytes(2000))
    refused(tmp_path / "a", tmp_path / "out", words)


def test_memory_does_not_grow_with_the_archive(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 1 << 12)
    archive = make_tar(tmp_path / "a.tar", {f"{index:05d}": b"" for index in range(300)})  # kept headers would take 400 kB
    tracemalloc.start()
    try:
        unpack(archive, tmp_path / "out")
        assert tracemalloc.get_traced_memory()[1] < 150_000
    finally:
        tracemalloc.stop()
