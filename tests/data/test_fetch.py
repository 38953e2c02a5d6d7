import hashlib
import json
import os
import subprocess
import sys
import threading
from dataclasses import asdict, replace
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest

from anl.data import download, fetch, unpack
from anl.data.registry import Count, File, Hub, Source
from anl.errors import UserError
from tests import tiny_hub
from tests.conftest import ROOT
from tests.data.test_parquet import write
from tests.data.test_unpack import contents, make_tar, make_zip
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


@pytest.fixture
def served(archives, monkeypatch):
    """A direct source of two archives on a local server; `served.requests` lists the paths that were asked for."""
    asked = []

    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=archives[0].parent)

        def do_GET(self):
            asked.append(self.path)
            super().do_GET()

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    address = f"http://127.0.0.1:{server.server_port}"
    yield source(access="direct", steps=(), counts=(Count(3),), counts_complete=True, files=(
        File("reals.zip", f"{address}/reals.zip", sha256=sha256(archives[0])),
        File("fakes.tar", f"{address}/fakes.tar", bytes=archives[1].stat().st_size, into="more"))), asked
    server.shutdown()
    server.server_close()


# ---- downloads ---------------------------------------------------------------------------------------------------------
def test_download_check_unpack_record(served, archives, tmp_path):
    wanted, asked = served
    done = fetch.fetch(wanted, tmp_path / "out/tiny")
    assert done.folder == tmp_path / "out/tiny" and done.images == 3 and done.bytes == 14 and not done.already
    found = contents(done.folder)
    assert found.pop("source.json") and found == {**REALS, **{f"more/{name}": data for name, data in FAKES.items()}}
    note = record(done.folder)
    assert note["id"] == "tiny" and note["licence"] == "CC0" and note["accepted"].endswith("+00:00")
    assert [(file["name"], file["sha256"], file["checked"]) for file in note["files"]] == [
        ("reals.zip", sha256(archives[0]), True), ("fakes.tar", sha256(archives[1]), False)]
    assert names(tmp_path / "out") == ["tiny"]  # no parts, nothing half-done
    assert fetch.fetch(wanted, tmp_path / "out/tiny") == replace(done, already=True) and len(asked) == 2


def test_a_wrong_hash_keeps_nothing_of_that_file(served, tmp_path):
    wanted, _ = served
    bad = replace(wanted, files=(wanted.files[0], replace(wanted.files[1], sha256="0" * 64)))
    with pytest.raises(UserError, match=f"SHA-256 [0-9a-f]{{64}}, expected {'0' * 64}; nothing was kept"):
        fetch.fetch(bad, tmp_path / "out/tiny")
    assert names(tmp_path / "out") == [".tiny.parts"] and names(tmp_path / "out/.tiny.parts") == ["reals.zip"]
    assert fetch.fetch(wanted, tmp_path / "out/tiny").images == 3  # and the first archive was not fetched twice
    assert served[1].count("/reals.zip") == 1


def test_an_unsafe_archive_leaves_no_data_set(served, archives, tmp_path):
    make_tar(archives[1], {"../evil.png": b"evil"})
    wanted, _ = served
    wanted = replace(wanted, files=(wanted.files[0], replace(wanted.files[1], bytes=None)))
    with pytest.raises(UserError, match="not safe to unpack"):
        fetch.fetch(wanted, tmp_path / "out/tiny")
    assert names(tmp_path / "out") == [".tiny.parts"]


def test_what_only_a_person_can_get_is_never_downloaded(tmp_path, monkeypatch):
    monkeypatch.setattr(download.requests, "get", lambda *a, **o: pytest.fail("something was downloaded"))
    for access in ("manual", "agreement"):
        with pytest.raises(UserError, match="only be had by hand.*anl fetch tiny --from PATH"):
            fetch.fetch(source(access=access), tmp_path / "tiny")


# ---- --from ------------------------------------------------------------------------------------------------------------
def test_an_archive_of_ones_own_is_checked_and_left_where_it_is(archives, tmp_path):
    known = source(files=(File("published.zip", sha256=sha256(archives[0])),))
    done = fetch.fetch(known, tmp_path / "tiny", archives[0])
    assert done.images == 1 and record(done.folder)["files"][0]["checked"] and archives[0].exists()
    unknown = fetch.fetch(source(), tmp_path / "other", archives[0])
    assert not record(unknown.folder)["files"][0]["checked"]
    with pytest.raises(UserError, match="SHA-256"):
        fetch.fetch(known, tmp_path / "third", archives[1])
    assert archives[1].exists() and not (tmp_path / "third").exists()


def test_a_folder_of_the_archives(archives, tmp_path):
    wanted = source(files=(File("reals.zip"), File("fakes.tar", into="more")))
    assert fetch.fetch(wanted, tmp_path / "tiny", archives[0].parent).images == 3
    with pytest.raises(UserError, match="consists of reals.zip, fakes.tar; put them into one folder"):
        fetch.fetch(wanted, tmp_path / "other", archives[0])
    archives[1].unlink()
    with pytest.raises(UserError, match="holds reals.zip and lacks fakes.tar"):
        fetch.fetch(wanted, tmp_path / "other", archives[0].parent)


def test_a_folder_of_the_data_is_indexed_where_it_is(tmp_path):
    make_tar(tmp_path / "a.tar", FAKES)
    unpack.unpack(tmp_path / "a.tar", tmp_path / "mine")
    before = contents(tmp_path / "mine")
    done = fetch.fetch(source(), tmp_path / "sources/tiny", tmp_path / "mine")
    assert done.folder == tmp_path / "mine" and done.images == 2 and contents(tmp_path / "mine") == before
    assert names(tmp_path / "sources/tiny") == ["source.json"] and record(tmp_path / "sources/tiny")["folder"] == str(done.folder)
    assert fetch.fetch(source(), tmp_path / "sources/tiny").folder == done.folder


@pytest.mark.parametrize("files, words", [({"readme.txt": b"x"}, "holds no images; is it Tiny"),
                                          ({"source.json": b"{}", "a.png": b""}, "has a file source.json of its own")])
def test_archives_of_something_else(files, words, tmp_path):
    with pytest.raises(UserError, match=words):
        fetch.fetch(source(), tmp_path / "tiny", make_zip(tmp_path / "a.zip", files))
    assert not (tmp_path / "tiny").exists() and not (tmp_path / ".tiny.new").exists()


def test_more_files_than_the_registry_knows_are_a_bomb(tmp_path):
    archive = make_tar(tmp_path / "a.tar", {f"{index}.png": b"" for index in range(1003)})
    with pytest.raises(UserError, match="more than 1,002 files"):
        fetch.fetch(source(counts=(Count(1),), counts_complete=True), tmp_path / "tiny", archive)


def test_a_folder_of_the_data_that_lies_in_its_own_place_is_recorded_there(tmp_path):
    (tmp_path / "tiny" / "real").mkdir(parents=True)
    (tmp_path / "tiny" / "real" / "a.png").write_bytes(b"x")
    done = fetch.fetch(source(), tmp_path / "tiny", tmp_path / "tiny")
    assert (done.images, done.already) == (1, False) and done.record == tmp_path / "tiny/source.json"
    assert fetch.fetch(source(), tmp_path / "tiny", tmp_path / "tiny").already


def test_places_that_are_taken(archives, tmp_path):
    (tmp_path / "tiny").mkdir()
    assert fetch.fetch(source(), tmp_path / "tiny", archives[0]).images == 1  # an empty folder is no obstacle
    with pytest.raises(UserError, match="holds tiny; choose another folder"):
        fetch.fetch(source(id="small"), tmp_path / "tiny", archives[0])
    with pytest.raises(UserError, match="was not made by `anl fetch`"):
        fetch.fetch(source(), archives[0].parent, archives[0])
    with pytest.raises(UserError, match="nothing.zip is not there"):
        fetch.fetch(source(), tmp_path / "new", tmp_path / "nothing.zip")
    with pytest.raises(UserError, match="--revision is for"):
        fetch.fetch(source(), tmp_path / "new", archives[0], revision=COMMIT)


# ---- the hub -----------------------------------------------------------------------------------------------------------
RUN = """
import json, sys
from anl.data import fetch, registry
from anl.errors import UserError
fields = json.loads(sys.argv[2])
source = registry.Source(**fields | {"hub": registry.Hub(**fields["hub"])})
try:
    print(fetch.fetch(source, sys.argv[1]).images)
except UserError as problem:
    print(f"UserError: {problem}")
"""


def hub_source(**fields):
    return source(access="hub", steps=(), **{"layout": "parquet", "hub": Hub("tiny/set", COMMIT, ("*.parquet", "*.zip"), {})}
                  | fields)


@pytest.fixture
def hub(tmp_path):
    write(tmp_path / "made/train-00000-of-00001.parquet", [0, 1, 1], ["real", "x", "y"])
    files = {"data/train-00000-of-00001.parquet": (tmp_path / "made/train-00000-of-00001.parquet").read_bytes(),
             "loader.py": b"print('never')", "test/more.zip": make_zip(tmp_path / "made/m.zip", FAKES).read_bytes()}
    with tiny_hub.serving("datasets", "tiny/set", files) as server:
        yield server


def fetch_from(server, folder, before="", **environment):
    """fetch() in a process of its own: the hub's client reads the environment when it is imported."""
    environment = {**os.environ, "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HUB_OFFLINE": "0",
                   "HF_HOME": str(folder.parents[1] / "home"), "NO_PROXY": "127.0.0.1", "PYTHONPATH": str(ROOT),
                   "HF_HUB_DISABLE_TELEMETRY": "1", **environment}
    done = subprocess.run([sys.executable, "-c", RUN.replace("fields =", f"{before}\nfields ="), str(folder), json.dumps(asdict(hub_source()))], env=environment, check=False, text=True,
                          capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_one_commit_of_the_hub_without_its_programs(hub, tmp_path):
    assert fetch_from(hub, tmp_path / "out/tiny") == "5"  # three rows, two images of the archive
    found = contents(tmp_path / "out/tiny")
    assert sorted(found) == ["data/train-00000-of-00001.parquet", "source.json", *(f"test/{name}" for name in sorted(FAKES))]
    note = record(tmp_path / "out/tiny")
    assert note["files"][0]["url"] == f"tiny/set@{COMMIT}" and names(tmp_path / "out") == ["tiny"]


def test_offline_the_hub_says_how_to_go_online(hub, tmp_path):
    assert "run the command with HF_HUB_OFFLINE=0" in fetch_from(hub, tmp_path / "out/tiny", HF_HUB_OFFLINE="1")


@pytest.mark.parametrize("revision", [None, "main", "0123456", COMMIT.upper()])
def test_no_branch_is_taken(revision, tmp_path):
    wanted = hub_source(hub=Hub("tiny/set", None))
    with pytest.raises(UserError, match="tiny/set needs `--revision` with a full commit of 40 hex digits"):
        fetch.fetch(wanted, tmp_path / "tiny", revision=revision)


def test_room_for_the_hubs_set(tmp_path):
    with pytest.raises(UserError, match="8 TB are to come.*make room"):
        fetch.fetch(hub_source(bytes=8_000_000_000_000), tmp_path / "tiny")


STOPPED = """
def stopped(*arguments, **options):
    raise UserError("stopped")
fetch._record = stopped
"""


def test_a_finished_download_is_kept_and_used_whatever_fails_after_it(hub, tmp_path):
    assert fetch_from(hub, tmp_path / "out/tiny", STOPPED) == "UserError: stopped"
    assert (tmp_path / "out/.tiny.parts/data/train-00000-of-00001.parquet").is_file() and not (tmp_path / "out/tiny").exists()
    asked = len(hub.asked)
    assert fetch_from(hub, tmp_path / "out/tiny") == "5" and len(hub.asked) == asked
    assert names(tmp_path / "out") == ["tiny"] and not (tmp_path / "out/tiny/test/more.zip").exists()


def test_an_archive_that_python_cannot_read_is_kept_with_a_line(tmp_path):
    write(tmp_path / "made/train-00000-of-00001.parquet", [0, 1, 1], ["real", "x", "y"])
    files = {"train.parquet": (tmp_path / "made/train-00000-of-00001.parquet").read_bytes(), "test/a.7z": b"7z\xbc\xaf\x27\x1crest"}
    with tiny_hub.serving("datasets", "tiny/set", files) as server:
        fields = {"hub": Hub("tiny/set", COMMIT, ("*.parquet", "*.7z"), {})}
        found = fetch_from(server, tmp_path / "out/tiny", f"fields = {asdict(hub_source(**fields))!r}\n_ = json.loads; "
                           "json.loads = lambda text: fields if text == sys.argv[2] else _(text)")
    assert found == "3" and names(tmp_path / "out") == ["tiny"]
    assert (tmp_path / "out/tiny/test/a.7z").is_file() and record(tmp_path / "out/tiny")["kept"] == ["test/a.7z"]
    note = fetch.fetch(hub_source(), tmp_path / "out/tiny").note
    assert f"`7z x a.7z` in {tmp_path / 'out/tiny/test'}" in note and "\n" not in note


@pytest.mark.parametrize("name", ["set.7z", "set.rar", "set.tar.zst", "set.zip.001", "set.7z.001"])
def test_a_format_that_cannot_be_unpacked_is_refused_before_the_download(name, tmp_path, monkeypatch):
    monkeypatch.setattr(download.requests, "get", lambda *a, **o: pytest.fail("something was downloaded"))
    wanted = source(access="direct", steps=(), files=(File("a.zip", "https://x/a.zip"), File(name, f"https://x/{name}")))
    with pytest.raises(UserError, match=f"{name} is .*nothing was downloaded: download https://x/{name}, unpack it"):
        fetch.fetch(wanted, tmp_path / "tiny")
