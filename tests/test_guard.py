import os
import sys
import time
import types

from anl import guard


def test_edits_additions_and_removals_are_named(tmp_path):
    for name in ("a.py", "b.py", "in/c.py", "in/__pycache__/c.pyc"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text(name)
    before = guard.fingerprints([tmp_path / "a.py", tmp_path / "in", tmp_path / "none"])
    assert guard.changed(before, guard.fingerprints([tmp_path / "a.py", tmp_path / "in", tmp_path / "none"])) == []
    (tmp_path / "b.py").write_text("not asked for")
    (tmp_path / "in/__pycache__/c.pyc").write_text("made by reading")
    (tmp_path / "a.py").write_text("edited")
    (tmp_path / "in/d.py").write_text("added")
    (tmp_path / "none").write_text("appeared")
    found = guard.changed(before, guard.fingerprints([tmp_path / "a.py", tmp_path / "in", tmp_path / "none"]))
    assert found == [str(tmp_path / name) for name in ("a.py", "in/d.py", "none")]


def test_a_file_edited_and_put_back_is_named(tmp_path):
    path = tmp_path / "a.py"
    path.write_text("x")
    before = guard.fingerprints([path])
    path.write_text("y")
    path.write_text("x")
    os.utime(path, ns=(0, before[str(path)][2] + 1))
    assert guard.changed(before, guard.fingerprints([path])) == [str(path)]


def test_code_and_parameters_edited_under_a_command_are_named(tmp_path, monkeypatch):
    module, params = tmp_path / "thing.py", tmp_path / "params.yaml"
    for path in (module, params):
        path.write_text("x")
        os.utime(path, ns=(0, 0))
    fake = types.ModuleType("anl.thing")
    fake.__file__ = str(module)
    monkeypatch.setitem(sys.modules, "anl.thing", fake)
    now = time.time_ns() + 10**12  # whatever else is edited in this tree
    assert guard.edited(now, params) == []
    for path in (module, params):
        os.utime(path, ns=(0, now + 1))
        assert [os.path.basename(name) for name in guard.edited(now, params)] == [path.name]
        os.utime(path, ns=(0, 0))
