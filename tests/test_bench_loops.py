import dataclasses

import pytest
import torch
from torch.optim import optimizer

from anl import bench_loops, runs


@pytest.fixture
def in_world(world, monkeypatch):
    monkeypatch.chdir(world.root)
    monkeypatch.setattr(bench_loops, "STEPS", 4)
    return world


def test_a_step_is_timed_in_the_very_loop_and_nothing_stays_behind(in_world):
    torch.use_deterministic_algorithms(False)
    table = bench_loops.step_table(in_world.params, repeats=2).set_index("model")
    assert list(table.index) == ["bare", "plain", "none", "energy", "gate", "affinity", "shallow"]
    assert (table["seconds"] > 0).all() and table.loc["plain", "time_over_plain"] == table.loc["bare", "time_over_bare"] == 1
    assert not torch.are_deterministic_algorithms_enabled() and not optimizer._global_optimizer_post_hooks
    assert not list(in_world.root.glob(".cache/anl/plain*"))


def test_the_time_of_a_step_is_that_between_two_updates(in_world, monkeypatch):
    clock = iter([0.0, 1.0, 3.0, 10.0])
    monkeypatch.setattr(bench_loops.time, "perf_counter", lambda: next(clock))
    params = dataclasses.replace(in_world.params, training=dataclasses.replace(in_world.params.training, steps=4))
    assert bench_loops.step_seconds(runs.main_specs(params)[0], params) == 2.0


@pytest.mark.parametrize("size", [32, 48])
def test_scoring_reads_the_stored_images_and_the_loop_does_not(in_world, monkeypatch, size):
    monkeypatch.setattr(bench_loops, "ENLARGED", 6)
    read = []
    honest = bench_loops.read_images
    monkeypatch.setattr(bench_loops, "read_images", lambda folder, rows: read.append(len(rows)) or honest(folder, rows))
    table = bench_loops.scoring_table(in_world.params, dataclasses.asdict(in_world.params.detector), size, repeats=2)
    assert set(zip(table["model"], table["what"])) == {(name, what) for name in ("bare", "affinity") for what in ("loop", "scoring")}
    assert (table.loc[table["what"] == "loop", "speed_over_loop"] == 1).all() and (table["images_per_second"] > 0).all()
    assert len(read) == 1 + (size == 48) + 2 * 3  # once for the loops, then in each round and the warm-up of both networks
    assert size == 32 or set(table["images"]) == {6}
