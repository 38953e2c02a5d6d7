"""Costs are counted exactly, and the method costs nothing at inference where its head is dropped."""

import pytest
import torch
from torch import nn

from anl.evaluation import cost
from anl.models.detector import Detector

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def detectors():
    made = {"plain": {"noise": False}, "none": {}, "transfer": {"attention": "transfer"}, "energy": {"attention": "energy"}}
    return {name: Detector("test_resnet", 8, 4, 16, seed=0, **options) for name, options in made.items()}


def test_counts_by_hand():
    model = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 2))
    parameters, multiply_adds = cost.count(model.eval(), 8)
    assert (parameters, multiply_adds) == (3 * 5 * 9 + 5 + 5 * 2 + 2, 3 * 5 * 9 * 64 + 5 * 2)
    assert cost.count(model.to("meta"), 8) == (parameters, multiply_adds)


def test_the_method_has_exactly_the_plain_detectors_cost_at_inference(detectors):
    trained = cost.count_table({name: model.eval() for name, model in detectors.items()}, 16, baselines=["plain"]).set_index("variant")
    bare = cost.BareBackbone("test_resnet", 8, 16)
    used = cost.count_table(cost.inference_forms({"bare": bare, **detectors}), 16, baselines=["plain"]).set_index("variant")
    assert used["multiply_adds"].idxmin() == "bare"
    for column in ("parameters_over_plain", "multiply_adds_over_plain"):
        assert used.loc[["plain", "none", "transfer"], column].eq(1).all() and used.loc["energy", column] > 1
        assert trained.loc["plain", column] == 1 and trained.loc[["none", "transfer", "energy"], column].gt(1).all()


def test_times_are_ratios_of_rounds_at_every_batch_size(detectors):
    table = cost.inference_table(cost.inference_forms(detectors), 16, baselines=["plain", "energy"], device=CPU, batch_sizes=(1, 3),
                                 repeats=4)
    assert len(table) == 8 and set(table["batch_size"]) == {1, 3}
    for base in ("plain", "energy"):
        columns = [f"time_over_{base}{end}" for end in ("_low", "", "_high")]
        assert table.loc[table["variant"] == base, columns].eq(1).all(axis=None)
        assert all(table[columns].iloc[row].is_monotonic_increasing for row in range(len(table)))
    assert table["images_per_second"].to_numpy() == pytest.approx(1000 * table["batch_size"] / table["milliseconds"])


def test_ratios_by_hand():
    table = cost.ratios({"a": [1.0, 2.0, 4.0], "b": [2.0, 2.0, 2.0]}, ["b"], images=8).set_index("variant")
    assert table.loc["a", ["time_over_b_low", "time_over_b", "time_over_b_high"]].tolist() == [0.75, 1.0, 1.5]
    assert table.loc["a", ["milliseconds", "images_per_second"]].tolist() == [2000, 4]
