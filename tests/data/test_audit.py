import numpy as np
import pandas as pd
import pytest

from anl.data import audit, processing
from tests.conftest import photograph


@pytest.fixture(autouse=True)
def _fewer_folds(monkeypatch):
    monkeypatch.setattr(audit, "FOLDS", 2)


def rows(count=200, seed=0, **columns):
    """Rows of a benchmark without leaks: `count` reals and `count` images of generator a."""
    rng = np.random.default_rng(seed)
    total = 2 * count
    table = pd.DataFrame({
        "path": [f"{i}.png" for i in range(total)], "sha256": [f"{i:064x}" for i in range(total)],
        "label": np.repeat([0, 1], count), "generator": np.repeat(["real", "a"], count), "split": "train", "source_real": "s",
        "width": 256, "height": 256, "format": "PNG", "jpeg_quality": pd.array([None] * total, "Int16"),
        "bytes": rng.integers(90_000, 110_000, total), "group": [str(i) for i in range(total)], "pair": "",
        "phash": rng.integers(0, 2**64, total, np.uint64)})
    return table.assign(**columns)


def duplicated():
    """Eight rows: 0 and 1 have equal bytes, 1 and 2 look alike, 2 and 3 share a group, 4 and 5 have equal looks."""
    table = rows(4)
    table.loc[1, "sha256"] = table.loc[0, "sha256"]
    table.loc[2, "phash"] = table.loc[1, "phash"] ^ np.uint64(5)
    table.loc[3, "group"] = table.loc[2, "group"]
    table.loc[5, "phash"] = table.loc[4, "phash"]
    table["split"] = ["train", "train", "val", "test", "train", "test", "val", "train"]
    return table


def test_tables_of_duplicates():
    equal = audit.duplicates(duplicated())
    assert equal["path"].tolist() == ["0.png", "1.png"] and not equal["across_splits"].any()
    near, left_out = audit.near_duplicates(duplicated())
    assert near[["path", "path_other"]].apply(set, axis=1).tolist() == [{"4.png", "5.png"}, {"1.png", "2.png"}]
    assert near["bits"].tolist() == [0, 2] and near["across_splits"].all() and left_out == 0
    assert audit.near_duplicates(rows(5).drop(columns="phash"))[0].empty and audit.duplicates(rows(5)).empty


def test_a_regeneration_is_no_near_duplicate_of_its_own_real():
    table = rows(3)
    table.loc[3, "phash"] = table.loc[0, "phash"]
    assert audit.near_duplicates(table)[0]["across_classes"].tolist() == [True]
    table.loc[[0, 3], "pair"] = "p"
    assert audit.near_duplicates(table)[0].empty


# ---- formats -------------------------------------------------------------------------------------------------------------
def test_formats_that_reveal_the_class_are_found():
    probe = audit.format_probe(rows(200))
    assert probe["balanced_accuracy"].between(0.4, 0.6).all() and not probe["suspect"].all()
    assert ((probe["low"] <= probe["balanced_accuracy"]) & (probe["balanced_accuracy"] <= probe["high"])).all()
    repeated = pd.concat([rows(60)] * 4, ignore_index=True)  # equal bytes stay in one fold
    assert audit.format_probe(repeated)["balanced_accuracy"].mean() < 0.62
    table = rows(100)
    table.loc[table["label"] == 0, ["format", "jpeg_quality"]] = ["JPEG", 96]
    tables = audit.audit(table)
    assert (tables["format_probe"]["balanced_accuracy"] > 0.99).all() and tables["format_probe"]["suspect"].all()
    assert any(line.startswith("a: metadata alone (declared) separate the classes") for line in audit.findings(tables))
    assert audit.format_probe(rows(30, group="one")).empty  # a single group cannot be cross-validated
    counts = tables["format_counts"]
    assert counts[["format", "jpeg_quality", "images"]].to_numpy().tolist() == [["PNG", 0, 100], ["JPEG", 96, 100]]


def test_a_clean_benchmark_has_no_findings_and_a_leaking_one_has():
    clean = rows(30, bytes=100_000)
    assert audit.findings(audit.audit(clean)) == []
    leaking = clean.copy()
    leaking.loc[1, ["sha256", "split"]] = [leaking.loc[0, "sha256"], "test"]
    leaking.loc[3, "phash"], leaking.loc[3, "split"] = leaking.loc[2, "phash"], "test"
    assert audit.findings(audit.audit(leaking)) == [
        "2 images with equal bytes lie in different splits (table duplicates)",
        "1 pairs of similar images lie in different splits (table near_duplicates)"]


def test_reals_shared_by_sets():
    table = rows(4)
    table["source_real"] = ["s", "s", "t", "t", "s", "s", "s", "s"]
    table.loc[2, "sha256"] = table.loc[0, "sha256"]
    found = audit.shared_reals(table).set_index("source_real")
    assert found["also_in_other_sets"].to_dict() == {"s": 1, "t": 1} and found["generators"].to_dict() == {"s": "a", "t": ""}


# ---- grids ---------------------------------------------------------------------------------------------------------------
def test_blockiness_sees_a_jpeg_grid_wherever_it_lies():
    images = np.stack([photograph(seed, 64, 64) for seed in range(12)])
    compressed = np.stack([processing.jpeg(image, 20) for image in images])
    probe = audit.grid_probe({"plain": images, "jpeg": compressed, "shifted": compressed[:, 3:51, 5:53]}).set_index("set")
    assert probe["n"].tolist() == [12] * 3
    assert probe["blockiness"]["jpeg"] > 3 * probe["blockiness"]["plain"] < probe["blockiness"]["shifted"]
    assert (probe["quartile_low"] <= probe["blockiness"]).all() and (probe["blockiness"] <= probe["quartile_high"]).all()
    assert audit.blockiness(np.full((1, 32, 32, 3), 9, np.uint8)) == pytest.approx(-1)
