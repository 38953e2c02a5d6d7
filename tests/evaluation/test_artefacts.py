"""Spectra and simple statistics find what was put into the images, and nothing where nothing was put."""

import numpy as np
import pandas as pd
import pytest

from anl.evaluation import artefacts


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


def test_generators_of_one_photograph_are_left_out():
    rows, pixels = benchmark(checkerboard)
    kept = (rows["generator"] != "same") | (rows["group"] == "photo0")
    table = artefacts.statistics_table(rows[kept], pixels[kept], seed=0, replicates=20)
    assert set(table["generator"]) == {"changed"}
