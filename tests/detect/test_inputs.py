import io
import os
import threading
import time

import pytest

from anl.data.decode import Refused
from anl.detect.inputs import find, read_ahead, without
from anl.errors import UserError


@pytest.fixture
def tree(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "b.jpg", "in/c.png", "in/deep/d e.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "in/loop").symlink_to(tmp_path / "in")
    return tmp_path


def paths(names, listed=()):
    return [path for path, reason in find(names, listed) if reason is None]


def test_files_folders_and_patterns_each_once_in_order(tree):
    assert paths(["b.jpg", "in", "*.png", "b.jpg"]) == ["b.jpg", "in/c.png", "in/deep/d e.png", "a.png"]
    assert paths(["*/*.png", "[ab].*"]) == ["in/c.png", "a.png", "b.jpg"]


def test_a_link_in_a_circle_is_reported(tree):
    assert [(path, reason) for path, reason in find(["in"]) if reason] == [
        ("in/loop", "symbolic link to a folder that is listed already")]


def test_a_list_may_hold_names_that_are_not_utf8(tree):
    name = os.fsdecode(b"caf\xe9 1.png")
    assert paths(["-"], io.BytesIO(b"a.png\r\ncaf\xe9 1.png\n\nb.jpg")) == ["a.png", name, "b.jpg"]


def test_a_name_that_is_nothing_is_refused(tree):
    with pytest.raises(UserError, match="no file, folder or match 'no\\*.png'"):
        find(["a.png", "no*.png"])  # at once, not when the files before it are read


def test_what_the_command_writes_itself_is_left_out(tree):
    (tree / "in/maps").mkdir()
    for name in ("in/maps/c.png-1.png", "in/out.jsonl"):
        (tree / name).write_bytes(b"x")
    left = [path for path, reason in without(find(["in"]), tree / "in/deep/../out.jsonl", "in/maps") if reason is None]
    assert left == ["in/c.png", "in/deep/d e.png"] and len(list(without(find(["in"])))) == 5


def test_read_ahead_keeps_the_order_and_its_limit():
    held, most, lock = [0], [0], threading.Lock()

    def read(path):
        with lock:
            held[0] += 1
            most[0] = max(most[0], held[0])
        time.sleep(0.002 * (path % 3))
        if path == 5:
            raise Refused("five")
        return path * 2

    found = []
    for path, value in read_ahead(range(40), read, workers=2):
        with lock:
            held[0] -= 1
        found.append((path, str(value) if isinstance(value, Refused) else value))
    assert found == [(path, "five" if path == 5 else path * 2) for path in range(40)] and most[0] <= 6


def test_threads_run_ahead_of_a_batch_and_no_further():
    started = []

    def read(path):
        started.append(path)
        return path

    taken = read_ahead(range(100), read, workers=1, ahead=8)
    assert next(taken) == (0, 0)
    for _ in range(200):
        if len(started) == 8:
            break
        time.sleep(0.01)
    time.sleep(0.05)
    assert started == list(range(8)) and [path for path, _ in taken] == list(range(1, 100))


def test_what_no_user_did_wrong_is_not_swallowed():
    with pytest.raises(ZeroDivisionError):
        list(read_ahead([1], lambda path: path / 0))
