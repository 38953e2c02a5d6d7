import json
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from anl.data import manifest
from anl.errors import UserError
from tests.conftest import ROOT
from tests.data.million import rows


def write(path, count=3000, group=500, seed=0):
    with manifest.writer(path, path.parent / "set", {"layout": "made up"}) as append:
        for start in range(0, count, group):
            append(rows(start, group, seed))
    return path


def test_what_is_written_is_read_back(tmp_path):
    path = write(tmp_path / "m.parquet", 1000)
    table = manifest.read(path)
    whole = pa.concat_tables([rows(0, 500), rows(500, 500)]).to_pandas()
    for name in manifest.SCHEMA.names:
        assert table[name].astype(str).tolist() == whole[name].astype(str).tolist(), name
    assert manifest.metadata(path) == {"root": "set", "layout": "made up"}
    assert manifest.root_of(path) == tmp_path / "set"


def test_root_moves_with_the_manifest(tmp_path):
    path = write(tmp_path / "a" / "m.parquet", 500)
    (tmp_path / "b").mkdir()
    path.rename(tmp_path / "b" / "m.parquet")
    assert manifest.root_of(tmp_path / "b" / "m.parquet") == tmp_path / "b" / "set"


@pytest.mark.parametrize("name", ["a b.png", "new\nline", "tab\t", r"back\slash", r"\x0a", "größe", os.fsdecode(b"\xff\xe9x"), "\x7f"])
def test_paths_survive_as_one_printable_line(name):
    text = manifest.path_text(name)
    assert manifest.file_path(text) == name and text.isprintable()
    text.encode()


def test_rows_are_filtered_and_columns_chosen(tmp_path):
    path = write(tmp_path / "m.parquet")
    everything = manifest.read(path)
    some = manifest.read(path, ["path", "label"], split="test", generator=["adm", "real"])
    kept = (everything["split"] == "test") & everything["generator"].isin(["adm", "real"])
    assert list(some) == ["path", "label"] and some["path"].tolist() == everything["path"][kept].tolist() and kept.any()
    assert manifest.read(path, label=1)["label"].eq(1).all() and manifest.read(path, split="none").empty
    with pytest.raises(UserError, match="no column colour; it has path, sha256"):
        manifest.read(path, colour=1)


def test_counts_are_those_of_the_rows(tmp_path):
    path = write(tmp_path / "m.parquet")
    found = manifest.counts(path)
    whole = manifest.read(path).groupby(["split", "generator", "label"], observed=True).size()
    assert found["images"].sum() == 3000
    for row in found.itertuples():
        assert row.images == whole[row.split, row.generator, row.label]
    assert manifest.counts(path, ("label",), split="test")["images"].sum() == (manifest.read(path)["split"] == "test").sum()


def test_a_sample_is_balanced_seeded_and_independent_of_order(tmp_path):
    path = write(tmp_path / "m.parquet")
    found = manifest.sample(path, 10, seed=4, split="test")
    sizes = found["generator"].value_counts()
    fakes = sizes.drop("real")
    assert set(fakes) == {10} and sizes["real"] == fakes.sum() and found["split"].eq("test").all()
    assert found["sha256"].is_unique
    assert found.equals(manifest.sample(path, 10, seed=4, split="test"))
    assert set(found["path"]) != set(manifest.sample(path, 10, seed=5, split="test")["path"])
    with manifest.writer(tmp_path / "shuffled.parquet", tmp_path) as append:
        table = pa.concat_tables([rows(start, 500) for start in range(0, 3000, 500)])
        append(table.take(np.random.default_rng(0).permutation(len(table))))
    assert found.equals(manifest.sample(tmp_path / "shuffled.parquet", 10, seed=4, split="test"))


def test_a_sample_draws_evenly(tmp_path):
    path = write(tmp_path / "m.parquet", 6000)
    found = pd.concat([manifest.sample(path, 30, seed) for seed in range(20)])
    place = found["path"].str.extract(r"(\d+)\.png")[0].astype(int)
    assert abs(place.mean() / 6000 - 0.5) < 0.02


def test_too_few_images_for_a_sample(tmp_path):
    path = write(tmp_path / "m.parquet", 500)
    with pytest.raises(UserError, match=r"needs \d+ different images of 'real', and there are \d+; ask for fewer"):
        manifest.sample(path, 5000, 0)


def test_what_is_no_manifest(tmp_path):
    with pytest.raises(UserError, match=r"none.parquet is missing; make it with `anl index"):
        manifest.read(tmp_path / "none.parquet")
    (tmp_path / "text.parquet").write_text("hello")
    with pytest.raises(UserError, match="is no manifest"):
        manifest.read(tmp_path / "text.parquet")
    pd.DataFrame({"path": ["a"]}).to_parquet(tmp_path / "other.parquet")
    with pytest.raises(UserError, match="lacks the column.s. sha256, label"):
        manifest.counts(tmp_path / "other.parquet")


def test_a_failed_write_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError), manifest.writer(tmp_path / "m.parquet", tmp_path) as append:
        append(rows(0, 10))
        raise RuntimeError
    assert not list(tmp_path.iterdir())


def test_damage_behind_a_whole_footer_is_named(tmp_path):
    path = write(tmp_path / "m.parquet", 500)
    data = bytearray(path.read_bytes())
    data[4:400] = bytes(396)  # pages of the first columns; the footer stands at the end
    path.write_bytes(data)
    with pytest.raises(UserError, match="m.parquet is damaged .*; index the images again") as problem:
        manifest.read(path)
    assert "\n" not in str(problem.value)


def test_a_million_rows_are_written_queried_and_sampled_in_a_minute_and_two_gigabytes():
    """In a process of its own; of processor time, since the clock tells of the machine's other work too."""
    said = subprocess.run([sys.executable, "-m", "tests.data.million"], cwd=ROOT, stdout=subprocess.PIPE, text=True,
                          check=True).stdout
    assert "write 1000000 rows" in said and "10000 rows" in said
    used = json.loads(said.splitlines()[-1])
    assert used["processor_seconds"] < 60 and used["peak_memory_bytes"] < 2 * 2**30
