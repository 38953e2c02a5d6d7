"""Costs are counted exactly, and the method costs nothing at inference where its head is dropped."""

import time

import pytest
import torch
from torch import nn

from anl.evaluation import cost
from anl.models.detector import Detector

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def detectors():
    made = {"plain": {"noise": False}, "anl": {}, "energy": {"attention": "energy"}}
    return {name: Detector("test_resnet", 8, 4, 16, seed=0, **options) for name, options in made.items()}


def test_counts_by_hand():
    model = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 2))
    parameters, multiply_adds = cost.count(model.eval(), 8)
    assert (parameters, multiply_adds) == (3 * 5 * 9 + 5 + 5 * 2 + 2, 3 * 5 * 9 * 64 + 5 * 2)
    assert cost.count(model.to("meta"), 8) == (parameters, multiply_adds)


def test_the_method_has_the_plain_detectors_cost_at_inference(detectors):
    table = cost.inference_table(cost.inference_forms(detectors), 16, baseline="plain", device=CPU, repeats=0)
    table = table.set_index("variant")
    assert list(table.index) == ["plain", "anl", "anl (inference)", "energy"]
    for column in ("parameters_ratio", "multiply_adds_ratio"):
        assert table.loc["plain", column] == table.loc["anl (inference)", column] == 1
        assert table.loc["anl", column] > 1 and table.loc["energy", column] > 1
    assert "time_ratio" not in table


def test_times_are_ratios_of_rounds_at_every_batch_size(detectors):
    table = cost.inference_table(detectors, 16, baseline="plain", device=CPU, batch_sizes=(1, 3), repeats=4)
    assert len(table) == 6 and set(table["batch_size"]) == {1, 3}
    plain = table[table["variant"] == "plain"]
    assert plain["time_ratio"].eq(1).all() and (table["milliseconds"] > 0).all()
    assert ((table["time_ratio_low"] <= table["time_ratio"]) & (table["time_ratio"] <= table["time_ratio_high"])).all()


def test_calls_take_turns_and_the_slower_one_takes_longer():
    calls = []

    def call(name, seconds):
        return lambda: (calls.append(name), time.sleep(seconds))

    table = cost.training_table({"short": call("short", 0.001), "long": call("long", 0.008)}, baseline="short", device=CPU,
                                repeats=5).set_index("variant")
    assert table.loc["long", "time_ratio_low"] > 1.5 and table.loc["short", "time_ratio"] == 1
    assert all({calls[place], calls[place + 1]} == {"short", "long"} for place in range(0, len(calls), 2))
