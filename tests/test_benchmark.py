import dataclasses

import numpy as np
import pandas as pd
import pytest

from anl import benchmark, generators
from anl.errors import UserError


def test_every_fake_has_its_real_partner_of_the_same_size_and_format(world):
    manifest = benchmark.read_manifest(world.params.benchmark.folder)
    key = manifest["sample_id"].str.split("/", n=1).str[1]
    reals = set(key[manifest["label"] == 0])
    assert set(key[manifest["label"] == 1]) <= reals
    assert set(manifest["format"]) == {"PNG"} and set(manifest["width"]) == set(manifest["height"]) == {32}
    assert set(manifest["generator"]) == {"real", *world.params.families}


def test_only_the_seen_family_has_training_patches(world):
    manifest = benchmark.read_manifest(world.params.benchmark.folder)
    assert set(manifest.loc[manifest["split"] == "train", "generator"]) == {"real", "ddim"}


def test_no_photograph_is_on_two_sides_of_the_split(world):
    manifest = benchmark.read_manifest(world.params.benchmark.folder)
    assert (manifest.groupby("cluster")["split"].nunique() == 1).all()


def test_real_patches_are_the_halved_crops_themselves(world):
    from anl.data.patches import halve
    from anl.data.photos import read_card
    patches, crops = benchmark.cut_reals(read_card(world.params.data.card), world.params)
    manifest = benchmark.read_manifest(world.params.benchmark.folder)
    real = manifest[manifest["generator"] == "real"]
    pixels = benchmark.read_images(world.params.benchmark.folder, real)
    assert [f"real/{p.id}" for p in patches] == real["sample_id"].tolist()
    assert all(np.array_equal(pixels[i], halve(crops[i])) for i in range(len(crops)))


def test_building_twice_gives_the_same_bytes_and_resumes_from_kept_parts(world, tmp_path):
    settings = dataclasses.replace(world.params, benchmark=dataclasses.replace(
        world.params.benchmark, folder=str(tmp_path / "again")))
    again = benchmark.build(settings, world.models, str(tmp_path / "cache"))
    first = benchmark.read_manifest(world.params.benchmark.folder)
    pd.testing.assert_frame_equal(first, again)


def test_an_interrupted_build_keeps_its_parts_and_the_old_benchmark(world, tmp_path, monkeypatch):
    settings = dataclasses.replace(world.params, benchmark=dataclasses.replace(
        world.params.benchmark, folder=str(tmp_path / "b")))
    calls = []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real_regenerate(*arguments)

    real_regenerate = generators.regenerate
    monkeypatch.setattr(generators, "regenerate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        benchmark.build(settings, world.models, str(tmp_path / "cache"))
    assert not (tmp_path / "b").exists()
    assert len(list((tmp_path / "cache").rglob("*.npy"))) == 2
    monkeypatch.setattr(generators, "regenerate", lambda *a: calls.append(a) or real_regenerate(*a))
    done = len(calls)
    manifest = benchmark.build(settings, world.models, str(tmp_path / "cache"))
    total = sum(-(-n // benchmark.CHUNK) for n in manifest[manifest["label"] == 1].groupby("generator").size())
    assert len(calls) - done == total - 2
    pd.testing.assert_frame_equal(manifest, benchmark.read_manifest(world.params.benchmark.folder))


def test_a_missing_or_altered_benchmark_is_named(world, tmp_path):
    with pytest.raises(UserError, match="manifest.parquet is missing"):
        benchmark.read_manifest(tmp_path)
    manifest = benchmark.read_manifest(world.params.benchmark.folder)
    with pytest.raises(UserError, match="missing or altered"):
        benchmark.read_images(world.params.benchmark.folder, manifest.head(2).assign(sha256="0"))


def test_a_profile_uses_patches_spread_over_photographs(world):
    manifest = benchmark.read_manifest(world.params.benchmark.folder)
    rows = benchmark.use_rows(manifest, world.params)
    real = rows[(rows["generator"] == "real") & (rows["split"] == "train")]
    assert len(real) == min(16, ((manifest["generator"] == "real") & (manifest["split"] == "train")).sum())
    assert real["photo"].value_counts().max() - real["photo"].value_counts().min() <= 1 or len(real) < 16
