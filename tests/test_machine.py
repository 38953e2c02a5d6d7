import os
import sys
from types import SimpleNamespace

import pytest

from anl import machine


@pytest.mark.parametrize("system, stated", [("linux", 2048), ("darwin", 2 * 1024**2)])
def test_peak_memory_in_the_units_of_the_system(monkeypatch, system, stated):
    monkeypatch.setattr(sys, "platform", system)
    assert machine.peak_memory_mb(SimpleNamespace(ru_maxrss=stated)) == 2


def test_cores_without_affinity(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 3, 5}, raising=False)
    assert machine.cores() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    assert machine.cores() == 7
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert machine.cores() == 1
