import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from anl.data import download as module
from anl.data.download import check, download
from anl.errors import UserError

CONTENT = np.random.default_rng(0).integers(0, 256, 300_000, dtype=np.uint8).tobytes()
OTHER = np.random.default_rng(1).integers(0, 256, 300_000, dtype=np.uint8).tobytes()
SHA256, MD5 = hashlib.sha256(CONTENT).hexdigest(), hashlib.md5(CONTENT).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Serves `server.content` with what `server.trouble`, a list of names, says for each request in turn."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        server = self.server
        trouble = server.trouble.pop(0) if server.trouble else ""
        server.asked.append((self.headers.get("Range"), self.headers.get("If-Range"), self.headers["Accept-Encoding"]))
        if trouble.isdigit():
            self.send_response(int(trouble))
            self.send_header("Content-Length", "0")
            self.send_header("Retry-After", "7")
            self.end_headers()
            return
        data, start = server.content, 0
        tag = f'"{hashlib.md5(data).hexdigest()}"'
        asked = self.headers.get("Range")
        if asked and "no-ranges" not in server.manners and self.headers["If-Range"] in (tag, server.date) or (
                asked and "no-conditions" in server.manners):
            start = int(asked.removeprefix("bytes=").rstrip("-"))
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
    server.content, server.trouble, server.asked, server.manners, server.date = CONTENT, [], [], set(), None
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


def test_a_whole_file(get, server):
    assert get(size=len(CONTENT), sha256=SHA256, md5=MD5) == SHA256
    assert get.path.read_bytes() == CONTENT and left(get) == ["set.zip"]
    assert server.asked == [(None, None, "identity")] and get.waited == []


def test_a_file_that_is_there_is_checked_and_not_asked_for(get, server):
    get()
    assert get(sha256=SHA256) == SHA256 and len(server.asked) == 1
    get.path.write_bytes(b"rotten")
    with pytest.raises(UserError, match="SHA-256"):
        get(sha256=SHA256)
    assert left(get) == []


def test_a_server_that_dies_half_way_is_asked_for_the_rest(get, server):
    server.trouble = ["dies", "dies"]
    assert get(sha256=SHA256) == SHA256 and get.path.read_bytes() == CONTENT
    ranges = [asked[0] for asked in server.asked]
    assert ranges[0] is None and all(asked.startswith("bytes=") for asked in ranges[1:]) and len(ranges) == 3
    assert server.asked[1][1] == f'"{hashlib.md5(CONTENT).hexdigest()}"' and len(get.waited) == 2
    assert left(get) == ["set.zip"]


def test_a_later_call_goes_on_where_the_first_stopped(get, server):
    server.trouble = ["dies"] + ["503"] * 5
    with pytest.raises(UserError, match=r"cannot be downloaded \(the server answers 503.*bytes have come and are kept"):
        get()
    came = get.path.with_name("set.zip.part").stat().st_size
    assert 0 < came < len(CONTENT) and not get.path.exists()
    server.asked.clear()
    assert get() == SHA256
    assert [asked[0] for asked in server.asked] == [f"bytes={came}-"]


def test_a_changed_file_is_not_spliced(get, server):
    server.trouble = ["dies"] + ["500"] * 5
    with pytest.raises(UserError):
        get()
    server.content = OTHER
    assert get() == hashlib.sha256(OTHER).hexdigest() and get.path.read_bytes() == OTHER


def test_a_changed_file_is_not_spliced_even_where_conditions_are_ignored(get, server):
    """The server sends a part of the new file for the range of the old one; its ETag gives it away."""
    server.manners = {"no-conditions"}
    server.trouble = ["dies"] + ["500"] * 5
    with pytest.raises(UserError):
        get()
    server.content = OTHER
    get()
    assert get.path.read_bytes() == OTHER


def test_a_server_without_ranges_starts_anew(get, server):
    server.manners, server.trouble = {"no-ranges"}, ["dies"]
    assert get() == SHA256 and get.path.read_bytes() == CONTENT and server.asked[1][0]


@pytest.mark.parametrize("manner", ["no-tag", "weak-tag"])
def test_without_a_strong_validator_nothing_is_resumed(get, server, manner):
    server.manners, server.trouble = {manner}, ["dies"]
    assert get() == SHA256 and server.asked[1][0] is None


def test_a_date_is_a_validator_too(get, server):
    server.manners, server.trouble, server.date = {"no-tag"}, ["dies"], "Wed, 21 Oct 2015 07:28:00 GMT"
    assert get() == SHA256 and server.asked[1][1] == server.date


def test_another_part_than_asked_for_is_thrown_away(get, server):
    server.trouble = ["dies", "another-part"]
    assert get() == SHA256 and get.path.read_bytes() == CONTENT and server.asked[2][0] is None


def test_a_part_that_is_whole_already(get, server):
    """Stopped between the last byte and the renaming: the server says 416, and the part is complete."""
    get()
    get.path.rename(get.path.with_name("set.zip.part"))
    get.path.with_name("set.zip.part.json").write_text(json.dumps(
        {"url": server.url, "validator": f'"{hashlib.md5(CONTENT).hexdigest()}"', "total": len(CONTENT)}))
    assert get(sha256=SHA256) == SHA256 and left(get) == ["set.zip"]


@pytest.mark.parametrize("note", ["", "[]", "{}", '{"url": "http://other", "validator": "x"}', '{"url": 1}'])
def test_a_part_of_something_else_is_not_continued(get, server, note):
    get.path.parent.mkdir()
    get.path.with_name("set.zip.part").write_bytes(b"something else")
    get.path.with_name("set.zip.part.json").write_text(note)
    assert get() == SHA256 and server.asked[0][0] is None


@pytest.mark.parametrize("wanted, words", [
    ({"sha256": "0" * 64}, f"SHA-256 {SHA256}, expected {'0' * 64}; nothing was kept"),
    ({"md5": "0" * 32}, f"MD5 {MD5}, expected {'0' * 32}; nothing was kept"),
    ({"size": 5}, "has 300,000 bytes, and the registry knows 5")])
def test_a_wrong_file_is_not_kept(get, wanted, words):
    with pytest.raises(UserError, match=words):
        get(**wanted)
    assert left(get) == []


def test_without_a_length_the_hash_decides(get, server):
    server.manners = {"no-length"}
    assert get(sha256=SHA256) == SHA256
    get.path.unlink()
    server.trouble = ["dies"]
    with pytest.raises(UserError, match=r"bytes 100000, expected 300000; nothing was kept"):
        get(size=len(CONTENT), sha256=SHA256)
    assert left(get) == []


@pytest.mark.parametrize("code, words", [("404", "is gone .404"), ("403", "may not be downloaded .403.*--from PATH"),
                                         ("401", "login or an agreement"), ("400", "the server answers 400")])
def test_what_will_not_pass_is_not_tried_again(get, server, code, words):
    server.trouble = [code]
    with pytest.raises(UserError, match=words):
        get()
    assert len(server.asked) == 1 and left(get) == []


def test_pauses_double_and_a_server_may_ask_for_one(get, server, monkeypatch):
    server.trouble = ["503", "429"]
    get()
    assert get.waited == [7, 7]
    monkeypatch.setattr(module, "requests", Refusing(module.requests))
    get.path.unlink()
    get.waited.clear()
    with pytest.raises(UserError, match="0 bytes have come"):
        get(tries=5)
    assert get.waited == [1, 2, 4, 8]


class Refusing:
    """requests, without a connection."""

    def __init__(self, real):
        self.exceptions = real.exceptions

    def get(self, *arguments, **options):
        raise self.exceptions.ConnectionError("refused")


def test_nobody_listens(tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    waited = []
    with pytest.raises(UserError, match="cannot be downloaded .*refused"):
        download("http://127.0.0.1:9/x", tmp_path / "x", tries=2, sleep=waited.append)
    with pytest.raises(UserError, match="no address"):
        download("nonsense", tmp_path / "x")
    assert waited == [1]


def test_the_disk_is_asked_first(get, monkeypatch):
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: type("usage", (), {"free": module.SPARE + 1000}))
    with pytest.raises(UserError, match="300,000 bytes are to come.*make room"):
        get()
    assert not get.path.with_name("set.zip.part").exists()


def test_check_of_a_file_of_ones_own_keeps_it(tmp_path):
    (tmp_path / "mine").write_bytes(b"1")
    with pytest.raises(UserError, match="bytes 1, expected 2; fetch it again; if"):
        check(tmp_path / "mine", size=2)
    assert (tmp_path / "mine").exists()


# ---- redirects ---------------------------------------------------------------------------------------------------------
@pytest.fixture
def web(monkeypatch):
    """Answers by address instead of a network: `web.pages` {url: (status, headers)}; `web.asked` lists the addresses."""
    import io

    import requests
    import urllib3

    def send(self, request, **options):
        web.asked.append(request.url)
        status, headers = web.pages[request.url]
        answer = requests.Response()
        answer.status_code, answer.url, answer.request = status, request.url, request
        answer.headers.update(headers)
        answer.raw = urllib3.HTTPResponse(io.BytesIO(CONTENT if status == 200 else b""), preload_content=False, status=status)
        return answer

    class Web:
        pages, asked = {}, []

    web = Web()
    web.pages, web.asked = {}, []
    monkeypatch.setattr(requests.adapters.HTTPAdapter, "send", send)
    return web


def to(address):
    return 302, {"Location": address}


def test_a_detour_without_encryption_is_refused_even_where_the_end_is_encrypted(web, tmp_path):
    web.pages = {"https://a.org/x": to("http://b.org/x"), "http://b.org/x": to("https://c.org/x"), "https://c.org/x": (200, {})}
    with pytest.raises(UserError, match="https://a.org/x leads to http://b.org/x, which is not encrypted"):
        download("https://a.org/x", tmp_path / "x")
    assert web.asked == ["https://a.org/x"] and not (tmp_path / "x").exists()


@pytest.mark.parametrize("inside", ["https://127.0.0.1/x", "https://localhost:8080/x", "https://192.168.0.1/x", "https://10.1.2.3/x",
                                    "https://169.254.169.254/latest", "https://[::1]/x", "https://[::ffff:10.0.0.1]/x",
                                    "https://2130706433/x", "https://0x7f.1/x"])
def test_a_public_address_does_not_lead_to_a_private_one(web, tmp_path, inside):
    class Everything(dict):
        def __missing__(self, key):
            return 200, {}

    web.pages = Everything({"https://a.org/x": to(inside)})
    with pytest.raises(UserError, match="leads to .*, an address inside a private network"):
        download("https://a.org/x", tmp_path / "x")
    assert web.asked == ["https://a.org/x"]


def test_an_encrypted_detour_is_followed(web, tmp_path):
    web.pages = {"https://a.org/x": to("/y"), "https://a.org/y": to("https://cdn.org/z"), "https://cdn.org/z": (200, {})}
    assert download("https://a.org/x", tmp_path / "x", sha256=SHA256) == SHA256
    assert web.asked == ["https://a.org/x", "https://a.org/y", "https://cdn.org/z"]


def test_a_circle_of_addresses_ends(web, tmp_path):
    web.pages = {"https://a.org/x": to("https://a.org/x")}
    with pytest.raises(UserError, match="more than .* redirects"):
        download("https://a.org/x", tmp_path / "x")


def test_a_whole_part_is_used_without_asking_even_where_the_server_names_no_version(get, server, monkeypatch):
    """Stopped after the last byte, while the hash was computed."""
    server.manners = {"no-tag"}
    monkeypatch.setattr(module, "check", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        get(sha256=SHA256)
    monkeypatch.undo()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    assert get(sha256=SHA256) == SHA256 and len(server.asked) == 1 and left(get) == ["set.zip"]
