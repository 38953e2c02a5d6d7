import os

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from anl.data import manifest
from anl.io import UserError

GENERATORS, SPLITS = np.array(["real", "adm", "glide", "sd14"]), np.array(["train", "test"])


def rows(start, count):
    """A table of made-up rows; half of them real."""
    rng = np.random.default_rng(start)
    label = rng.integers(0, 2, count)
    which = np.where(label == 1, rng.integers(1, len(GENERATORS), count), 0)
    digests = rng.bytes(32 * count).hex()
    return pa.table({
        "path": [f"{start + i:07d}.png" for i in range(count)], "sha256": [digests[64 * i:64 * i + 64] for i in range(count)],
        "label": label, "generator": GENERATORS[which], "family": ["gan"] * count, "dataset": ["made up"] * count,
        "split": SPLITS[(rng.random(count) < 0.3).astype(int)], "source_real": ["imagenet"] * count, "width": [128] * count,
        "height": [256] * count, "format": np.where(label == 1, "PNG", "JPEG"),
        "jpeg_quality": pa.array(rng.integers(60, 100, count), mask=label == 1), "bytes": rng.integers(1000, 900_000, count),
        "phash": rng.integers(0, 2**64, count, np.uint64)}).cast(manifest.SCHEMA)


@pytest.fixture
def path(tmp_path):
    with manifest.writer(tmp_path / "a" / "m.parquet", tmp_path / "a" / "set", {"layout": "made up"}) as append:
        for start in (0, 500):
            append(rows(start, 500))
    return tmp_path / "a" / "m.parquet"


def test_round_trip(path):
    table, whole = manifest.read(path), pa.concat_tables([rows(0, 500), rows(500, 500)]).to_pandas()
    for name in manifest.SCHEMA.names:
        assert table[name].astype(str).tolist() == whole[name].astype(str).tolist(), name
    assert table["generator"].dtype == "category" and manifest.metadata(path) == {"root": "set", "layout": "made up"}
    moved = path.parents[1] / "b" / "m.parquet"
    moved.parent.mkdir()
    assert manifest.root_of(path.rename(moved)) == moved.parent / "set"  # the root moves with the manifest


@pytest.mark.parametrize("name", ["new\nline", "tab\t", r"back\slash", r"\x0a", "größe", os.fsdecode(b"\xff\xe9x"), "\x7f"])
def test_any_path_is_one_printable_line(name):
    text = manifest.path_text(name)
    assert manifest.file_path(text) == name and text.isprintable()
    text.encode()


def test_rows_and_columns_are_selected(path):
    everything = manifest.read(path)
    some = manifest.read(path, ["path", "label"], split="test", generator=["adm", "real"])
    kept = (everything["split"] == "test") & everything["generator"].isin(["adm", "real"])
    assert list(some) == ["path", "label"] and some["path"].tolist() == everything["path"][kept].tolist() and kept.any()
    assert manifest.read(path, label=1)["label"].eq(1).all() and manifest.read(path, split="none").empty


def test_other_and_damaged_files_are_refused(path, tmp_path):
    with pytest.raises(UserError, match="none.parquet is missing; make it with `anl data index"):
        manifest.read(tmp_path / "none.parquet")
    (tmp_path / "text.parquet").write_text("hello")
    with pytest.raises(UserError, match="is not a manifest"):
        manifest.read(tmp_path / "text.parquet")
    pd.DataFrame({"path": ["a"]}).to_parquet(tmp_path / "other.parquet")
    with pytest.raises(UserError, match="lacks the column.s. sha256, label"):
        manifest.read(tmp_path / "other.parquet")
    data = bytearray(path.read_bytes())
    data[4:400] = bytes(396)  # pages of the first columns; the footer stands at the end
    path.write_bytes(data)
    with pytest.raises(UserError, match="m.parquet is damaged .*; index the images again") as problem:
        manifest.read(path)
    assert "\n" not in str(problem.value)


def test_a_failed_write_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError), manifest.writer(tmp_path / "m.parquet", tmp_path) as append:
        append(rows(0, 10))
        raise RuntimeError
    assert not list(tmp_path.iterdir())
