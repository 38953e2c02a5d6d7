from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from anl.data import patches
from anl.errors import UserError
from tests.conftest import photograph

FRACTIONS = {"train": 0.5, "val": 0.2, "test": 0.3}


def album(count=40, groups=()):
    group = dict(groups)
    return [SimpleNamespace(id=f"p{i}", cluster=group.get(i, f"p{i}")) for i in range(count)]


def test_split_has_the_asked_shares():
    split = list(patches.split_photos(album(), FRACTIONS, 1).values())
    assert [split.count(name) for name in patches.SPLITS] == [20, 8, 12]


def test_near_duplicates_stay_together():
    for seed in range(20):
        split = patches.split_photos(album(groups=[(3, "twin"), (17, "twin"), (39, "twin")]), FRACTIONS, seed)
        assert split["p3"] == split["p17"] == split["p39"]


def test_split_follows_the_seed_and_not_the_order():
    one = patches.split_photos(album(), FRACTIONS, 1)
    assert patches.split_photos(album()[::-1], FRACTIONS, 1) == one
    assert patches.split_photos(album(), FRACTIONS, 2) != one


def test_an_empty_part_is_refused():
    with pytest.raises(UserError, match="leaves a part of 3 photographs empty"):
        patches.split_photos(album(3), {"train": 0.9, "val": 0.05, "test": 0.05}, 1)


@pytest.mark.parametrize("shape, expected", [((400, 600), (200, 300)), ((3000, 2000), (672, 448))])
def test_sources_are_downsampled_by_two_or_more(tmp_path, shape, expected):
    path = tmp_path / "a.png"
    Image.fromarray(photograph(1, *shape)).save(path)
    assert patches.load_source(path, 2.0, 448).shape == (*expected, 3)


def test_test_patches_do_not_overlap_and_stay_inside():
    source = photograph(2, 200, 260)
    chosen = patches.choose_patches(source, "p", "p", "test", size=64, count=99, least_std=0, seed=3)
    taken = np.zeros((200, 260), int)
    for patch in chosen:
        taken[patch.top:patch.top + 64, patch.left:patch.left + 64] += 1
    assert taken.max() == 1 and taken.sum() == len(chosen) * 64 * 64 and len(chosen) >= 6


def test_patches_are_as_many_as_asked_and_the_same_each_time():
    source = photograph(2, 300, 300)
    options = {"size": 64, "count": 5, "least_std": 0, "seed": 3}
    chosen = patches.choose_patches(source, "p", "p", "train", **options)
    assert len(chosen) == 5 and chosen == patches.choose_patches(source, "p", "p", "train", **options)
    assert len({patch.id for patch in chosen}) == 5


def test_flat_patches_are_left_out():
    source = np.full((128, 256, 3), 200, np.uint8)
    source[:, 128:] = photograph(4, 128, 128)
    chosen = patches.choose_patches(source, "p", "p", "test", size=64, count=99, least_std=6, seed=0)
    assert chosen and all(patch.left > 64 for patch in chosen)


def test_a_source_smaller_than_a_crop_is_named():
    with pytest.raises(UserError, match="p: its downsampled source is 60 x 40 pixels, smaller than the crop of 64"):
        patches.choose_patches(photograph(1, 40, 60), "p", "p", "test", size=64, count=1, least_std=0, seed=0)


def test_pixels_survive_the_way_through_a_tensor():
    pixels = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)
    tensor = patches.to_tensor(pixels)
    assert tensor.shape == (1, 3, 16, 16) and tensor.min() == -1 and tensor.max() == 1
    assert np.array_equal(patches.to_pixels(tensor), pixels)
    assert patches.to_pixels(torch.tensor([-3.0, 3.0]).reshape(1, 1, 2).expand(3, 1, 2)).tolist() == [[[0] * 3, [255] * 3]]


def test_halving_halves():
    pixels = photograph(5, 64, 80)
    assert patches.halve(pixels).shape == (32, 40, 3)
    assert np.array_equal(patches.halve(np.full((8, 8, 3), 77, np.uint8)), np.full((4, 4, 3), 77))


def test_crops_are_a_function_of_seed_name_and_step():
    sources = [photograph(1), photograph(2, 100, 100)]
    sampler = patches.CropSampler(sources, 32, 4, 7, "x")
    batch = sampler.batch(5)
    assert batch.shape == (4, 3, 32, 32) and batch.abs().max() <= 1
    sampler.batch(0)  # another step in between changes nothing
    assert torch.equal(batch, sampler.batch(5))
    for other in (patches.CropSampler(sources, 32, 4, 8, "x"), patches.CropSampler(sources, 32, 4, 7, "y")):
        assert not torch.equal(batch, other.batch(5))


def test_sources_too_small_for_the_training_crop():
    with pytest.raises(UserError, match="no source is as large as the training crop of 512 pixels"):
        patches.CropSampler([photograph(1)], 512, 4, 7, "x")
