"""Spectra and simple statistics find what was put into the images, and nothing where nothing was put."""

import numpy as np
import pandas as pd
import pytest

from anl.evaluation import artefacts
from anl.evaluation.compare import compare


def benchmark(change, photographs=24):
    """Noise images; those of generator `changed` go through `change`, those of `same` do not."""
    rng = np.random.default_rng(0)
    rows = pd.DataFrame([{"generator": generator, "label": int(generator != "real"), "group": f"photo{photo}"}
                         for generator in ("real", "changed", "same") for photo in range(photographs)])
    pixels = rng.normal(128, 20, (len(rows), 16, 16, 3))
    mine = (rows["generator"] == "changed").to_numpy()
    pixels[mine] = change(pixels[mine])
    return rows, pixels.clip(0, 255).round().astype(np.uint8)


def checkerboard(pixels):
    return pixels + 12 * (-1.0) ** np.add.outer(np.arange(16), np.arange(16))[None, :, :, None]


def stripes(pixels):
    return pixels + 25 * np.cos(2 * np.pi * np.arange(16) / 4)[None, None, :, None]  # 0.25 cycles per pixel


def test_the_spectrum_rises_where_a_frequency_was_added():
    table = artefacts.spectrum_table(*benchmark(stripes), seed=0, replicates=200)
    changed = table[table["generator"] == "changed"]
    loudest = changed.loc[changed["mean"].idxmax()]
    assert loudest["frequency"] == pytest.approx(0.25, abs=1 / 16) and loudest["low"] > 0 and loudest["n"] == 24
    same = table[table["generator"] == "same"]
    assert ((same["low"] < 0) & (same["high"] > 0)).mean() > 0.8


def test_simple_statistics_separate_what_differs_and_nothing_else():
    table = artefacts.statistics_table(*benchmark(checkerboard), seed=0, replicates=100)
    found = table.set_index(["generator", "statistic"])
    assert found.loc[("changed", "high_frequency"), "low"] > 0.8
    assert found.loc[("same", "high_frequency"), "mean"] < 0.75
    assert found.loc[("changed", "mean_colour"), "low"] < 0.6 and table["n"].eq(24).all()


def test_sharpness_is_that_of_the_texture_and_not_of_its_contrast():
    grain = np.random.default_rng(0).normal(0, 1, (8, 32, 32, 3)).mean(-1, keepdims=True)
    soft = (grain + np.roll(grain, 1, 1) + np.roll(grain, 1, 2) + np.roll(grain, (1, 1), (1, 2))) / 2
    images = [(128 + scale * texture + np.zeros(3)).clip(0, 255).round().astype(np.uint8)
              for texture, scale in ((grain, 20), (grain, 40), (soft, 20))]
    weak, strong, blurred = (artefacts.sharpness(image).mean() for image in images)
    assert weak == pytest.approx(strong, abs=0.05) and blurred < weak - 0.5


def test_a_statistic_is_a_detector_trained_on_the_seen_generator():
    rows, pixels = benchmark(checkerboard)
    photo = rows["group"].str.removeprefix("photo").astype(int)
    rows = rows.assign(split=np.where(photo < 12, "train", np.where(photo < 16, "val", "test")), pair=rows["group"],
                       image_id=rows["generator"] + rows["group"])
    used = ((rows["split"] == "test") | (rows["generator"] != "same")).to_numpy()
    statistics = {name: values[used] for name, values in artefacts.image_statistics(pixels).items()}
    scores = artefacts.statistic_scores(rows[used], statistics)
    assert set(scores["split"]) == {"val", "test"} and set(scores["variant"]) == set(statistics)
    table = compare(scores, metrics=("auroc",), seen="changed", replicates=50).set_index(["variant", "generator"])["mean"]
    assert table["high_frequency", "changed"] > 0.9 and table["high_frequency", "same"] < 0.8


def test_generators_of_one_photograph_are_left_out():
    rows, pixels = benchmark(checkerboard)
    kept = (rows["generator"] != "same") | (rows["group"] == "photo0")
    table = artefacts.statistics_table(rows[kept], pixels[kept], seed=0, replicates=20)
    assert set(table["generator"]) == {"changed"}
