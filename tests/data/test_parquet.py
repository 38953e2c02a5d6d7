import io
import time

import numpy as np
import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet as pq

from anl.data import parquet as module
from anl.data.parquet import Columns, extract, images, rows, shards
from anl.errors import UserError


def picture(seed, kind="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(buffer, kind)
    return buffer.getvalue()


def write(path, labels, generators=None, features=None, start=0, row_group=4):
    """A hub-style shard with an image per label; `features` adds the schema that `datasets` writes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = [{"bytes": picture(start + index, ("PNG", "JPEG")[index % 2]), "path": f"{start + index}.png"}
            for index in range(len(labels))]
    columns = {"image": data, "label": labels, "caption": ["a"] * len(labels)}
    if generators:
        columns["generator"] = generators
    table = pyarrow.table(columns)
    if features:
        table = table.cast(features.arrow_schema)
    pq.write_table(table, path, row_group_size=row_group)
    return [item["bytes"] for item in data]


def hub_features(**more):
    import datasets

    return datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["Fake", "Real"]),
                              "caption": datasets.Value("string"), **more})


@pytest.fixture
def folder(tmp_path):
    """Two shards of train and one of validation, plain structs, labels 0 and 1, generators by name."""
    folder = tmp_path / "hub"
    first = write(folder / "data/train-00000-of-00002.parquet", [0, 1, 1, 0, 1], ["Real", "ADM", "SD 1.5", "Real", "ADM"])
    second = write(folder / "data/train-00001-of-00002.parquet", [1, 0], ["ADM", "Real"], start=10)
    third = write(folder / "data/validation-00000-of-00001.parquet", [1], ["GLIDE"], start=20)
    return folder, first + second + third


def test_rows_come_in_order_with_untouched_bytes(folder):
    folder, data = folder
    found = list(images(folder))
    assert [row.data for row in found] == data  # PNG and JPEG alike: nothing was decoded
    assert [row.label for row in found] == [0, 1, 1, 0, 1, 1, 0, 1]
    assert [row.split for row in found] == ["train"] * 7 + ["validation"]
    assert [row.generator for row in found][:3] == ["Real", "ADM", "SD 1.5"] and found[5].name == "10.png"
    assert (found[5].shard, found[5].index) == ("data/train-00001-of-00002.parquet", 0)


def test_splits_and_counts_without_reading_images(folder):
    folder, _ = folder
    found = shards(folder)
    assert {split: sum(map(rows, paths)) for split, paths in found.items()} == {"train": 7, "validation": 1}
    assert [row.split for row in images(folder, split="validation")] == ["validation"]
    with pytest.raises(UserError, match="no split 'test'; it has train, validation"):
        next(images(folder, split="test"))


def test_the_batch_changes_nothing(folder):
    folder, _ = folder
    assert list(images(folder, batch=1)) == list(images(folder, batch=100))


def test_classes_go_by_their_names_not_by_their_numbers(tmp_path):
    """0 is fake here, as in some mirrors of CIFAKE."""
    import datasets

    features = hub_features(generator=datasets.ClassLabel(names=["Nature", "Stable Diffusion"]))
    write(tmp_path / "train.parquet", [0, 1], [1, 0], features)
    found = list(images(tmp_path))
    assert [(row.label, row.generator) for row in found] == [(1, "Stable Diffusion"), (0, "Nature")]
    assert all(row.data[:4] in (b"\x89PNG", b"\xff\xd8\xff\xe0") for row in found)


@pytest.mark.parametrize("values, expected", [(["real", "fake"], [0, 1]), ([False, True], [0, 1]), (["1", "0"], [1, 0]),
                                              (["Nature", "AI"], [0, 1])])
def test_labels_in_the_fields_words(tmp_path, values, expected):
    write(tmp_path / "train.parquet", values, ["", "x"])
    found = list(images(tmp_path))
    assert [row.label for row in found] == expected
    assert found[0].generator == ("unknown" if expected[0] else "real")


def test_other_labels_need_a_word_from_the_user(tmp_path):
    write(tmp_path / "train.parquet", [2, 5])
    columns = Columns(generator=None)
    with pytest.raises(UserError, match="train.parquet: row 0 has '2' in column 'label'; say which values"):
        next(images(tmp_path, columns))
    found = list(images(tmp_path, columns, labels={2: 0, 5: 1}))
    assert [(row.label, row.generator) for row in found] == [(0, "real"), (1, "unknown")]


def test_plain_bytes_under_other_names(tmp_path):
    data = [picture(1), picture(2)]
    pq.write_table(pyarrow.table({"image_data": data, "label": [1, 0], "model_name": ["GALIP", "RAISE"]}),
                   tmp_path / "CompEval-00000-of-00001.parquet")
    found = list(images(tmp_path, Columns("image_data", "label", "model_name")))
    assert [(row.data, row.label, row.generator, row.split) for row in found] == [
        (data[0], 1, "GALIP", "CompEval"), (data[1], 0, "RAISE", "CompEval")]
    with pytest.raises(UserError, match="no column 'image'; it has image_data, label, model_name"):
        next(images(tmp_path))


def test_images_that_are_only_pointed_at(tmp_path):
    pq.write_table(pyarrow.table({"image": [{"bytes": None, "path": "elsewhere/1.png"}], "label": [1]},
                                 schema=pyarrow.schema({"image": pyarrow.struct({"bytes": pyarrow.binary(),
                                                                                 "path": pyarrow.string()}),
                                                        "label": pyarrow.int64()})), tmp_path / "train.parquet")
    with pytest.raises(UserError, match="row 0 holds no image bytes, only elsewhere/1.png"):
        next(images(tmp_path, Columns(generator=None)))


def test_damaged_and_missing(folder, tmp_path):
    folder, _ = folder
    path = folder / "data/train-00001-of-00002.parquet"
    data = bytearray(path.read_bytes())
    path.write_bytes(data[:-20])
    with pytest.raises(UserError, match="train-00001-of-00002.parquet is no whole Parquet file"):
        list(images(folder))
    data[4:400] = bytes(396)
    path.write_bytes(data)
    with pytest.raises(UserError, match="train-00001-of-00002.parquet"):
        list(images(folder))
    with pytest.raises(UserError, match="holds no Parquet files"):
        list(images(tmp_path / "none"))


def test_extract_writes_the_binary_layout(folder, tmp_path):
    folder, data = folder
    assert extract(folder, tmp_path / "out") == 8
    found = {path.relative_to(tmp_path / "out").as_posix(): path.read_bytes()
             for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert found["train/ADM/1_fake/00000001.jpg"] == data[1] and found["train/Real/0_real/00000000.png"] == data[0]
    assert "train/SD_1.5/1_fake/00000002.png" in found and len(found) == 8


def test_a_generators_name_cannot_leave_the_folder(tmp_path):
    write(tmp_path / "hub/train.parquet", [1, 1], ["../../evil", ".."])
    extract(tmp_path / "hub", tmp_path / "out")
    assert sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").glob("*/*")) == [
        "train/_.._evil", "train/unknown"]


def test_memory_does_not_grow_with_the_set(tmp_path):
    """64 MB in 64 row groups of 1 MB: Arrow holds one of them, also for a reader slower than the disk."""
    noise = np.random.default_rng(0)
    for shard in range(2):
        table = pyarrow.table({"image": [{"bytes": noise.bytes(250_000), "path": None} for _ in range(128)],
                               "label": [1] * 128})
        pq.write_table(table, tmp_path / f"train-{shard:05d}-of-00002.parquet", row_group_size=4, compression="none")
        del table
    before, most, count = pyarrow.total_allocated_bytes(), 0, 0
    for _row in images(tmp_path, Columns(generator=None), batch=4):
        time.sleep(0.002)
        most, count = max(most, pyarrow.total_allocated_bytes() - before), count + 1
    assert count == 256 and most < 2_500_000, most


def test_nothing_is_asked_of_the_network(folder, monkeypatch):
    import socket

    def refuse(*arguments):
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert len(list(images(folder[0]))) == 8


def test_endings():
    assert [module.ending(picture(1, kind)) for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")] == [
        ".png", ".jpg", ".webp", ".gif", ".bmp", ".tif"]
    assert module.ending(b"?") == ".bin"
