import copy
import shutil

import pytest

from anl import params
from anl.data import indexing, manifest
from anl.errors import UserError
from anl.published import split
from tests.published.conftest import TEST, TRAIN, jpeg, settings, tree


def test_no_bytes_are_in_two_splits_or_twice_in_training(public):
    rows, counts = split.split(public.params)
    trained = rows[rows["split"] != "test"]
    assert not trained["sha256"].duplicated().any()
    assert not set(trained["sha256"]) & set(rows.loc[rows["split"] == "test", "sha256"])
    fake = counts[(counts["generator"] == "sd14") & (counts["split"] != "test")].iloc[0]
    assert (fake["published"], fake["in_test_too"], fake["repeated"], fake["used"]) == (TRAIN, 1, 1, TRAIN - 2)


def test_classes_are_of_equal_size_in_every_split_and_numbered_alike(public):
    rows, _ = split.split(public.params)
    sizes = rows.groupby(["split", "generator"]).size().unstack()
    assert (sizes["real"] == sizes["sd14"]).all() and sizes["real"].to_dict() == {"test": TEST, "train": TRAIN - 5, "val": 3}
    for _, mine in rows.groupby(["split", "generator"]):
        assert sorted(mine["number"]) == list(range(len(mine)))


def test_the_split_follows_from_seed_and_bytes_not_from_the_order_of_files(public, tmp_path):
    root = tmp_path / "set"
    shutil.copytree(public.root / "set", root)
    for path in sorted((root / "train/REAL").iterdir()):  # the same images under other names
        path.rename(path.with_name(f"z{path.stat().st_size}-{path.name}"))
    indexing.index(root, tmp_path / "cifake.parquet", workers=1, say=str)
    other = params.from_dict(settings(tmp_path), "tiny")
    ours, theirs = (split.split(item)[0].set_index(["split", "generator", "number"])["sha256"].sort_index()
                    for item in (public.params, other))
    assert ours.equals(theirs)
    value = copy.deepcopy(public.settings)
    value["seed"] = 1
    assert set(split.split(params.from_dict(value, "tiny"))[0].query("split == 'val'")["sha256"]) != set(
        split.split(public.params)[0].query("split == 'val'")["sha256"])


def test_training_reals_are_the_training_splits(public):
    images = split.training_reals(public.params)
    assert len(images) == TRAIN - 5 and {image.shape for image in images} == {(32, 32, 3)}


def test_what_cannot_be_split_is_refused(public, tmp_path):
    value = copy.deepcopy(public.settings)
    value["benchmark"]["size"] = 64
    with pytest.raises(UserError, match="32 x 32 pixels, and benchmark.size is 64"):
        split.split(params.from_dict(value, "tiny"))
    value = copy.deepcopy(public.settings)
    value["published"]["val"] = 13
    with pytest.raises(UserError, match="12 different training images and 6 test images of 'sd14'"):
        split.split(params.from_dict(value, "tiny"))
    value["published"]["manifest"] = str(tmp_path / "none.parquet")
    with pytest.raises(UserError, match="none.parquet is missing; make it with `anl index"):
        split.split(params.from_dict(value, "tiny"))


def test_a_file_that_changed_or_went_since_it_was_indexed_is_named(tmp_path):
    indexing.index(tree(tmp_path / "set"), tmp_path / "cifake.parquet", workers=1, say=str)
    found = params.from_dict(settings(tmp_path), "tiny")
    rows = split.split(found)[0].head(1)
    path = tmp_path / "set" / manifest.file_path(rows["path"].iloc[0])
    path.write_bytes(jpeg(999))
    with pytest.raises(UserError, match="is not what was indexed"):
        list(split.read_files(found, rows))
    path.unlink()
    with pytest.raises(UserError, match="cannot be read"):
        list(split.read_files(found, rows))
