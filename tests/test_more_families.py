import dataclasses
from pathlib import Path

import pytest

from anl import benchmark, more_families
from anl.errors import UserError


def test_they_are_made_of_the_benchmarks_held_out_patches(world):
    manifest, pixels = more_families.read(world.params)
    real = manifest[manifest["generator"] == "real"]
    assert set(manifest["generator"]) == {"real", *world.params.more_families} and set(real["split"]) == {"val", "test"}
    for name in world.params.more_families:
        assert more_families.place(manifest[manifest["generator"] == name]).tolist() == more_families.place(real).tolist()
    main = benchmark.read_manifest(world.params.benchmark.folder).set_index("sample_id")
    for column in ("cluster", "split", "sha256"):
        assert (main.loc[real["sample_id"], column].to_numpy() == real[column].to_numpy()).all()
    assert pixels.shape == (len(manifest), 32, 32, 3)


def test_only_patches_that_the_profile_uses_are_read(world):
    few = dataclasses.replace(world.params, use=dataclasses.replace(world.params.use, test=3))
    manifest, pixels = more_families.read(few)
    test = manifest[manifest["split"] == "test"]
    assert len(pixels) == len(manifest) and (test["generator"].value_counts() == 3).all()
    used = benchmark.use_rows(benchmark.read_manifest(few.benchmark.folder), few)
    assert set(more_families.place(test)) == set(more_families.place(used[used["split"] == "test"]))


def test_only_a_region_is_altered_by_inpainting(world):
    manifest = benchmark.read_manifest(more_families.folder_of(world.params)).set_index("generator")
    assert manifest.loc["inpaint", "altered"].between(0.15, 0.55).all()
    assert (manifest.loc["dpm", "altered"] > 0.6).all()
    assert not manifest.loc["unconditional", "paired"].any() and manifest.loc["dpm", "paired"].all()
    assert more_families.paired(world.params) == ["dpm", "inpaint", "superres"]


def test_a_profile_without_further_families(world):
    with pytest.raises(UserError, match="names no `more_families`"):
        more_families.build(dataclasses.replace(world.params, more_families={}), world.models)


def test_a_set_that_is_missing_or_made_of_other_patches_is_named(world, tmp_path):
    def beside(folder):
        return dataclasses.replace(world.params, benchmark=dataclasses.replace(world.params.benchmark, folder=str(folder)))

    with pytest.raises(UserError, match="dvc pull more_families"):
        more_families.read(beside(tmp_path / "benchmark"))
    rows = benchmark.read_manifest(world.params.benchmark.folder)
    lost = rows[rows["split"] == "test"]["sample_id"].iloc[0]
    (tmp_path / "benchmark").mkdir()
    for file in Path(world.params.benchmark.folder).glob("images-*.parquet"):
        (tmp_path / "benchmark" / file.name).symlink_to(file.resolve())
    rows[rows["sample_id"] != lost].to_parquet(tmp_path / "benchmark/manifest.parquet")
    (tmp_path / "more_families").symlink_to(more_families.folder_of(world.params))
    with pytest.raises(UserError, match="holds patches that .* lacks"):
        more_families.read(beside(tmp_path / "benchmark"))
