"""Published images: what trains, validates and tests, across one or several data sets."""

import pandas as pd
import pytest

from anl.config import load_config
from anl.data import indexing, published
from anl.io import UserError
from tests.data.trees import encoded, genimage, write


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A GenImage tree with two generators, and a CIFAKE tree that shares an image with it."""
    place = tmp_path_factory.mktemp("published")
    genimage(place / "genimage", each=6)
    shared = place / "genimage/ADM/train/nature/0.png"
    write(place / "other", {"test/REAL/a.png": shared.read_bytes(), "test/FAKE/b.png": encoded(7000),
                            "train/REAL/c.png": encoded(7001), "train/FAKE/d.png": encoded(7002)})
    for name in ("genimage", "other"):
        indexing.index(place / name, place / f"{name}.parquet", layout=None if name == "genimage" else "cifake")
    return place


def section(folder, **changes):
    return load_config(profile="cifake").override(benchmark={
        "manifest": str(folder / "genimage.parquet"), "seen": ["adm"], "val_share": 0.34, **changes}).benchmark


def test_training_images_are_reals_and_seen_generators(folder):
    rows = published.rows(section(folder), 1)
    assert rows["image_id"].is_unique and (rows["pair"] == "").all()
    counts = rows.groupby(["split", "generator"]).size()
    assert counts["train"].to_dict() == {"adm": 4, "real": 8} and counts["val"].to_dict() == {"adm": 2, "real": 4}
    assert counts["test"].to_dict() == {"adm": 6, "midjourney": 6, "real": 12}
    pd.testing.assert_frame_equal(rows, published.rows(section(folder), 1))
    assert set(published.rows(section(folder), 2).query("split == 'val'")["path"]) != set(rows.query("split == 'val'")["path"])


def test_reals_of_one_source(folder):
    rows = published.rows(section(folder, source="adm"), 1)
    assert set(rows.query("split != 'test'")["source_real"]) == {"adm"} < set(rows.query("split == 'test'")["source_real"])
    with pytest.raises(UserError, match="no training images of 'real' and source bedroom"):
        published.rows(section(folder, source="bedroom"), 1)


def test_test_sets_are_kept_apart_from_training(folder):
    sets = {"genimage": str(folder / "genimage.parquet"), "cifake": str(folder / "other.parquet")}
    rows = published.rows(section(folder, test_sets=sets), 1)
    other = rows[rows["dataset"] == "cifake"]
    assert sorted(other["path"]) == ["../other/test/FAKE/b.png", "../other/test/REAL/a.png"]
    assert set(other["split"]) == {"test"}
    assert set(rows["dataset"]) == {"genimage", "cifake"}
    assert "ADM/train/nature/0.png" not in set(rows["path"])  # a test image of the other set


def test_settings_change_with_what_decides_the_rows(folder):
    first = published.settings(section(folder))
    assert published.settings(section(folder, val_share=0.5)) != first
    assert published.settings(section(folder, samples=3)) == first
    assert published.settings(section(folder, test_sets={"other": str(folder / "other.parquet")})) != first
    with pytest.raises(UserError, match="nowhere.parquet is missing; make it"):
        published.settings(section(folder, manifest=str(folder / "nowhere.parquet")))
