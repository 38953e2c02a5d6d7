"""Sets whose images lie in Parquet files, from the folder to pixels."""

import hashlib
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from anl import cli
from anl.data import indexing, manifest, parquet
from anl.data.decode import Refused, decode, read_bytes
from anl.errors import UserError
from tests.data.trees import encoded


def shard(path, seeds, labels, makers=None, group=3, image="image", maker="generator", data=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    data = data or [encoded(seed, size=16) for seed in seeds]
    columns = {image: [{"bytes": item, "path": None} for item in data] if image == "image" else data, "label": labels}
    pq.write_table(pa.table(columns | ({maker: makers} if makers else {})), path, row_group_size=group)
    return data


@pytest.fixture
def hub_set(tmp_path):
    root = tmp_path / "set"
    first = shard(root / "data/train-00000-of-00002.parquet", range(7), [0, 1, 1, 0, 1, 0, 1],
                  ["real", "ADM", "ADM", "real", "Midjourney", "real", "ADM"])
    second = shard(root / "data/validation-00000-of-00001.parquet", range(10, 12), [1, 0], ["ADM", "real"])
    (root / "README.md").write_text("# a card")
    return root, first + second


def run(root, **options):
    out = root.with_suffix(".parquet")
    summary = indexing.index(root, out, say=lambda line: None, workers=options.pop("workers", 1), **options)
    return manifest.read(out), summary


def test_rows_become_images_that_can_be_read_back(hub_set):
    root, data = hub_set
    table, summary = run(root)
    assert summary.images == 9 and summary.skipped == 0
    assert list(table["path"]) == [f"data/train-00000-of-00002.parquet#{row}" for row in range(7)] + [
        f"data/validation-00000-of-00001.parquet#{row}" for row in range(2)]
    assert list(table["label"]) == [0, 1, 1, 0, 1, 0, 1, 1, 0] and set(table["split"]) == {"train", "val"}
    assert list(table["generator"][:5]) == ["real", "adm", "adm", "real", "midjourney"]
    for text, digest, size, expected in zip(table["path"], table["sha256"], table["bytes"], data, strict=True):
        found = read_bytes(root / manifest.file_path(text))
        assert found == expected and hashlib.sha256(found).hexdigest() == digest and len(found) == size
    assert decode(root / table["path"][4]).shape == (16, 16, 3) and table["phash"].notna().all()


def test_the_record_of_a_fetched_set_names_its_columns(tmp_path):
    root = tmp_path / "set"
    thumbs = [encoded(90 + seed, size=8) for seed in range(2)]
    data = shard(root / "CompEval-00000-of-00001.parquet", range(2), [1, 0], ["GALIP", "RAISE"], image="image_data", maker="model_name")
    path = root / "CompEval-00000-of-00001.parquet"
    table = pq.read_table(path).add_column(0, "a_thumb", pa.array(thumbs))  # another column of images stands first
    pq.write_table(table, path)
    (root / "source.json").write_text(json.dumps({"id": "x", "hub": {"columns": {
        "image": "image_data", "label": "label", "generator": "model_name"}}}))
    found, _ = run(root)
    assert list(found["sha256"]) == [hashlib.sha256(item).hexdigest() for item in data]
    assert [read_bytes(root / manifest.file_path(text)) for text in found["path"]] == data
    assert list(found["split"]) == ["test", "test"] and list(found["source_real"]) == ["", "raise"]


def test_columns_can_be_given(tmp_path, capsys):
    root = tmp_path / "set"
    shard(root / "train.parquet", range(2), [1, 0], image="picture")
    pq.write_table(pq.read_table(root / "train.parquet").rename_columns(["picture", "is_fake"]), root / "train.parquet")
    assert cli.main(["index", str(root)]) == 2
    assert "--columns IMAGE,LABEL" in capsys.readouterr().err
    assert cli.main(["index", str(root), "--columns", "picture,is_fake"]) == 0
    assert set(manifest.read(tmp_path / "set.parquet")["generator"]) == {"real", "unknown"}


def test_rows_without_an_image_are_listed_with_their_reason(tmp_path):
    root = tmp_path / "set"
    shard(root / "train.parquet", (), [0, 1, 1, 0], data=[encoded(1), b"", b"no image", encoded(2)])
    with pytest.raises(UserError, match="no row of generated images.*--one-class"):
        run(root)
    table, summary = run(root, one_class=True)
    assert len(table) == 2 and summary.skipped == 2
    listed = (tmp_path / "set.parquet.skipped.csv").read_text()
    assert "train.parquet#1,1,train,unknown,1,the row holds no image bytes" in listed and "train.parquet#2,1," in listed


def test_one_row_group_is_in_memory_at_a_time_and_a_killed_run_goes_on(hub_set, monkeypatch):
    root, _ = hub_set
    monkeypatch.setattr(indexing, "PARQUET_PART", 3)
    real, read = parquet.group_rows, []

    def noted(path, group, *arguments):
        if len(read) == 2 and not resumed:
            raise KeyboardInterrupt
        read.append((path.name[:5], group))
        return real(path, group, *arguments)

    resumed = False
    monkeypatch.setattr(parquet, "group_rows", noted)
    with pytest.raises(KeyboardInterrupt):
        run(root)
    resumed = True
    table, _ = run(root)
    assert read == [("train", 0), ("train", 1), ("train", 2), ("valid", 0)] and len(table) == 9


def test_workers_change_nothing(hub_set):
    root, _ = hub_set
    assert run(root, workers=2)[0].equals(run(root)[0])


def test_a_row_that_is_not_there_is_refused(hub_set):
    root, _ = hub_set
    for place in ("data/train-00000-of-00002.parquet#7", "data/none.parquet#0", "data/train-00000-of-00002.parquet#no:1"):
        with pytest.raises(Refused):
            read_bytes(root / place)
    with pytest.raises(UserError, match="#7' is refused: .*has 7 rows"):
        decode(root / "data/train-00000-of-00002.parquet#7")


def test_labels_that_are_none_stop_with_the_column(tmp_path):
    shard(tmp_path / "set/train.parquet", range(2), [2, 5])
    with pytest.raises(UserError, match="row 0 has '2' in column 'label'"):
        run(tmp_path / "set")


def test_a_row_group_is_read_once_for_many_rows(hub_set, monkeypatch):
    root, _ = hub_set
    parquet._stored.cache_clear()
    for row in range(7):
        read_bytes(root / f"data/train-00000-of-00002.parquet#{row}")
    assert parquet._stored.cache_info().misses == 3
