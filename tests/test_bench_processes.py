import pytest

from anl import bench_loops, bench_processes, targets
from anl.errors import UserError
from anl.files import read_json


def test_ratios_are_to_one_process_of_one_thread_and_of_all_cores(monkeypatch):
    speed = {(1, 1): 10.0, (2, 1): 18.0, (1, 2): 15.0}
    monkeypatch.setattr(bench_processes, "_measured", lambda path, count, threads: {
        "scoring": speed[count, threads], "training step": 1.0, "training step, ResNet-50": 1.0})
    table = bench_processes.processes_table("params.yaml", repeats=2).set_index(["what", "processes", "threads"])
    two = table.loc[("scoring", 2, 1)]
    assert two["speed_over_one"] == 1.8 and two["speed_over_all_cores"] == pytest.approx(1.2)
    assert table.loc[("training step", 2, 1), "speed_over_one"] == 1


def test_a_process_measures_scoring_and_training(world, tmp_path, monkeypatch):
    monkeypatch.chdir(world.root)
    monkeypatch.setattr(bench_loops, "STEPS", 3)
    monkeypatch.setattr(bench_processes, "LARGE_STEPS", 3)
    targets.compute(world.params, world.params.method.step)
    bench_processes.measure(world.params, tmp_path / "speed.json")
    found = read_json(tmp_path / "speed.json")
    assert set(found) == {"scoring", "training step", "training step, ResNet-50"} and all(value > 0 for value in found.values())


def test_a_process_that_fails_is_told_of(tmp_path):
    with pytest.raises(UserError, match="1 processes could not be measured: .*missing"):
        bench_processes._measured(tmp_path / "none.yaml", 1, 1)
