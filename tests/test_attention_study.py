"""The study of the attention: a detector whose attention and evidence are known gets the curves of arithmetic."""

import numpy as np
import pytest
import torch
from torch import nn

from anl import attention_study as study
from anl.detector import Detector, Output
from anl.errors import UserError

GRID, CELL = 4, 4


class Known(nn.Module):
    """Reads a pixel as generated where it is brighter than mid-grey. Its map is `weights` (h, w), its logit the number
    of generated pixels in the marked cells (h, w)."""

    def __init__(self, weights, marked):
        super().__init__()
        self.weights, self.marked = (torch.as_tensor(value, dtype=torch.float32) for value in (weights, marked))

    def forward(self, x):
        region = self.marked.repeat_interleave(CELL, 0).repeat_interleave(CELL, 1)
        logit = ((x[:, 0] > 0) * region).sum((1, 2)).float()
        return Output(logit, None, self.weights.expand(len(x), -1, -1))


@pytest.fixture
def pairs():
    """Dark real patches and bright generated ones, uint8 (6, 16, 16, 3) each."""
    real = np.random.default_rng(0).integers(0, 100, (6, GRID * CELL, GRID * CELL, 3), dtype=np.uint8)
    return real, real + 150


@pytest.fixture
def many(pairs):
    """The same 20 times over, each a little different, so that their random orders differ."""
    rng = np.random.default_rng(1)
    return tuple(np.concatenate([part] * 20) + rng.integers(0, 5, (120, 16, 16, 3), dtype=np.uint8) for part in pairs)


def marked(cells):
    flat = np.zeros(GRID * GRID)
    flat[cells] = 1
    return flat.reshape(GRID, GRID)


def line(table, curve, order):
    return table[(table["curve"] == curve) & (table["order"] == order)]["logit"].to_numpy()


def test_curves_of_a_known_detector_are_exact(pairs):
    """The four loudest cells hold all the evidence, 16 pixels each: deleting them first takes it at once."""
    here = [1, 6, 11, 12]
    weights = (1 + 9 * marked(here)) / (1 + 9 * marked(here)).sum()
    found = study.curves(Known(weights, marked(here)), *pairs, seed=0, orders=5, steps=4)
    assert line(found.table, "deletion", "falling").tolist() == [64, 0, 0, 0, 0]
    assert line(found.table, "deletion", "rising").tolist() == [64, 64, 64, 64, 0]
    assert line(found.table, "insertion", "falling").tolist() == [0, 64, 64, 64, 64]
    assert line(found.table, "insertion", "rising").tolist() == [0, 0, 0, 0, 64]
    random = line(found.table, "deletion", "random")
    assert random[0] == 64 and random[-1] == 0 and (np.diff(random) < 0).all() and 20 < random[2] < 44
    area = found.areas[found.areas["curve"] == "deletion"].pivot(index="image", columns="order", values="area")
    assert (area["falling"] == 8).all() and (area["rising"] == 56).all()
    table = study.area_differences([found.areas], list("abcdef"), seed=0, replicates=50)
    assert table["difference"].iloc[2] == table["low"].iloc[2] == table["high"].iloc[2] == -48
    assert table["high"].iloc[0] < 0 < table["low"].iloc[1] and table["n"].eq(6).all()


def test_evidence_where_nobody_looks_turns_the_signs(many):
    weights = (1 + 9 * marked([0, 1])) / (1 + 9 * marked([0, 1])).sum()
    found = study.curves(Known(weights, marked([14, 15])), *many, seed=0)
    table = study.area_differences([found.areas], np.arange(120) // 4, seed=0, replicates=50)
    assert table["low"].iloc[0] > 0 > table["high"].iloc[1] and table["low"].iloc[2] > 0


def test_a_uniform_map_is_one_more_random_order(many):
    uniform = np.full((GRID, GRID), 1 / GRID**2)
    real, fake = many
    maps = np.broadcast_to(uniform, (120, GRID, GRID))
    falling, random = study.cell_orders(maps, fake, 0, 3)
    assert random.shape == (3, 120, 16) and (np.sort(falling, 1) == np.arange(16)).all()
    assert np.array_equal(falling, study.cell_orders(maps, fake, 0, 3)[0])  # the same for the same seed and images
    assert len({tuple(order) for order in falling}) > 100, "ties must not begin at the same place in every image"
    assert not (falling == random[0]).all(1).any()
    found = study.curves(Known(uniform, marked([0, 1, 2, 3])), real, fake, seed=0)
    table = study.area_differences([found.areas], np.arange(120) // 4, seed=0, replicates=200)
    assert (table["difference"].abs() < 3).all()  # of 64; by place, the marked first row would be off by 24
    assert ((table["low"] < 1) & (table["high"] > -1)).all()


def test_the_orders_of_a_pair_do_not_depend_on_the_others(pairs):
    maps = np.random.default_rng(2).random((6, GRID, GRID))
    falling, random = study.cell_orders(maps, pairs[1], 0, 3)
    alone, drawn = study.cell_orders(maps[4:5], pairs[1][4:5], 0, 3)
    assert np.array_equal(falling[4], alone[0]) and np.array_equal(random[:, 4], drawn[:, 0])
    assert np.array_equal(np.take_along_axis(maps.reshape(6, -1), falling, 1), -np.sort(-maps.reshape(6, -1), 1))


def test_mixing_takes_marked_cells_from_the_real_patch(pairs):
    cells = np.zeros((6, GRID, GRID), bool)
    cells[:, 1, 2] = True
    mixed = study.mix(*pairs, cells)
    assert mixed.dtype == np.uint8 and np.array_equal(mixed[:, 4:8, 8:12], pairs[0][:, 4:8, 8:12])
    mixed[:, 4:8, 8:12] = pairs[1][:, 4:8, 8:12]
    assert np.array_equal(mixed, pairs[1])


@pytest.mark.parametrize("steps", [1, 3, 4, 50])
def test_shares_and_ends_with_a_real_detector(pairs, steps):
    torch.manual_seed(0)
    detector = Detector("test_resnet", 8, 4, 4, 16)
    real, fake = pairs
    found = study.curves(detector, real, fake, seed=0, steps=steps)
    assert not detector.training and list(found.table) == ["curve", "order", "share", "logit", "n"]
    for curve, ends in (("deletion", (fake, real)), ("insertion", (real, fake))):
        expected = [study.read_out(detector, part)[0].mean() for part in ends]
        for order in ("falling", "rising", "random"):
            rows = found.table[(found.table["curve"] == curve) & (found.table["order"] == order)]
            share = rows["share"].to_numpy()
            assert share[0] == 0 and share[-1] == 1 and (np.diff(share) > 0).all()
            assert rows["logit"].iloc[[0, -1]].tolist() == pytest.approx(expected, abs=1e-12)
    assert len(found.areas) == 2 * 3 * 6 and set(found.maps) == {"real", "generated"}
    again = study.curves(detector, real[2:4], fake[2:4], seed=0, steps=steps)
    both = [item.areas.pivot(index="image", columns=["curve", "order"], values="area").to_numpy()
            for item in (found, again)]
    np.testing.assert_allclose(both[0][2:4], both[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("grid", [2, 4, 5])
def test_support_of_known_maps(grid):
    uniform, single = np.full((1, grid, grid), 1 / grid**2), np.zeros((1, grid, grid))
    single[0, 0, 1] = 1
    table = study.support_table(np.concatenate([uniform, single]))
    assert table["entropy"].tolist() == pytest.approx([2 * np.log2(grid), 0])
    assert table["effective_support"].tolist() == pytest.approx([1, 1 / grid**2])
    assert table["loudest_tenth"].tolist() == pytest.approx([0.1, min(1, grid**2 / 10)])


def test_study_of_two_attentions_over_two_seeds(pairs):
    torch.manual_seed(0)
    groups = {name: [Detector("test_resnet", 8, 4, 4, 16, attention=name) for _ in range(2)] for name in ("none", "gate")}
    found = study.study(groups, *pairs, list("aabbcc"), seed=0, replicates=30, orders=2, steps=2)
    assert found.support[["method", "patches"]].to_numpy().tolist() == [
        [name, patches] for name in ("none", "gate") for patches in ("real", "generated")]
    for key in study.MEASURES:
        assert (found.support[f"{key}_low"] <= found.support[key] + 1e-12).all()
        assert (found.support[key] <= found.support[f"{key}_high"] + 1e-12).all()
    assert found.support["effective_support"].iloc[0] == pytest.approx(1) and found.support["cells"].eq(4).all()
    assert len(found.curves) == 2 * 2 * 3 * 3 and next(iter(found.curves)) == "method"
    assert len(found.differences) == 2 * len(study.COMPARISONS)
    assert found.differences["seeds"].eq(2).all() and found.differences["n"].eq(6).all()
    one = study.curves(groups["gate"][0], *pairs, seed=0, orders=2, steps=2)
    two = study.curves(groups["gate"][1], *pairs, seed=0, orders=2, steps=2)
    mean = (one.table["logit"] + two.table["logit"]) / 2
    assert np.allclose(found.curves.loc[found.curves["method"] == "gate", "logit"], mean)


def test_pairs_of_the_benchmark_show_the_same_place(world):
    real, fake, clusters = study.read_pairs(world.params, 2)
    assert real.shape == fake.shape == (2, 32, 32, 3) and len(set(clusters)) == 2  # one photograph after the other
    near, far = (np.abs(real.astype(float) - part).mean() for part in (fake, fake[::-1]))  # untrained, but nearer yet
    assert 0 < near < far
    assert np.array_equal(study.read_pairs(world.params, 2, ["ddim", "vae"])[1][0], fake[0])
    assert not np.array_equal(study.read_pairs(world.params, 2, ["ddim", "vae"])[1][1], fake[1])  # families in turn
    with pytest.raises(UserError, match="no family 'gan'; choose from ddim"):
        study.read_pairs(world.params, 2, ["ddim", "gan"])
    real, fake, clusters = study.read_pairs(world.params, 1000)  # all there are
    assert len(real) == len(fake) == len(clusters) == len(set(clusters)) == 3
