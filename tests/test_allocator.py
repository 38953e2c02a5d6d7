import os
import subprocess
import sys

import pytest

from anl import allocator, cli

# how many pages the system hands out, in the median of many rounds, while a block of 36 MB is taken, filled and freed
COUNTED = """
import resource, statistics, sys
import torch
sys.path.insert(0, {root!r})
from anl import allocator
{before}
pages = []
for _ in range(40):
    torch.ones(9_000_000)
    pages.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
print(statistics.median(after - before for before, after in zip(pages, pages[1:])))
"""


def pages(root, before, **environment):
    clean = {name: value for name, value in os.environ.items() if name not in allocator.SETTINGS}
    done = subprocess.run([sys.executable, "-c", COUNTED.format(root=str(root), before=before)], env={**clean, **environment},
                          check=True, capture_output=True, text=True)
    return float(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="malloc is not glibc's")
def test_freed_memory_is_used_again_here_and_in_what_is_started(pytestconfig):
    root = pytestconfig.rootpath
    given_back = pages(root, "")
    here = pages(root, "assert allocator.keep_freed_memory()")
    started = pages(root, "", **dict.fromkeys(allocator.SETTINGS, str(allocator.LARGE)))
    assert given_back > 10 * max(here, started, 1)


def test_what_the_user_has_set_stays(monkeypatch):
    for name in allocator.SETTINGS:
        monkeypatch.setenv(name, "131072")
    assert not allocator.keep_freed_memory()
    assert all(os.environ[name] == "131072" for name in allocator.SETTINGS)


def test_a_command_called_from_another_program_leaves_its_memory_alone(monkeypatch, capsys):
    for name in allocator.SETTINGS:
        monkeypatch.delenv(name, raising=False)
    assert cli.main(["train", "--seed", "0", "--step", "0"]) == 2 and "anl train: " in capsys.readouterr().err
    assert not set(allocator.SETTINGS) & set(os.environ)


def test_another_malloc_is_left_alone(monkeypatch):
    for name in allocator.SETTINGS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda name: object())
    assert not allocator.keep_freed_memory()
