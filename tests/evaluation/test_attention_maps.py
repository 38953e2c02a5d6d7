"""A detector whose attention and evidence are known gets the curves of arithmetic."""

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from anl.evaluation import attention_maps as maps_of
from anl.io import UserError
from anl.models.detector import Detector, Output

GRID, CELL, CPU = 4, 4, torch.device("cpu")


class Known(nn.Module):
    """Counts the pixels brighter than mid-grey in the marked cells (h, w); its map is `weights` (h, w)."""

    def __init__(self, weights, marked):
        super().__init__()
        self.weights, self.marked = (torch.as_tensor(value, dtype=torch.float32) for value in (weights, marked))

    def forward(self, x):
        region = self.marked.repeat_interleave(CELL, 0).repeat_interleave(CELL, 1)
        return Output(((x[:, 0] > 0) * region).sum((1, 2)).float(), None, self.weights.expand(len(x), -1, -1))


def marked(cells):
    flat = np.zeros(GRID * GRID)
    flat[cells] = 1
    return flat.reshape(GRID, GRID)


def loud(cells):
    return (1 + 9 * marked(cells)) / (1 + 9 * marked(cells)).sum()


@pytest.fixture(scope="module")
def pairs():
    """Dark real patches and bright generated ones, uint8 (40, 16, 16, 3) each."""
    real = np.random.default_rng(0).integers(0, 100, (40, GRID * CELL, GRID * CELL, 3), dtype=np.uint8)
    return real, real + 150


def differences(model, pairs):
    study = maps_of.study({"a": model}, *pairs, np.arange(40) // 4, seed=0, replicates=100, device=CPU)
    return study.set_index("metric")


def test_areas_of_a_known_detector_are_exact(pairs):
    here = [1, 6, 11, 12]  # the four loudest cells hold all the evidence, 16 pixels each
    found, _ = maps_of.areas(Known(loud(here), marked(here)), *pairs, seed=0, device=CPU)
    expected = {("deletion", "falling"): 8, ("deletion", "rising"): 56, ("insertion", "falling"): 56, ("insertion", "rising"): 8}
    assert all((found[key] == area).all() for key, area in expected.items())
    assert (found["deletion", "random"] == found["insertion", "random"]).all() and 28 < found["deletion", "random"].mean() < 36
    table = differences(Known(loud(here), marked(here)), pairs)
    assert table.loc["deletion minus rising", ["mean", "low", "high"]].tolist() == [-48] * 3
    assert table.loc["deletion minus random", "high"] < 0 < table.loc["insertion minus random", "low"]


def test_evidence_away_from_the_map_turns_the_signs(pairs):
    table = differences(Known(loud([0, 1, 2, 3, 4, 5]), marked([14, 15])), pairs)
    assert table.loc["deletion minus random", "low"] > 0 > table.loc["insertion minus random", "high"]


def test_a_uniform_map_is_one_more_random_order(pairs):
    maps = np.full((40, GRID, GRID), 1 / GRID**2)
    falling, random = maps_of.cell_orders(maps, pairs[1], 0, 3)
    assert random.shape == (3, 40, 16) and (np.sort(falling, 1) == np.arange(16)).all()
    assert len({tuple(order) for order in falling}) > 30, "ties must not start at the same place in every image"
    alone, drawn = maps_of.cell_orders(maps[4:5], pairs[1][4:5], 0, 3)  # orders do not depend on the other pairs
    assert np.array_equal(falling[4], alone[0]) and np.array_equal(random[:, 4], drawn[:, 0])
    table = differences(Known(maps[0], marked([0, 1, 2, 3])), pairs)
    assert (table.filter(like=" minus ", axis=0)["mean"].abs() < 5).all()  # of 64; by place, the marked first row would be off by 24


def test_mixing_takes_marked_cells_from_the_real_patch(pairs):
    cells = np.zeros((40, GRID, GRID), bool)
    cells[:, 1, 2] = True
    mixed = maps_of.mix(*pairs, cells)
    assert mixed.dtype == np.uint8 and np.array_equal(mixed[:, 4:8, 8:12], pairs[0][:, 4:8, 8:12])
    mixed[:, 4:8, 8:12] = pairs[1][:, 4:8, 8:12]
    assert np.array_equal(mixed, pairs[1])


@pytest.mark.parametrize("kind", ["attention", "evidence"])
def test_maps_of_a_real_detector_sum_to_one(pairs, kind):
    detector = Detector("test_resnet", 8, 4, 16, attention="energy", seed=0)
    maps = maps_of.read_out(detector, pairs[1][:4], CPU, 3, kind)[1]
    assert maps.shape == (4, 2, 2) and np.allclose(maps.sum((1, 2)), 1) and detector.training
    with pytest.raises(UserError, match="evidence"):
        maps_of.read_out(detector, pairs[0][:4], CPU, kind="heat")


@pytest.mark.parametrize("grid", [2, 4, 5])
def test_support_of_known_maps(grid):
    uniform, single = np.full((1, grid, grid), 1 / grid**2), np.zeros((1, grid, grid))
    single[0, 0, 1] = 1
    table = maps_of.support_table(np.concatenate([uniform, single]))
    assert table["entropy"].tolist() == pytest.approx([2 * np.log2(grid), 0], abs=1e-6)
    assert table["effective_support"].tolist() == pytest.approx([1, 1 / grid**2], abs=1e-6)
    assert table["loudest_tenth"].tolist() == pytest.approx([0.1, min(1, grid**2 / 10)])


def test_pairs_are_spread_over_photographs():
    rows = pd.DataFrame([{"image_id": f"{split}{generator}{photo}{patch}", "generator": generator, "split": split,
                          "label": int(generator != "real"), "group": photo, "pair": f"{split}{photo}{patch}"}
                         for split in ("train", "test") for generator in ("real", "ddim", "vae")
                         for photo in "abc" for patch in range(3)])
    rows.loc[rows["image_id"] == "testddimb0", "pair"] = ""
    real, generated = maps_of.choose_pairs(rows, 5, "ddim")
    assert (rows["pair"][real].to_numpy() == rows["pair"][generated].to_numpy()).all()
    assert rows["split"][real].eq("test").all() and rows["group"][real].value_counts().max() == 2
    assert rows["generator"][generated].eq("ddim").all() and len(real) == 5
    with pytest.raises(UserError, match="flow"):
        maps_of.choose_pairs(rows, 5, "flow")
