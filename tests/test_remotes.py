"""A DVC remote that is a web server over a copy of a store: what a clone without .dvc/store pulls from."""

import functools
import http.server
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.test_pipeline import environment

DVC = str(Path(sys.executable).parent / "dvc")


def run(place, *words):
    return subprocess.run(words, cwd=place, env=environment(place), capture_output=True, text=True, check=False)


@pytest.fixture
def server(tmp_path):
    """(folder that is served, its address): Python's own server, as the page on remotes names it."""
    folder = tmp_path / "served"
    folder.mkdir()
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as found:
        thread = threading.Thread(target=found.serve_forever, daemon=True)
        thread.start()
        yield folder, f"http://127.0.0.1:{found.server_address[1]}"
        found.shutdown()


def test_a_file_is_pulled_from_a_web_server(tmp_path, server):
    folder, address = server
    place = tmp_path / "project"
    (place / "data").mkdir(parents=True)
    (place / "data" / "photo.txt").write_text("a photograph\n")
    for words in (["git", "init", "-q"], [DVC, "init", "-q"], [DVC, "remote", "add", "-d", "store", str(folder)],
                  [DVC, "add", "-q", "data"], [DVC, "push", "-q"], [DVC, "remote", "add", "web", address]):
        done = run(place, *words)
        assert done.returncode == 0, done.stderr
    for made in (place / "data" / "photo.txt", place / ".dvc" / "cache"):
        subprocess.run(["rm", "-rf", str(made)], check=True)
    done = run(place, DVC, "pull", "-q", "-r", "web")
    assert done.returncode == 0, done.stderr
    assert (place / "data" / "photo.txt").read_text() == "a photograph\n"
