"""Published images: what trains, validates and tests, across one or several data sets."""

import pandas as pd
import pytest

from anl.config import load_config
from anl.data import indexing, published
from anl.io import UserError
from tests.data.test_crops import unpaired
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
    with pytest.raises(UserError, match="no validation images of 'real'; change benchmark.seen, or val_share"):
        published.rows(section(folder, val_share=0.0), 1)


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


def test_a_validation_split_is_held_out_without_repeated_bytes():
    rows = unpaired(real_train=40, a_train=40, real_test=10, a_test=10)
    leaked = rows["path"].isin(["real/train/3", "a/train/5"])
    rows.loc[leaked, "sha256"] = ["realtest0", "atest1"]
    rows.loc[rows["path"] == "real/train/7", "sha256"] = "realtrain8"
    held = published.hold_out(rows, 0.25, 0, 0)
    counts = held.groupby(["split", "generator"]).size().to_dict()
    assert counts == {("test", "a"): 10, ("test", "real"): 10, ("train", "a"): 29, ("train", "real"): 28, ("val", "a"): 10,
                      ("val", "real"): 10}
    assert not held["sha256"].duplicated().any()
    assert published.hold_out(rows, 0.25, 4, 0)["split"].value_counts()["val"] == 8
    again = published.hold_out(rows.sample(frac=1, random_state=0), 0.25, 0, 0).set_index("path")["split"].to_dict()
    assert again == held.set_index("path")["split"].to_dict()
    own = pd.concat([rows, rows[rows["split"] == "train"].assign(split="val", sha256=lambda part: "v" + part["sha256"])])
    kept = published.hold_out(own.reset_index(drop=True), 0.25, 0, 0)  # a published validation split is kept
    assert kept["split"].value_counts()["val"] == 79
