import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from anl.data import download as module
from anl.data.download import check, download
from anl.data.registry import File
from anl.io import UserError

CONTENT = np.random.default_rng(0).integers(0, 256, 300_000, dtype=np.uint8).tobytes()
SHA256, MD5 = hashlib.sha256(CONTENT).hexdigest(), hashlib.md5(CONTENT).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Serves `server.content`. `server.trouble` lists a failure for each request: a status, or `dies`."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        server, span = self.server, self.headers.get("Range")
        trouble = server.trouble.pop(0) if server.trouble else ""
        server.requests.append(span)
        start = int(span.removeprefix("bytes=").rstrip("-")) if span and server.ranges else 0
        body = server.content[start:]
        self.send_response(int(trouble) if trouble.isdigit() else 416 if not body else 206 if start else 200)
        if trouble.isdigit() or not body:
            body = b""
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[:100_000] if trouble == "dies" else body)
        self.close_connection = trouble == "dies"

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.content, server.trouble, server.requests, server.ranges = CONTENT, [], [], True
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def get(server, tmp_path, monkeypatch):
    """Downloads from the server without waiting; `get.waited` holds the pauses."""
    def call(**known):
        return download(File("set.zip", f"http://127.0.0.1:{server.server_port}/set.zip", **known), call.path)

    call.waited, call.path = [], tmp_path / "down/set.zip"
    monkeypatch.setattr(module, "BLOCK", 1 << 14)
    monkeypatch.setattr(module.time, "sleep", call.waited.append)
    return call


def left(get):
    return sorted(path.name for path in get.path.parent.iterdir())


def test_a_complete_download(get, server):
    assert get(bytes=len(CONTENT), sha256=SHA256, md5=MD5) == SHA256
    assert get.path.read_bytes() == CONTENT and left(get) == ["set.zip"]
    assert server.requests == [None] and get.waited == []
    assert get(sha256=SHA256) == SHA256 and len(server.requests) == 1  # an existing file is only checked
    get.path.write_bytes(b"rotten")
    with pytest.raises(UserError, match="sha256"):
        get(sha256=SHA256)
    assert left(get) == []


@pytest.mark.parametrize("ranges", [True, False])
def test_the_rest_is_requested_after_an_interruption(get, server, ranges):
    server.trouble, server.ranges = ["dies", "dies"], ranges
    assert get(sha256=SHA256) == SHA256 and get.path.read_bytes() == CONTENT and left(get) == ["set.zip"]
    assert server.requests[0] is None and all(server.requests[1:]) and get.waited in ([1, 1], [1, 2])


def test_a_later_call_continues(get, server):
    server.trouble = ["dies"] + ["503"] * 5
    with pytest.raises(UserError, match=r"cannot be downloaded \(HTTPError: 503.* bytes are kept"):
        get()
    came = get.path.with_name("set.zip.part").stat().st_size
    assert 0 < came < len(CONTENT) and get.waited == [1, 2, 4, 8, 16] and not get.path.exists()
    assert get(sha256=SHA256) == SHA256 and server.requests[-1] == f"bytes={came}-"


def test_a_part_that_is_complete_is_only_checked(get):
    get.path.parent.mkdir()
    get.path.with_name("set.zip.part").write_bytes(CONTENT)
    assert get(sha256=SHA256) == SHA256 and left(get) == ["set.zip"]


def test_two_versions_are_not_mixed(get, server):
    get.path.parent.mkdir()
    get.path.with_name("set.zip.part").write_bytes(b"an earlier version")
    with pytest.raises(UserError, match="set.zip.part is not the registry's file"):
        get(sha256=SHA256)
    assert left(get) == [] and get(sha256=SHA256) == SHA256


@pytest.mark.parametrize("known, words", [({"sha256": "0" * 64}, f"sha256 {SHA256}, expected {'0' * 64}"),
                                          ({"md5": "0" * 32}, f"md5 {MD5}, expected"),
                                          ({"bytes": 5}, "bytes 300000, expected 5")])
def test_wrong_files_are_removed_if_they_were_downloaded(get, tmp_path, known, words):
    with pytest.raises(UserError, match=words):
        get(**known)
    assert left(get) == []
    (tmp_path / "mine").write_bytes(CONTENT)
    with pytest.raises(UserError, match=words):
        check(File("mine", **known), tmp_path / "mine")
    assert (tmp_path / "mine").exists()


@pytest.mark.parametrize("code", ["404", "403", "400"])
def test_permanent_failures_are_not_repeated(get, server, code):
    server.trouble = [code]
    with pytest.raises(UserError, match=rf"not available \(status {code}\).*a login or an agreement.*--from PATH"):
        get()
    assert len(server.requests) == 1 and left(get) == []


def test_a_connection_that_fails_and_a_full_disk(get, server, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(UserError, match="300,000 bytes remain.*free some space"):
        patch.setattr(module.shutil, "disk_usage", lambda path: type("usage", (), {"free": 1000}))
        get()
    assert left(get) == []
    with monkeypatch.context() as patch, pytest.raises(UserError, match="downloaded .ConnectionError.*0 bytes are kept"):
        patch.setattr(server, "server_port", 1)
        get()
