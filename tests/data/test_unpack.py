import io
import struct
import tarfile
import tracemalloc
import zipfile
import zlib

import pytest

from anl.data import unpack as module
from anl.data.unpack import Limits, Unpacked, is_archive, unpack
from anl.errors import UserError

FILES = {"train/REAL/0 (2).jpg": b"real" * 500, "train/FAKE/0.jpg": b"fake", "empty.txt": b""}


def make_zip(path, files, **options):
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def make_tar(path, files, mode="w"):
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
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


@pytest.mark.parametrize("make", [
    lambda path: make_zip(path, FILES), lambda path: make_zip(path, FILES, compression=zipfile.ZIP_DEFLATED),
    lambda path: make_tar(path, FILES), lambda path: make_tar(path, FILES, "w:gz"),
    lambda path: make_tar(path, FILES, "w:bz2"), lambda path: make_tar(path, FILES, "w:xz")])
def test_what_was_packed_comes_out(make, tmp_path):
    archive = make(tmp_path / "archive")  # known by its content, not by its name
    seen = []
    done = unpack(archive, tmp_path / "out", progress=seen.append)
    assert contents(tmp_path / "out") == FILES and done == Unpacked(3, sum(map(len, FILES.values())))
    assert sum(seen) == done.bytes and is_archive(archive) == (not archive.read_bytes().startswith(b"train"))


def test_a_tar_that_ends_with_a_zip_is_a_tar(tmp_path):
    inner = make_zip(tmp_path / "inner.zip", {"a": b"1"}).read_bytes()
    unpack(make_tar(tmp_path / "outer.tar", {"inner.zip": inner}), tmp_path / "out")
    assert contents(tmp_path / "out") == {"inner.zip": inner}


def test_folders_and_names_of_windows(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("empty/", b"")
        member = zipfile.ZipInfo("x")
        member.filename, member.create_system = "val\\nature\\1.jpg", 0
        archive.writestr(member, b"1")
    unpack(tmp_path / "a.zip", tmp_path / "out")
    assert contents(tmp_path / "out") == {"val/nature/1.jpg": b"1"} and (tmp_path / "out/empty").is_dir()


# ---- what would leave the folder ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("make", [make_zip, make_tar])
@pytest.mark.parametrize("name", ["../evil.txt", "a/../../evil.txt", "/tmp/anl-evil.txt", "C:/evil.txt", "a/b\\..\\evil.txt",
                                  "a/../b"])
def test_no_member_leaves_the_folder(make, name, tmp_path):
    archive = make(tmp_path / "evil", {"good.txt": b"good", name: b"evil"})
    with pytest.raises(UserError, match="not safe to unpack: .* would be written outside.*--from FOLDER"):
        unpack(archive, tmp_path / "deep/out")
    assert not [path for path in tmp_path.rglob("*evil.txt")]


@pytest.mark.parametrize("kind, fields", [
    (tarfile.SYMTYPE, {"linkname": "/etc/passwd"}), (tarfile.SYMTYPE, {"linkname": "../../x"}),
    (tarfile.SYMTYPE, {"linkname": "inside"}), (tarfile.LNKTYPE, {"linkname": "/etc/passwd"}),
    (tarfile.CHRTYPE, {"devmajor": 1, "devminor": 3}), (tarfile.BLKTYPE, {}), (tarfile.FIFOTYPE, {})])
def test_tar_links_and_devices_are_refused(kind, fields, tmp_path):
    archive = member_tar(tmp_path / "a.tar", "thing", type=kind, **fields)
    with pytest.raises(UserError, match="'thing' is a link or a device"):
        unpack(archive, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_a_link_followed_by_a_file_through_it_writes_nothing(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        link = tarfile.TarInfo("door")
        link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path / "outside")
        archive.addfile(link)
        member = tarfile.TarInfo("door/file")
        member.size = 4
        archive.addfile(member, io.BytesIO(b"evil"))
    (tmp_path / "outside").mkdir()
    with pytest.raises(UserError, match="link"):
        unpack(tmp_path / "a.tar", tmp_path / "out")
    assert not list((tmp_path / "outside").iterdir())


def test_zip_links_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        link = zipfile.ZipInfo("link")
        link.create_system, link.external_attr = 3, 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(UserError, match="'link' is a link or a device"):
        unpack(tmp_path / "a.zip", tmp_path / "out")


def test_no_right_to_run_and_no_owner_is_taken_over(tmp_path):
    unpack(member_tar(tmp_path / "a.tar", "x", size=4, mode=0o6777, uid=1), tmp_path / "out")
    assert (tmp_path / "out/x").stat().st_mode & 0o7111 == 0


@pytest.mark.parametrize("make", [make_zip, make_tar])
@pytest.mark.parametrize("name, words", [("a\x07b", "no name for a file"), ("x" * 300, "no name for a file")])
def test_names_that_no_disk_takes(make, name, words, tmp_path):
    with pytest.raises(UserError, match=words):
        unpack(make(tmp_path / "a", {name: b"1"}), tmp_path / "out")


def test_two_members_of_one_name(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for content in (b"1", b"2"):
            member = tarfile.TarInfo("same")
            member.size = 1
            archive.addfile(member, io.BytesIO(content))
    with pytest.raises(UserError, match="two members are called 'same'"):
        unpack(tmp_path / "a.tar", tmp_path / "out")


@pytest.mark.parametrize("make", [make_zip, make_tar])
def test_a_file_that_is_also_a_folder(make, tmp_path):
    with pytest.raises(UserError, match="not safe"):
        unpack(make(tmp_path / "a", {"x": b"1", "x/y": b"2"}), tmp_path / "out")


# ---- bombs -------------------------------------------------------------------------------------------------------------
def test_the_ratio_stops_a_bomb_before_a_byte_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "ROOM", 1000)
    bomb = make_zip(tmp_path / "bomb.zip", {"zeros": bytes(1_000_000)}, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(UserError, match="it unpacks to more than"):
        unpack(bomb, tmp_path / "out")
    assert not contents(tmp_path / "out")


def test_the_ratio_stops_a_compressed_tar(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "ROOM", 1000)
    bomb = make_tar(tmp_path / "bomb.tgz", {f"zeros{index}": bytes(100_000) for index in range(10)}, "w:gz")
    with pytest.raises(UserError, match="it unpacks to more than"):
        unpack(bomb, tmp_path / "out")
    assert sum(map(len, contents(tmp_path / "out").values())) <= 20 * bomb.stat().st_size


def test_a_zip_that_lies_about_its_size_stops_there(tmp_path):
    archive = make_zip(tmp_path / "a.zip", {"x": bytes(5000)}, compression=zipfile.ZIP_DEFLATED)
    data = archive.read_bytes()
    archive.write_bytes(data.replace(struct.pack("<L", 5000), struct.pack("<L", 10)))
    with pytest.raises(UserError, match="larger than the archive says|damaged"):
        unpack(archive, tmp_path / "out")
    assert sum(map(len, contents(tmp_path / "out").values())) <= 10


def test_limits_of_bytes_and_files(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "ROOM", 10)
    archive = make_tar(tmp_path / "a.tar", {"a": bytes(50), "b": bytes(50)})
    with pytest.raises(UserError, match="more than 60 bytes"):
        unpack(archive, tmp_path / "out", Limits(bytes=60))
    monkeypatch.undo()
    for make in (make_tar, make_zip):
        archive = make(tmp_path / "b", {"a": b"1", "b": b"2", "c": b"3"})
        with pytest.raises(UserError, match="more than 2 files"):
            unpack(archive, tmp_path / make.__name__, Limits(files=2))


def test_overlapping_members_are_refused(tmp_path):
    """The zip bomb of Fifield (2019), and GenImage's damaged archive: two directory entries for the same bytes."""
    archive = make_zip(tmp_path / "a.zip", {"a": b"1" * 100, "b": b"2" * 100})
    data = bytearray(archive.read_bytes())
    second = data.rindex(b"PK\x01\x02")
    data[second + 42:second + 46] = struct.pack("<L", 0)  # its local header: that of the first
    archive.write_bytes(data)
    with pytest.raises(UserError, match="overlaps what follows it"):
        unpack(archive, tmp_path / "out")


def test_the_disk_is_asked_first(tmp_path, monkeypatch):
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: type("usage", (), {"free": 100}))
    for make in (make_tar, make_zip):
        with pytest.raises(UserError, match="has 100 free; make room"):
            unpack(make(tmp_path / "a", FILES), tmp_path / make.__name__)


# ---- damage ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_tar_that_was_cut_short(mode, share, tmp_path):
    noise = {f"{index}": zlib.compress(bytes([index])) * 200 for index in range(20)}
    whole = make_tar(tmp_path / "a.tar", noise, mode).read_bytes().rstrip(b"\0") + (b"\0" * 1024 if mode == "w" else b"")
    (tmp_path / "cut.tar").write_bytes(whole[:int(len(whole) * share)])
    with pytest.raises(UserError, match="damaged or cut short"):
        unpack(tmp_path / "cut.tar", tmp_path / "out")


def test_a_tar_cut_between_two_members(tmp_path):
    """tarfile takes this for a whole archive."""
    whole = make_tar(tmp_path / "a.tar", {"a": b"1" * 512, "b": b"2" * 512}).read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[:1024])
    with pytest.raises(UserError, match="its end is missing"):
        unpack(tmp_path / "cut.tar", tmp_path / "out")


def test_a_tar_with_a_broken_header_in_the_middle(tmp_path):
    """So does it for this one."""
    data = bytearray(make_tar(tmp_path / "a.tar", {"a": b"1" * 512, "b": b"2" * 512, "c": b"3"}).read_bytes())
    data[1024:1030] = b"broken"
    (tmp_path / "a.tar").write_bytes(data)
    with pytest.raises(UserError, match="damaged or cut short"):
        unpack(tmp_path / "a.tar", tmp_path / "out")


def test_damaged_zips(tmp_path):
    data = make_zip(tmp_path / "a.zip", {"a": b"1234567890" * 100}).read_bytes()
    for number, bad in enumerate((data[:-10], data[:50], data.replace(b"1234567890", b"1234567891", 1))):
        (tmp_path / "bad.zip").write_bytes(bad)
        with pytest.raises(UserError, match="bad.zip is damaged or cut short"):
            unpack(tmp_path / "bad.zip", tmp_path / f"out{number}")


@pytest.mark.parametrize("start, words", [(b"7z\xbc\xaf\x27\x1c", "a 7z archive.*`7z x a`"), (b"Rar!\x1a\x07\0", "RAR.*unrar x"),
                                          (b"\x28\xb5\x2f\xfd", "zstd.*tar --zstd -xf"), (b"text", "no archive.*zip, tar")])
def test_what_python_cannot_read_names_a_program(start, words, tmp_path):
    (tmp_path / "a").write_bytes(start + bytes(2000))
    with pytest.raises(UserError, match=words):
        unpack(tmp_path / "a", tmp_path / "out")


def test_an_encrypted_zip(tmp_path):
    data = bytearray(make_zip(tmp_path / "a.zip", {"a": b"1"}).read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1
    data[6] |= 1
    (tmp_path / "a.zip").write_bytes(data)
    with pytest.raises(UserError, match="is encrypted"):
        unpack(tmp_path / "a.zip", tmp_path / "out")


def test_a_missing_archive(tmp_path):
    with pytest.raises(UserError, match="none.zip cannot be read: No such file"):
        unpack(tmp_path / "none.zip", tmp_path / "out")


def test_memory_does_not_grow_with_the_archive(tmp_path):
    """2,000 members of 20 kB: the headers alone, kept, would be megabytes."""
    archive = make_tar(tmp_path / "a.tar", {f"{index:05d}": bytes(20_000) for index in range(2000)})
    tracemalloc.start()
    try:
        unpack(archive, tmp_path / "out")
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()
