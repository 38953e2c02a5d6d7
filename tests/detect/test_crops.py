import numpy as np
import pytest

from anl.detect.crops import MOST, RULES, aggregate, mirrored, tile


@pytest.mark.parametrize("height, width, count", [(64, 64, 1), (65, 64, 2), (64, 200, 4), (128, 128, 4), (1000, 1400, MOST),
                                                  (64, 9000, MOST), (3, 5, 1), (1, 1, 1), (70, 10, 2)])
def test_the_grid_reaches_every_edge_and_stays_within_its_limit(height, width, count):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    crops, places = tile(pixels, 64)
    assert len(crops) == len(places) == count and crops.shape[1:] == (64, 64, 3) and crops.dtype == np.uint8
    whole = mirrored(pixels, 64)
    for crop, (top, left) in zip(crops, places):
        assert np.array_equal(crop, whole[top:top + 64, left:left + 64])
    assert places.min() == 0
    reached = places.max(0) + 64
    assert np.array_equal(reached, whole.shape[:2]) or count == MOST or min(whole.shape[:2]) == 64


def test_a_picture_that_the_grid_can_cover_is_covered():
    seen = np.zeros((200, 130), bool)
    for top, left in tile(np.zeros((200, 130, 3), np.uint8), 64)[1]:
        seen[top:top + 64, left:left + 64] = True
    assert seen.all()


def test_small_pictures_are_mirrored_never_resized():
    pixels = np.arange(27, dtype=np.uint8).reshape(3, 3, 3)
    whole = mirrored(pixels, 8)
    assert whole.shape == (8, 8, 3)
    assert np.array_equal(whole[:3, :3], pixels) and np.array_equal(whole[3:6, :3], pixels[::-1])
    large = np.zeros((9, 8, 3), np.uint8)
    assert mirrored(large, 8) is large


def test_rules():
    logit = np.array([0.0, 1.0, 2.0, 9.0])
    assert {rule: aggregate(logit, rule) for rule in RULES} == {"mean": 3.0, "median": 1.5, "max": 9.0, "top_quarter": 9.0}
    assert aggregate(np.array([2.0]), "top_quarter") == 2.0
