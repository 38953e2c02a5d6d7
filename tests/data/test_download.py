import hashlib
import io
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import numpy as np
import pytest
import requests
import urllib3

from anl.data import download as module
from anl.data.download import check, download
from anl.io import UserError

CONTENT = np.random.default_rng(0).integers(0, 256, 300_000, dtype=np.uint8).tobytes()
OTHER = np.random.default_rng(1).integers(0, 256, 300_000, dtype=np.uint8).tobytes()
SHA256, MD5 = hashlib.sha256(CONTENT).hexdigest(), hashlib.md5(CONTENT).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Serves `server.content`. `server.trouble` lists a failure for each request; `server.manners` are lasting defects."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        server = self.server
        trouble = server.trouble.pop(0) if server.trouble else ""
        server.requests.append((self.headers.get("Range"), self.headers.get("If-Range"), self.headers["Accept-Encoding"]))
        if trouble.isdigit():
            self.send_response(int(trouble))
            self.send_header("Content-Length", "0")
            self.send_header("Retry-After", "7")
            self.end_headers()
            return
        data, start = server.content, 0
        tag = f'"{hashlib.md5(data).hexdigest()}"'
        span = self.headers.get("Range")
        if span and "no-ranges" not in server.manners and self.headers["If-Range"] in (tag, server.date) or (
                span and "no-conditions" in server.manners):
            start = int(span.removeprefix("bytes=").rstrip("-"))
        if start >= len(data):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(data)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        shown = start + 1 if trouble == "another-part" and start else start
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {shown}-{len(data) - 1}/{len(data)}")
        if "no-length" not in server.manners:
            self.send_header("Content-Length", str(len(data) - start))
        else:
            self.send_header("Connection", "close")
        if "no-tag" not in server.manners:
            self.send_header("ETag", "W/" + tag if "weak-tag" in server.manners else tag)
        if server.date:
            self.send_header("Last-Modified", server.date)
        self.end_headers()
        body = data[start:]
        self.wfile.write(body[:100_000] if trouble == "dies" else body)
        self.close_connection = trouble == "dies" or "no-length" in server.manners

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.content, server.trouble, server.requests, server.manners, server.date = CONTENT, [], [], set(), None
    server.url = f"http://127.0.0.1:{server.server_port}/set.zip"
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def get(server, tmp_path, monkeypatch):
    """Downloads from the server without waiting; `get.waited` holds the pauses."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(module, "BLOCK", 1 << 14)

    def call(**options):
        return download(server.url, tmp_path / "down/set.zip", sleep=call.waited.append, **options)

    call.waited, call.path = [], tmp_path / "down/set.zip"
    return call


def left(get):
    return sorted(path.name for path in get.path.parent.iterdir())


def interrupted(get, server):
    """Let a download fail after a part of the file."""
    server.trouble = ["dies"] + ["503"] * 5
    with pytest.raises(UserError, match=r"cannot be downloaded \(the server responds 503.*bytes are kept"):
        get()
    server.requests.clear()
    return get.path.with_name("set.zip.part").stat().st_size


def test_a_complete_download(get, server):
    assert get(size=len(CONTENT), sha256=SHA256, md5=MD5) == SHA256
    assert get.path.read_bytes() == CONTENT and left(get) == ["set.zip"]
    assert server.requests == [(None, None, "identity")] and get.waited == []
    assert get(sha256=SHA256) == SHA256 and len(server.requests) == 1  # an existing file is only checked
    get.path.write_bytes(b"rotten")
    with pytest.raises(UserError, match="SHA-256"):
        get(sha256=SHA256)
    assert left(get) == []


def test_the_rest_is_requested_after_an_interruption(get, server):
    server.trouble = ["dies", "dies"]
    assert get(sha256=SHA256) == SHA256 and get.path.read_bytes() == CONTENT and left(get) == ["set.zip"]
    assert [request[0] is None for request in server.requests] == [True, False, False]
    assert server.requests[1][1] == f'"{MD5}"' and len(get.waited) == 2


def test_a_later_call_continues(get, server):
    came = interrupted(get, server)
    assert 0 < came < len(CONTENT) and not get.path.exists()
    assert get() == SHA256 and [request[0] for request in server.requests] == [f"bytes={came}-"]


@pytest.mark.parametrize("manners", [set(), {"no-conditions"}])  # a server that ignores If-Range is found out by its ETag
def test_two_versions_are_not_mixed(get, server, manners):
    interrupted(get, server)
    server.manners, server.content = manners, OTHER
    assert get() == hashlib.sha256(OTHER).hexdigest() and get.path.read_bytes() == OTHER


@pytest.mark.parametrize("manner, trouble, date, condition", [
    ("no-ranges", ["dies"], None, f'"{MD5}"'), ("no-tag", ["dies"], None, None), ("weak-tag", ["dies"], None, None),
    ("no-tag", ["dies"], "Wed, 21 Oct 2015 07:28:00 GMT", "Wed, 21 Oct 2015 07:28:00 GMT"), ("", ["dies", "another-part"], None, f'"{MD5}"')])
def test_servers_with_incomplete_support_for_ranges(get, server, manner, trouble, date, condition):
    server.manners, server.trouble, server.date = {manner}, trouble, date
    assert get() == SHA256 and get.path.read_bytes() == CONTENT and server.requests[1][1] == condition
    assert "another-part" not in trouble or server.requests[2][0] is None


@pytest.mark.parametrize("total", [len(CONTENT), None])
def test_a_part_that_is_already_complete(get, server, total):
    """Stopped between the last byte and the check; without a known total, the server answers 416."""
    get()
    get.path.rename(get.path.with_name("set.zip.part"))
    get.path.with_name("set.zip.part.json").write_text(json.dumps({"url": server.url, "validator": f'"{MD5}"', "total": total}))
    assert get(sha256=SHA256) == SHA256 and left(get) == ["set.zip"] and len(server.requests) == (1 if total else 2)


@pytest.mark.parametrize("note", ["", "[]", "{}", '{"url": "http://other", "validator": "x"}', '{"url": 1}'])
def test_a_part_of_another_file_is_not_continued(get, server, note):
    get.path.parent.mkdir()
    get.path.with_name("set.zip.part").write_bytes(b"something else")
    get.path.with_name("set.zip.part.json").write_text(note)
    assert get() == SHA256 and server.requests[0][0] is None


@pytest.mark.parametrize("wanted, words", [
    ({"sha256": "0" * 64}, f"SHA-256 {SHA256}, expected {'0' * 64}; nothing was kept"),
    ({"md5": "0" * 32}, f"MD5 {MD5}, expected {'0' * 32}; nothing was kept"),
    ({"size": 5}, "has 300,000 bytes, and the registry states 5")])
def test_wrong_files_are_removed(get, wanted, words):
    with pytest.raises(UserError, match=words):
        get(**wanted)
    assert left(get) == []


def test_without_a_length_the_size_and_hash_decide(get, server):
    server.manners, server.trouble = {"no-length"}, ["dies"]
    with pytest.raises(UserError, match=r"bytes 100000, expected 300000; nothing was kept"):
        get(size=len(CONTENT), sha256=SHA256)
    assert left(get) == [] and get(sha256=SHA256) == SHA256


@pytest.mark.parametrize("code, words", [("404", r"not available \(404 .*data set's page"), ("403", r"\(403 .*--from PATH"),
                                         ("401", "login or an agreement"), ("400", r"not available \(400")])
def test_permanent_failures_are_not_repeated(get, server, code, words):
    server.trouble = [code]
    with pytest.raises(UserError, match=words):
        get()
    assert len(server.requests) == 1 and left(get) == []


def test_pauses_double_unless_the_server_states_one(get, server, monkeypatch):
    server.trouble = ["503", "429"]
    get()
    assert get.waited == [7, 7]

    def refuse(*arguments, **options):
        raise module.requests.exceptions.ConnectionError("refused")

    monkeypatch.setattr(module.requests, "get", refuse)
    get.path.unlink()
    get.waited.clear()
    with pytest.raises(UserError, match="cannot be downloaded .ConnectionError: refused.; 0 bytes are kept"):
        get(tries=5)
    assert get.waited == [1, 2, 4, 8]


def test_invalid_addresses_and_full_disks(get, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="not a valid address"):
        download("nonsense", tmp_path / "x")
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: type("usage", (), {"free": module.SPARE + 1000}))
    with pytest.raises(UserError, match="300,000 bytes remain.*free some space"):
        get()
    assert not get.path.with_name("set.zip.part").exists()


def test_checking_keeps_local_files(tmp_path):
    (tmp_path / "mine").write_bytes(b"1")
    with pytest.raises(UserError, match="bytes 1, expected 2; fetch it again; if"):
        check(tmp_path / "mine", size=2)
    assert (tmp_path / "mine").exists()


# ---- redirects ---------------------------------------------------------------------------------------------------------
@pytest.fixture
def web(monkeypatch):
    """Responses by address instead of a network: `web.pages` {url: address of a redirect}; other pages have the content."""
    def send(self, request, **options):
        web.requests.append(request.url)
        response = requests.Response()
        response.url, response.request = request.url, request
        response.status_code = 302 if request.url in web.pages else 200
        response.headers.update({"Location": web.pages[request.url]} if request.url in web.pages else {})
        body = io.BytesIO(CONTENT if response.status_code == 200 else b"")
        response.raw = urllib3.HTTPResponse(body, preload_content=False, status=response.status_code)
        return response

    web = SimpleNamespace(pages={}, requests=[])
    monkeypatch.setattr(requests.adapters.HTTPAdapter, "send", send)
    return web


def test_encrypted_redirects_are_followed(web, tmp_path):
    web.pages = {"https://a.org/x": "/y", "https://a.org/y": "https://cdn.org/z"}
    assert download("https://a.org/x", tmp_path / "x", sha256=SHA256) == SHA256
    assert web.requests == ["https://a.org/x", "https://a.org/y", "https://cdn.org/z"]


@pytest.mark.parametrize("place, words", [
    ("http://b.org/x", "redirects to http://b.org/x, which is not encrypted"),
    *((f"https://{host}/x", "an address inside a private network") for host in
      ("127.0.0.1", "localhost:8080", "192.168.0.1", "10.1.2.3", "169.254.169.254", "[::1]", "[::ffff:10.0.0.1]", "2130706433", "0x7f.1"))])
def test_unsafe_redirects_are_refused(web, tmp_path, place, words):
    web.pages = {"https://a.org/x": place, "http://b.org/x": "https://c.org/x"}  # even if the last address is encrypted
    with pytest.raises(UserError, match=words):
        download("https://a.org/x", tmp_path / "x")
    assert web.requests == ["https://a.org/x"] and not (tmp_path / "x").exists()


def test_circular_redirects_end(web, tmp_path):
    web.pages = {"https://a.org/x": "https://a.org/x"}
    with pytest.raises(UserError, match="redirects more than 10 times"):
        download("https://a.org/x", tmp_path / "x")
