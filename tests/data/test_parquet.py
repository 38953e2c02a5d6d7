"""Sets whose images are in Parquet files: single rows, columns and labels, and their index."""

import hashlib
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from anl.data import indexing, manifest, parquet
from anl.data.decode import Refused, read_bytes
from anl.io import UserError
from tests.data.trees import encoded


def shard(path, labels, generators=None, data=None, group=3, image="image", generator="generator", classes=None):
    """Write a Parquet file as on the hub; returns the images' bytes. classes: {column: names}, as `datasets` notes them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = data or [encoded(number, ("PNG", "JPEG")[number % 2], size=16) for number in range(len(labels))]
    columns = {image: [{"bytes": item, "path": None} for item in data] if image == "image" else data, "label": labels}
    table = pa.table(columns | ({generator: generators} if generators else {}))
    if classes:
        features = {name: {"names": names, "_type": "ClassLabel"} for name, names in classes.items()}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path, row_group_size=group)
    return data


@pytest.fixture
def hub_set(tmp_path):
    """(root, bytes of its images): a file of train with three row groups, and one of validation."""
    root = tmp_path / "set"
    first = shard(root / "data/train-00000-of-00002.parquet", [0, 1, 1, 0, 1, 0, 1],
                  ["real", "ADM", "ADM", "real", "Midjourney", "real", "ADM"])
    second = shard(root / "data/validation-00000-of-00001.parquet", [1, 0], ["ADM", "real"], [encoded(10), encoded(11)])
    (root / "README.md").write_text("# a card")
    return root, first + second


def run(root, **options):
    out = root.with_suffix(".parquet")
    summary = indexing.index(root, out, **options)
    return manifest.read(out), summary


def rows(path, generator=None):
    return [row for group in range(len(parquet.read_footer(path)[1]))
            for row in parquet.group_rows(path, group, parquet.Columns("image", "label", generator))]


# ---- columns and labels --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("values, expected, classes", [
    (["real", "fake"], [0, 1], None), ([False, True], [0, 1], None), (["1", "0"], [1, 0], None),
    (["Nature", "AI"], [0, 1], None),
    ([0, 1], [1, 0], {"label": ["Fake", "Real"], "generator": ["SD", "Nature"]})])
def test_labels_follow_words_and_class_names(tmp_path, values, expected, classes):
    path = tmp_path / "train.parquet"
    data = shard(path, values, [0, 1] if classes else None, classes=classes)
    found = rows(path, "generator" if classes else None)
    assert [row.label for row in found] == expected and [row.data for row in found] == data  # unchanged bytes
    names = ["SD", "Nature"] if classes else ["unknown" if label else "real" for label in expected]
    assert [row.generator for row in found] == names


def test_unusable_columns_are_named(tmp_path):
    path = tmp_path / "train.parquet"
    shard(path, [2, 5])
    with pytest.raises(UserError, match="row 0 has '2' in column 'label', which is neither real"):
        rows(path)
    with pytest.raises(UserError, match="no column 'generator', only image, label"):
        rows(path, "generator")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match="train.parquet is not a complete Parquet file"):
        parquet.rows(path)


# ---- single rows ---------------------------------------------------------------------------------------------------------
def test_rows_are_read_by_name(hub_set, monkeypatch):
    root, data = hub_set
    place, read, original = f"{root}/data/train-00000-of-00002.parquet", [], pq.ParquetFile.read_row_group
    monkeypatch.setattr(pq.ParquetFile, "read_row_group", lambda self, group, **options: (
        read.append(group) or original(self, group, **options)))
    assert [read_bytes(f"{place}#{row}") for row in range(7)] == data[:7] and read == [0, 1, 2]  # each group once
    assert read_bytes(f"{place}#image:6") == data[6]
    for name in (f"{place}#7", f"{root}/data/none.parquet#0", f"{place}#no:1"):
        with pytest.raises(Refused):
            read_bytes(name)


# ---- the index -----------------------------------------------------------------------------------------------------------
def test_rows_are_indexed_and_can_be_read_back(hub_set):
    root, data = hub_set
    table, summary = run(root)
    assert summary.images == 9 and summary.skipped == 0 and table["phash"].notna().all()
    assert list(table["path"]) == [f"data/train-00000-of-00002.parquet#{row}" for row in range(7)] + [
        f"data/validation-00000-of-00001.parquet#{row}" for row in range(2)]
    assert list(table["label"]) == [0, 1, 1, 0, 1, 0, 1, 1, 0] and set(table["split"]) == {"train", "val"}
    assert list(table["generator"][:5]) == ["real", "adm", "adm", "real", "midjourney"]
    for text, digest, expected in zip(table["path"], table["sha256"], data, strict=True):
        found = read_bytes(root / manifest.file_path(text))
        assert found == expected and hashlib.sha256(found).hexdigest() == digest
    assert run(root, workers=2)[0].equals(table)  # row groups may be described at the same time


def test_the_record_of_a_fetched_set_names_its_columns(tmp_path):
    path = tmp_path / "set/CompEval-00000-of-00001.parquet"
    data = shard(path, [1, 0], ["GALIP", "RAISE"], image="image_data", generator="model_name")
    thumbnails = pa.array([encoded(90, size=8), encoded(91, size=8)])
    pq.write_table(pq.read_table(path).add_column(0, "a_thumb", thumbnails), path)  # another image column stands first
    (tmp_path / "set/source.json").write_text(json.dumps({"id": "x", "hub": {"columns": {
        "image": "image_data", "label": "label", "generator": "model_name"}}}))
    found, _ = run(tmp_path / "set")
    assert [read_bytes(tmp_path / "set" / text) for text in found["path"]] == data
    assert list(found["split"]) == ["test", "test"] and list(found["source_real"]) == ["", "raise"]


def test_columns_can_be_stated(tmp_path):
    path = tmp_path / "set/train.parquet"
    shard(path, [1, 0], image="picture")
    pq.write_table(pq.read_table(path).rename_columns(["picture", "is_fake"]), path)
    with pytest.raises(UserError, match="--columns IMAGE,LABEL"):
        run(tmp_path / "set")
    table, _ = run(tmp_path / "set", columns=parquet.Columns("picture", "is_fake"))
    assert set(table["generator"]) == {"real", "unknown"}
    path.unlink()
    with pytest.raises(UserError, match="contains no Parquet files"):
        run(tmp_path / "set", layout="parquet")


def test_rows_without_an_image_are_skipped_with_a_reason(tmp_path):
    root = tmp_path / "set"
    shard(root / "train.parquet", [0, 1, 1, 0], data=[encoded(1), b"", b"no image", encoded(2)])
    with pytest.raises(UserError, match="no generated images that can be read.*--one-class"):
        run(root)
    table, summary = run(root, one_class=True)
    assert len(table) == 2 and summary.skipped == 2
    listed = (tmp_path / "set.parquet.skipped.csv").read_text()
    assert "train.parquet#1,1,train,unknown,1,empty (0 bytes)" in listed and "train.parquet#2,1," in listed
