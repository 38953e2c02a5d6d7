from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from anl.data import crops
from anl.io import UserError
from tests.conftest import photograph

SHARES = {"train": 0.5, "val": 0.2, "test": 0.3}


def album(count=40, twins=()):
    return [SimpleNamespace(id=f"p{i}", cluster="twin" if i in twins else f"p{i}") for i in range(count)]


def test_the_split_has_the_given_shares_and_follows_the_seed_alone():
    split = crops.split_photos(album(), SHARES, 1)
    assert [list(split.values()).count(name) for name in crops.SPLITS] == [20, 8, 12]
    assert crops.split_photos(album()[::-1], SHARES, 1) == split != crops.split_photos(album(), SHARES, 2)
    split = crops.split_photos(album(twins=(3, 17, 39)), SHARES, 1)
    assert split["p3"] == split["p17"] == split["p39"]


def test_an_empty_split_is_refused():
    with pytest.raises(UserError, match="leaves a part of 3 photographs empty"):
        crops.split_photos(album(3), {"train": 0.9, "val": 0.05, "test": 0.05}, 1)


@pytest.mark.parametrize("shape, expected", [((400, 600), (200, 300)), ((1500, 1000), (672, 448))])
def test_sources_are_downsampled_by_two_or_more(tmp_path, shape, expected):
    Image.fromarray(photograph(1, *shape)).save(tmp_path / "a.png")
    assert crops.load_source(tmp_path / "a.png", 2.0, 448).shape == (*expected, 3)


def test_shrinking_stops_at_the_least_side():
    source = photograph(1, 100, 200)
    assert crops.shrink(source, 0.6, 1).shape == (60, 120, 3) and crops.shrink(source, 0.3, 80).shape == (80, 160, 3)
    assert crops.shrink(source, 1.0, 1) is source and crops.shrink(source, 0.5, 128) is source


def test_test_patches_do_not_overlap_and_stay_inside():
    source, options = photograph(2, 200, 260), {"size": 64, "least_std": 0, "seed": 3}
    chosen = crops.choose_patches(source, "p", "p", "test", count=99, **options)
    assert crops.choose_patches(source, "p", "p", "test", count=99, **options) == chosen
    assert len({patch.id for patch in crops.choose_patches(source, "p", "p", "train", count=5, **options)}) == 5
    taken = np.zeros((200, 260), int)
    for patch in chosen:
        taken[patch.top:patch.top + 64, patch.left:patch.left + 64] += 1
    assert taken.max() == 1 and taken.sum() == len(chosen) * 64 * 64 and len(chosen) >= 6


def test_flat_patches_are_left_out():
    source = np.full((128, 256, 3), 200, np.uint8)
    source[:, 128:] = photograph(4, 128, 128)
    chosen = crops.choose_patches(source, "p", "p", "test", size=64, count=99, least_std=6, seed=0)
    assert chosen and all(patch.left > 64 for patch in chosen)


def test_sources_that_are_too_small_are_refused():
    with pytest.raises(UserError, match="p: its downsampled source is 60 x 40 pixels, smaller than the crop of 64"):
        crops.choose_patches(photograph(1, 40, 60), "p", "p", "test", size=64, count=1, least_std=0, seed=0)
    with pytest.raises(UserError, match="no source is as large as the training crop of 512 pixels"):
        crops.CropSampler([photograph(1)], 512, 4, 7, "x")


def test_training_crops_are_a_function_of_seed_name_and_step():
    sources = [photograph(1), photograph(2, 100, 100)]
    sampler = crops.CropSampler(sources, 32, 4, 7, "x")
    batch = sampler.batch(5)
    assert batch.shape == (4, 3, 32, 32) and batch.abs().max() <= 1
    sampler.batch(0)
    assert torch.equal(batch, sampler.batch(5))
    for other in (crops.CropSampler(sources, 32, 4, 8, "x"), crops.CropSampler(sources, 32, 4, 7, "y")):
        assert not torch.equal(batch, other.batch(5))


# ---- rows ----------------------------------------------------------------------------------------------------------------
def paired(photos=6, patches=4, split="train"):
    return pd.DataFrame([{"generator": name, "label": int(name != "real"), "split": split, "group": f"g{photo}",
                          "pair": f"{photo}/{patch}", "path": f"{name}/{photo}/{patch}", "sha256": f"{name}{photo}{patch}"}
                         for name in ("real", "a", "b") for photo in range(photos) for patch in range(patches)])


def unpaired(**counts):
    return pd.DataFrame([{"generator": name, "label": int(name != "real"), "split": split, "pair": "",
                          "group": f"{name}{split}{i}", "path": f"{name}/{split}/{i}", "sha256": f"{name}{split}{i}"}
                         for key, count in counts.items() for name, split in [key.split("_")] for i in range(count)])


def test_used_reals_are_spread_over_groups_and_bring_their_regenerations():
    rows = paired()
    used = crops.use_rows(rows, {"train": 9, "val": 5, "test": 5}, 0)
    real = used[used["generator"] == "real"]
    assert len(real) == 9 and real["group"].value_counts().between(1, 2).all()
    for name in ("a", "b"):
        assert set(used.loc[used["generator"] == name, "pair"]) == set(real["pair"])
    shuffled = crops.use_rows(rows.sample(frac=1, random_state=1), {"train": 9}, 0)
    assert set(shuffled["path"]) == set(used["path"]) != set(crops.use_rows(rows, {"train": 9}, 1)["path"])


def test_unpaired_sets_are_used_in_equal_numbers():
    rows = unpaired(real_train=20, a_train=30, real_test=10, a_test=4, b_test=30)
    used = crops.use_rows(rows, {"train": 8, "test": 100}, 0)
    assert used.groupby(["split", "generator"]).size().to_dict() == {
        ("test", "a"): 4, ("test", "b"): 10, ("test", "real"): 10, ("train", "a"): 8, ("train", "real"): 8}
    more = crops.use_rows(rows, {"train": 12, "test": 100}, 0)
    assert set(used["path"]) <= set(more["path"])
    alone = crops.use_rows(rows[rows["generator"] != "b"], {"train": 8, "test": 100}, 0)
    assert set(alone["path"]) == set(used.loc[used["generator"] != "b", "path"])
