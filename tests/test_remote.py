"""Another place for the data: what is pushed to a folder is pulled by other machines through a web server."""

import functools
import http.server
import os
import subprocess
import sys
import threading

import pytest


def dvc(folder, *words):
    done = subprocess.run([sys.executable, "-m", "dvc", *words], cwd=folder, capture_output=True, text=True, check=False,
                          env={**os.environ, "DVC_NO_ANALYTICS": "1", "DVC_SITE_CACHE_DIR": str(folder / "site")})
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def server(tmp_path):
    """(address of a web server on this machine, the folder that it serves)."""
    folder = tmp_path / "served"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *words):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder)) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}", folder
        running.shutdown()


def test_what_one_machine_pushes_another_pulls_over_http(tmp_path, server):
    address, store = server
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
        assert dvc(folder, "init", "-q", "--no-scm") == (0, "")
    (first / "data").mkdir()
    for number in range(3):
        (first / "data" / f"{number}.txt").write_text(f"{number}")
    for words in (("add", "-q", "data"), ("remote", "add", "mine", str(store)), ("push", "-q", "-r", "mine")):
        status, said = dvc(first, *words)
        assert status == 0, said
    (second / "data.dvc").write_bytes((first / "data.dvc").read_bytes())
    for words in (("remote", "add", "mine", address), ("pull", "-q", "-r", "mine")):
        status, said = dvc(second, *words)
        assert status == 0, said
    assert sorted(path.read_text() for path in (second / "data").iterdir()) == ["0", "1", "2"]
