"""Pictures of images, noise and curves."""

import numpy as np
import pandas as pd
import pytest

from anl.report import pictures


def test_rows_are_evenly_spaced():
    rows = pd.DataFrame({"place": range(11)})
    assert pictures.evenly(rows, 3)["place"].tolist() == [0, 5, 10]
    assert len(pictures.evenly(rows, 50)) == 11 and pictures.evenly(rows.iloc[:0], 3).empty


def test_partners_are_a_photograph_and_its_regeneration():
    rows = pd.DataFrame({"generator": ["real", "real", "vae", "free"], "pair": ["a", "b", "b", ""], "image_id": list("wxyz")})
    (real, fake), = pictures.partners(rows, "vae", 2)
    assert (real["image_id"], fake["image_id"]) == ("x", "y")
    (real, fake), = pictures.partners(rows, "free", 2)
    assert real is None and fake["image_id"] == "z"


def test_differences_and_noise_are_drawn_around_mid_grey():
    image = np.full((2, 2, 3), 100, np.uint8)
    assert (pictures.difference_image(image, image) == 128).all()
    assert (pictures.difference_image(image, image - 4) == 128 + 32).all() and (pictures.difference_image(image, image + 90) == 0).all()
    noise = np.zeros((4, 2, 2))
    noise[:3, 0, 0] = 3
    shown = pictures.noise_image(noise, 1)
    assert shown.shape == (2, 2, 3) and (shown[0, 0] == 255).all() and (shown[1, 1] == 128).all()
    assert (pictures.noise_image(np.zeros((3, 2, 2))) == 128).all()


@pytest.mark.parametrize("values, places", [([0, 5], [0, 5]), ([0, 0.1, 5], [0, 1, 5]), ([4.9, 5, 5], [3, 4, 5])])
def test_names_keep_apart(values, places):
    assert pictures.apart(values, 1, 5) == places


def test_lines_name_their_groups_and_skip_missing_values():
    table = pd.DataFrame({"x": [1, 2, 1, 2], "y": [0.1, 0.2, 0.3, None], "low": 0.0, "high": 1.0, "by": ["a", "a", "b", "b"]})
    axis = pictures.lines(table, "x", "y", "by", level=0.5).axes[0]
    assert [text.get_text() for text in axis.texts] == ["a", "b"]
    assert [len(line.get_xdata()) for line in axis.lines[1:]] == [2, 1] and len(axis.collections) == 2
