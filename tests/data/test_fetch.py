import hashlib
import json
import shutil
from dataclasses import replace

import pytest
from huggingface_hub import constants

from anl.data import fetch
from anl.data.download import check
from anl.data.registry import Count, File, Hub, Source
from anl.io import UserError
from tests import tiny_hub
from tests.data.test_parquet import shard
from tests.data.test_unpack import contents, make_tar, make_zip
from tests.data.trees import write
from tests.tiny_hub import COMMIT

REALS, FAKES = {"0_real/a.jpg": b"real"}, {"1_fake/b.png": b"fake!", "1_fake/c.PNG": b"fake?", "1_fake/notes.txt": b""}


def source(**fields):
    return Source(**{"id": "tiny", "title": "Tiny", "contents": "x", "home": "https://example.org", "host": "x",
                     "access": "manual", "licence": "CC0", "terms": "cite us", "layout": "binary", "tree": "*", "trap": "x",
                     "citation": "x", "evidence": "x", "verified": False, "steps": ("go there",)} | fields)


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def record(folder):
    return json.loads((folder / "source.json").read_text())


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def archives(tmp_path):
    (tmp_path / "down").mkdir()
    return make_zip(tmp_path / "down/reals.zip", REALS), make_tar(tmp_path / "down/fakes.tar", FAKES)


# ---- downloads ---------------------------------------------------------------------------------------------------------
def test_download_check_unpack_record(archives, tmp_path, monkeypatch):
    def download(file, path):
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(archives[0].parent / file.name, path)
        return check(file, path)

    monkeypatch.setattr(fetch, "download", download)
    files = [File(path.name, f"https://x/{path.name}", sha256=sha256(path), into=into)
             for path, into in zip(archives, ("", "more"))]
    wanted = source(access="direct", steps=(), counts=(Count(3),), counts_complete=True, files=tuple(files))
    done = fetch.fetch(wanted, tmp_path / "out/tiny")
    assert done.folder == tmp_path / "out/tiny" and done.images == 3 and done.bytes == 14 and not done.already
    found = contents(done.folder)
    assert found.pop("source.json") and found == {**REALS, **{f"more/{name}": data for name, data in FAKES.items()}}
    note = record(done.folder)
    assert note["id"] == "tiny" and note["licence"] == "CC0" and note["accepted"].endswith("+00:00")
    assert [(file["name"], file["sha256"], file["checked"]) for file in note["files"]] == [
        (path.name, sha256(path), True) for path in archives]
    assert names(tmp_path / "out") == ["tiny"]  # nothing temporary is left
    archives[0].unlink()
    assert fetch.fetch(wanted, tmp_path / "out/tiny") == replace(done, already=True)


@pytest.mark.parametrize("access", ["manual", "agreement"])
def test_what_needs_a_person_is_not_downloaded(access, tmp_path):
    with pytest.raises(UserError, match="can only be downloaded by hand; .*anl data fetch tiny --from PATH"):
        fetch.fetch(source(access=access), tmp_path / "tiny")


# ---- --from ------------------------------------------------------------------------------------------------------------
def test_a_local_archive_is_checked_and_kept(archives, tmp_path):
    known = source(files=(File("published.zip", sha256=sha256(archives[0])),))
    done = fetch.fetch(known, tmp_path / "tiny", archives[0])
    assert done.images == 1 and record(done.folder)["files"][0]["checked"] and archives[0].exists()
    assert not record(fetch.fetch(source(), tmp_path / "other", archives[0]).folder)["files"][0]["checked"]
    with pytest.raises(UserError, match="sha256"):
        fetch.fetch(known, tmp_path / "third", archives[1])
    assert archives[1].exists() and not (tmp_path / "third").exists()


def test_a_folder_of_archives(archives, tmp_path):
    wanted = source(files=(File("reals.zip"), File("fakes.tar", into="more")))
    assert fetch.fetch(wanted, tmp_path / "tiny", archives[0].parent).images == 3
    with pytest.raises(UserError, match="consists of reals.zip, fakes.tar; put them into one folder"):
        fetch.fetch(wanted, tmp_path / "other", archives[0])
    archives[1].unlink()
    with pytest.raises(UserError, match="does not contain fakes.tar; download that too"):
        fetch.fetch(wanted, tmp_path / "other", archives[0].parent)


def test_a_folder_of_data_stays_where_it_is(tmp_path):
    write(tmp_path / "mine", FAKES)
    done = fetch.fetch(source(), tmp_path / "sources/tiny", tmp_path / "mine")
    assert done.folder == tmp_path / "mine" and done.images == 2 and contents(tmp_path / "mine") == FAKES
    assert names(tmp_path / "sources/tiny") == ["source.json"]
    assert fetch.fetch(source(), tmp_path / "sources/tiny").folder == done.folder
    write(tmp_path / "there", FAKES)  # already at its own place
    done = fetch.fetch(source(), tmp_path / "there", tmp_path / "there")
    assert (done.images, done.already) == (2, False) and done.record == tmp_path / "there/source.json"
    assert fetch.fetch(source(), tmp_path / "there", tmp_path / "there").already


@pytest.mark.parametrize("files, words", [({"readme.txt": b"x"}, "contains no images; check that it is Tiny"),
                                          ({"source.json": b"{}", "a.png": b""}, "itself has a file source.json"),
                                          ({f"{index}.png": b"" for index in range(1003)}, "more than 1,002 files")])
def test_unexpected_contents_are_refused(files, words, tmp_path):
    with pytest.raises(UserError, match=words):
        fetch.fetch(source(counts=(Count(1),), counts_complete=True), tmp_path / "tiny", make_zip(tmp_path / "a.zip", files))
    assert not (tmp_path / "tiny").exists() and not (tmp_path / ".tiny.new").exists()


def test_other_folders_are_not_overwritten(archives, tmp_path):
    (tmp_path / "tiny").mkdir()
    assert fetch.fetch(source(), tmp_path / "tiny", archives[0]).images == 1  # an empty folder is fine
    for item, folder, local, revision, words in [
            (source(id="small"), tmp_path / "tiny", archives[0], None, "holds tiny; choose another folder"),
            (source(), archives[0].parent, archives[0], None, "was not made by `anl data fetch`"),
            (source(), tmp_path / "new", tmp_path / "nothing.zip", None, "nothing.zip does not exist"),
            (source(), tmp_path / "new", archives[0], COMMIT, "--revision applies to")]:
        with pytest.raises(UserError, match=words):
            fetch.fetch(item, folder, local, revision)


# ---- the hub -----------------------------------------------------------------------------------------------------------
def hub_source(**fields):
    hub = Hub("tiny/set", COMMIT, ("*.parquet", "*.zip", "*.7z"), {})
    return source(**{"access": "hub", "steps": (), "hub": hub} | fields)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    shard(tmp_path / "made.parquet", [0, 1, 1], ["real", "x", "y"])
    files = {"data/train-00000-of-00001.parquet": (tmp_path / "made.parquet").read_bytes(), "loader.py": b"print('never')",
             "test/more.zip": make_zip(tmp_path / "made.zip", FAKES).read_bytes()}
    with tiny_hub.serving("datasets", "tiny/set", files) as server:
        address = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
        yield server


def test_one_commit_of_the_hub_without_its_programs(hub, tmp_path):
    """A finished download is kept, whatever fails after it; a 7z archive is kept with a note."""
    hub.files["test/a.7z"] = b"7z\xbc\xaf\x27\x1crest"
    folder, archive = tmp_path / "out/tiny", hub.files["test/more.zip"]
    hub.files["test/more.zip"] = make_zip(tmp_path / "bad.zip", {"../evil.png": b""}).read_bytes()
    with pytest.raises(UserError, match="not safe to unpack"):
        fetch.fetch(hub_source(), folder)
    parts = tmp_path / "out/.tiny.parts"
    assert (parts / "data/train-00000-of-00001.parquet").is_file() and not folder.exists()
    (parts / "test/more.zip").write_bytes(archive)
    count = len(hub.requests)
    done = fetch.fetch(hub_source(), folder)
    assert done.images == 5 and not any("resolve" in request for request in hub.requests[count:])
    assert sorted(contents(folder)) == ["data/train-00000-of-00001.parquet", "source.json",
                                        *(f"test/{name}" for name in sorted(FAKES)), "test/a.7z"]
    note = record(folder)
    assert note["files"][0]["url"] == f"tiny/set@{COMMIT}" and note["kept"] == ["test/a.7z"]
    assert names(tmp_path / "out") == ["tiny"]
    line = fetch.fetch(hub_source(), folder).note
    assert line == done.note and f"`7z x a.7z` in {folder / 'test'}" in line and "\n" not in line


def test_an_archive_does_not_replace_another_file_of_the_hub(hub, tmp_path):
    hub.files["test/more.zip"] = make_zip(tmp_path / "twice.zip", {"a.7z": b""}).read_bytes()
    hub.files["test/a.7z"] = b"7z"
    with pytest.raises(UserError, match="an archive contains test/a.7z, which is also a separate file"):
        fetch.fetch(hub_source(), tmp_path / "tiny")


@pytest.mark.parametrize("repo, revision, offline, words", [
    ("tiny/set", "1" * 40, False, "has no commit 1111"), ("tiny/other", COMMIT, False, "has no data set tiny/other"),
    ("tiny/set", COMMIT, True, "run the command with HF_HUB_OFFLINE=0")])
def test_failures_of_the_hub_are_explained(hub, tmp_path, monkeypatch, repo, revision, offline, words):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    with pytest.raises(UserError, match=words):
        fetch.fetch(hub_source(hub=Hub(repo, revision)), tmp_path / "out/tiny")


@pytest.mark.parametrize("revision", [None, "main", "0123456", COMMIT.upper()])
def test_branches_are_refused(revision, tmp_path):
    with pytest.raises(UserError, match="tiny/set needs `--revision` with a full commit of 40 hex digits"):
        fetch.fetch(hub_source(hub=Hub("tiny/set", None)), tmp_path / "tiny", revision=revision)


def test_a_set_that_does_not_fit_on_the_disk(tmp_path):
    with pytest.raises(UserError, match="tiny has 8 TB.*free some space"):
        fetch.fetch(hub_source(bytes=8_000_000_000_000), tmp_path / "tiny")
