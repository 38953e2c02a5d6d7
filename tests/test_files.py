import errno
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from anl import files
from anl.errors import UserError
from tests import small_disk


def test_a_block_that_fails_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    for problem in (ValueError, KeyboardInterrupt):
        with pytest.raises(problem), files.whole_file(path) as temporary:
            temporary.write_text("half")
            raise problem
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_killed_writer_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    if (child := os.fork()) == 0:
        with files.whole_file(path) as temporary:
            temporary.write_text("half")
            os.kill(os.getpid(), 9)
    os.waitpid(child, 0)
    assert path.read_text() == "old"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EACCES])
def test_a_full_disk_is_a_user_error(tmp_path, monkeypatch, code):
    def fail(*arguments, **options):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Path, "write_text", fail)
    with pytest.raises(UserError, match=r"cannot write .*a\.json: .*; free some space or check"):
        files.write_json(tmp_path / "a.json", {})
    assert not list(tmp_path.iterdir())


def test_other_errors_are_not_disguised(tmp_path):
    with pytest.raises(OSError, match="input"), files.whole_file(tmp_path / "a"):
        raise OSError(errno.EIO, "input/output error")


def test_a_device_that_is_full(tmp_path, monkeypatch):
    def full(dir, prefix, suffix):
        name = f"{dir}/{prefix}0{suffix}"
        os.symlink("/dev/full", name)
        return os.open(os.devnull, os.O_RDONLY), name

    monkeypatch.setattr("anl.io.tempfile.mkstemp", full)
    with pytest.raises(UserError, match="cannot write .*big.txt: No space left on device"):
        files.write_text(tmp_path / "big.txt", "x" * 200_000)
    assert not list(tmp_path.iterdir())


def test_a_really_full_disk(tmp_path):
    script = """
from pathlib import Path
from anl import files
from anl.errors import UserError
try:
    files.write_text("big.txt", "x" * 200_000)
except UserError as problem:
    print(problem)
print([path.name for path in Path().iterdir()])
files.write_text("small.txt", "x")
"""
    done = small_disk.run(tmp_path, '"$1" -c "$2"', sys.executable, script)
    assert done.returncode == 0, done.stderr
    message, left = done.stdout.splitlines()
    assert message.startswith("cannot write big.txt: No space left on device") and left == "[]"


def test_json_is_sorted_rounded_and_ends_with_a_newline(tmp_path):
    files.write_json(tmp_path / "a.json", {"b": np.float64(1 / 3), "a": [np.int64(2), float("nan")]})
    text = (tmp_path / "a.json").read_text()
    assert text.endswith("}\n") and text.index('"a"') < text.index('"b"')
    assert files.read_json(tmp_path / "a.json") == {"a": [2, None], "b": 0.333333}


def test_read_json_names_the_file(tmp_path):
    with pytest.raises(UserError, match="is missing; run"):
        files.read_json(tmp_path / "a.json")
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(UserError, match="is not JSON"):
        files.read_json(tmp_path / "a.json")


def test_csv_has_fixed_digits(tmp_path):
    files.write_csv(tmp_path / "a.csv", [{"x": 1 / 3, "y": None}, {"x": 2, "y": "a,b"}])
    assert (tmp_path / "a.csv").read_bytes() == b'x,y\n0.333333,\n2,"a,b"\n'


def test_files_are_readable_by_others(tmp_path):
    files.write_text(tmp_path / "a", "x")
    umask = os.umask(0)
    os.umask(umask)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o666 & ~umask


def test_hashes_follow_names_and_contents(tmp_path):
    for name, content in (("one/a", "1"), ("two/a", "1"), ("three/b", "1"), ("four/a", "2")):
        files.write_text(tmp_path / name, content)
    one, two, three, four = (files.sha256_of(tmp_path / name) for name in ("one", "two", "three", "four"))
    assert one == two and len({one, three, four}) == 3


def test_identity_ignores_the_order_of_keys():
    assert files.identity({"a": 1, "b": 2}) == files.identity(json.loads('{"b": 2, "a": 1}'))
    assert files.identity({"a": 1}) != files.identity({"a": 2})
