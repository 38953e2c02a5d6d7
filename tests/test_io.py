"""Files appear whole or not at all, and nothing of the user's is deleted."""

import errno
import os

import numpy as np
import pytest

from anl import io
from anl.io import UserError


def test_a_failed_block_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "deep" / "file.txt"
    io.write_text(path, "old")
    with pytest.raises(RuntimeError), io.atomic_file(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old" and os.listdir(path.parent) == ["file.txt"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES])
def test_a_full_disk_is_one_line_that_names_the_file(tmp_path, code):
    with pytest.raises(UserError, match="cannot write .*file.txt"), io.atomic_file(tmp_path / "file.txt"):
        raise OSError(code, os.strerror(code))
    with pytest.raises(UserError, match="cannot write .*folder"), io.atomic_folder(tmp_path / "folder"):
        raise OSError(code, os.strerror(code))
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write .*file/x"):
        io.write_text(tmp_path / "file" / "x", "")


def test_files_are_readable_by_everyone_whom_the_umask_allows(tmp_path):
    io.write_text(tmp_path / "file", "")
    with io.atomic_folder(tmp_path / "folder"):
        pass
    umask = os.umask(0)
    os.umask(umask)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o666 & ~umask
    assert (tmp_path / "folder").stat().st_mode & 0o777 == 0o777 & ~umask


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    with pytest.raises(RuntimeError), io.atomic_folder(tmp_path / "run") as folder:
        (folder / "half").write_text("")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with io.atomic_folder(tmp_path / "run") as folder:
        (folder / "whole").write_text("new")
        assert not (tmp_path / "run").exists()
    assert (tmp_path / "run/whole").read_text() == "new"


def test_a_folder_with_content_is_kept_unless_it_may_be_replaced(tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    with io.atomic_folder(mine) as folder:  # an empty folder is filled
        (folder / "thesis").write_text("years of work")
    with pytest.raises(UserError, match="already exists and is not empty"), io.atomic_folder(mine):
        pass
    with pytest.raises(RuntimeError), io.atomic_folder(mine, replace=True):
        raise RuntimeError
    assert (mine / "thesis").read_text() == "years of work"
    with io.atomic_folder(mine, replace=True) as folder:
        (folder / "new").write_text("")
    assert os.listdir(mine) == ["new"] and os.listdir(tmp_path) == ["mine"]


def test_files_and_links_are_never_replaced_by_a_folder(tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "target").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "target")
    for name in ("file", "link"):
        with pytest.raises(UserError, match="already exists"), io.atomic_folder(tmp_path / name, replace=True):
            pass
    assert (tmp_path / "file").read_text() == "mine" and (tmp_path / "link").is_symlink()


def test_json_is_rounded_sorted_and_read_back(tmp_path):
    path = tmp_path / "values.json"
    io.write_json(path, {"b": np.float32(1) / 3, "a": [np.int64(2), float("nan")], "c": np.arange(2)})
    assert path.read_text() == '{\n "a": [\n  2,\n  null\n ],\n "b": 0.333333,\n "c": [\n  0,\n  1\n ]\n}\n'
    assert io.read_json(path) == {"a": [2, None], "b": 0.333333, "c": [0, 1]}


@pytest.mark.parametrize("content, words", [(None, "is missing"), (b"{", "is not JSON"), (b"\xff", "is not JSON")])
def test_json_that_cannot_be_read_is_one_line(tmp_path, content, words):
    if content is not None:
        (tmp_path / "values.json").write_bytes(content)
    with pytest.raises(UserError, match=words):
        io.read_json(tmp_path / "values.json")


def test_hashes_follow_names_and_contents(tmp_path):
    for folder, name, text in (("a", "x", "1"), ("b", "x", "1"), ("c", "y", "1"), ("d", "x", "2")):
        io.write_text(tmp_path / folder / name, text)
    a, b, c, d = (io.sha256_of(tmp_path / folder) for folder in "abcd")
    assert a == b and len({a, c, d}) == 3
    assert io.sha256_of(tmp_path / "a/x") == "6b86b273ff34fce19d6b804eff5a3f5747ada4eaa22f1d49c01e52ddb7875b4b"
    assert io.identity({"x": 1, "y": 2}) == io.identity({"y": 2, "x": 1}) != io.identity({"x": 1, "y": 3})
