import hashlib
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from anl.data import crops, decode, embedded, images
from anl.io import UserError
from tests.conftest import photograph

SPLIT = {"train": 0.4, "val": 0.3, "test": 0.3}
CAMERA = {"model": "pixel", "paired": True}


def family(**options):
    return SimpleNamespace(**{**CAMERA, **options})


FAMILIES = {"ddim": family(), "vae": family(model="vae"), "sample": family(paired=False)}


@pytest.fixture
def world(tmp_path):
    """(photos, data, benchmark) sections of ten photographs, two of them near-duplicates."""
    (tmp_path / "photos").mkdir()
    photos = []
    for seed in range(10):
        Image.fromarray(photograph(seed)).save(tmp_path / "photos" / f"p{seed}.png")
        photos.append(SimpleNamespace(id=f"p{seed}", cluster="twins" if seed in (2, 5) else f"p{seed}", file=f"p{seed}.png"))
    data = SimpleNamespace(folder=tmp_path / "photos", least_factor=2.0, source_side=448, split=SPLIT)
    benchmark = SimpleNamespace(size=16, cut=32, halve=True, patches={"train": 3, "val": 4, "test": 2}, least_std=1.0, shrink=[], encode=["png"],
                        encode_quality=[90, 90])
    return photos, data, benchmark


def build(world, folder, **splits):
    """Reals, and three generators that shift their patches, as a benchmark's folder."""
    benchmark = world[2]
    patches, pixels = embedded.cut_patches(*world, 1, **splits)
    reals = embedded.real_table(patches, pixels, benchmark, 1)
    rows, tables = reals.drop(columns="image"), {"real": reals}
    for name, section in FAMILIES.items():
        chosen = rows.loc[embedded.regenerated_patches(rows, name, ["ddim"])]
        made = [np.roll(pixels[place], len(name), axis=1) // 2 for place in chosen.index]
        tables[name] = embedded.generated_table(name, section, chosen, made, benchmark, 1)
    return embedded.write(tables, folder, {name: f"made {name}" for name in tables})


@pytest.mark.parametrize(("name", "splits"), [("ddim", {"train", "val", "test"}), ("vae", {"val", "test"}), ("flow", {"test"})])
def test_held_out_generators_are_validated_on_and_not_trained_on(name, splits):
    rows = pd.DataFrame({"split": ["train", "val", "test"] * 2})
    assert set(rows.loc[embedded.regenerated_patches(rows, name, ["ddim"], ["vae"]), "split"]) == splits


def test_patches_that_are_not_halved_keep_their_pixels(world):
    photos, data, benchmark = world
    benchmark.halve = False
    patches, pixels = embedded.cut_patches(photos, data, benchmark, 1)
    images = [decode.decode_bytes(image) for image in embedded.real_table(patches, pixels, benchmark, 1)["image"]]
    assert all(np.array_equal(*pair) for pair in zip(images, pixels, strict=True)) and images[0].shape == (32, 32, 3)


def test_the_manifest_has_the_columns_and_pairs_of_the_contract(world, tmp_path):
    rows = build(world, tmp_path / "benchmark")
    assert list(rows.columns) == list(embedded.COLUMNS) and rows["image_id"].is_unique
    pd.testing.assert_frame_equal(rows, embedded.read_embedded(tmp_path / "benchmark"))
    reals = set(rows.loc[rows["label"] == 0, "pair"])
    assert set(rows.loc[(rows["label"] == 1) & (rows["generator"] != "sample"), "pair"]) <= reals
    assert set(rows.loc[rows["generator"] == "sample", "pair"]) == {""}
    assert set(rows["format"]) == {"PNG"} and set(rows["width"]) == set(rows["height"]) == {16}
    assert rows["jpeg_quality"].isna().all()
    assert (rows.groupby("group")["split"].nunique() == 1).all() and "twins" in set(rows["group"])
    assert set(rows.loc[rows["split"] == "train", "generator"]) == {"real", "ddim"}
    assert set(rows.loc[rows["split"] == "val", "generator"]) == {"real", "ddim"}
    assert (rows["generator"] == "ddim").sum() == (rows["generator"] == "real").sum()


def test_real_and_generated_pixels_take_the_same_path(world, tmp_path):
    rows = build(world, tmp_path / "benchmark")
    patches, pixels = embedded.cut_patches(*world, 1)
    real = rows[rows["generator"] == "real"]
    assert real["pair"].tolist() == [patch.id for patch in patches]
    loaded = images.load_pixels(rows, tmp_path / "benchmark")
    assert np.array_equal(loaded[: len(real)], [crops.halve(image) for image in pixels])
    made = rows[rows["generator"] == "ddim"].index
    assert np.array_equal(loaded[made[0]], crops.halve(np.roll(pixels[0], 4, axis=1) // 2))
    assert all(hashlib.sha256(embedded.encode(image)).hexdigest() == digest for image, digest in zip(loaded, rows["sha256"]))


def test_shrunk_photographs_and_one_encoding_for_each_pair(world, tmp_path):
    photos, _, benchmark = world
    benchmark.shrink, benchmark.encode, benchmark.encode_quality = [0.4, 0.9], ["jpeg", "webp"], [75, 95]
    splits = {photo.id: ("train", "val", "test")[i % 3] for i, photo in enumerate(photos)}
    rows = build(world, tmp_path / "benchmark", splits=splits)
    assert rows[rows["group"] == "p3"]["split"].unique().tolist() == ["train"]
    formats = rows[rows["pair"] != ""].groupby("pair")[["format", "jpeg_quality"]].nunique(dropna=False)
    assert (formats == 1).all(axis=None) and set(rows["format"]) == {"JPEG", "WEBP"}
    headers = [decode.read_header(decode.read_bytes(tmp_path / "benchmark" / path)) for path in rows["path"][:12]]
    for header, row in zip(headers, rows.itertuples()):
        assert header.format == row.format and (row.format != "JPEG" or header.jpeg_quality == row.jpeg_quality)
    assert rows["jpeg_quality"].dropna().between(75, 95).all()


def make(name, ids, pixels):
    return pixels // 2 + np.uint8(len(ids))


def test_chunks_are_kept_until_they_depend_on_something_else(tmp_path):
    ids, pixels = [f"p{i}" for i in range(40)], [photograph(i, 4, 4) for i in range(40)]
    whole, calls = embedded.in_chunks("ddim", ids, pixels, make, tmp_path / "whole", {}), []

    def interrupted(name, ids, pixels):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(ids)
        return make(name, ids, pixels)

    with pytest.raises(KeyboardInterrupt):
        embedded.in_chunks("ddim", ids, pixels, interrupted, tmp_path / "cache", {})
    calls = []
    resumed = embedded.in_chunks("ddim", ids, pixels, interrupted, tmp_path / "cache", {})
    assert np.array_equal(resumed, whole) and calls == [ids[32:]]
    for changed in ({"about": {"weights": "new"}}, {"ids": ids[::-1]}, {"pixels": pixels[::-1]}):
        options = {"ids": ids, "pixels": pixels, "about": {}, **changed}
        made = embedded.in_chunks("ddim", make=lambda name, ids, pixels: np.zeros_like(pixels), cache=tmp_path / "cache",
                                  **options)
        assert not np.any(made[:32])


def test_parts_are_kept_or_extended(world, tmp_path):
    folder = tmp_path / "benchmark"
    rows = build(world, folder)
    assert embedded.read_parts(tmp_path / "nowhere") == ({}, {})
    parts, identities = embedded.read_parts(folder)
    assert set(parts) == {"real", *FAMILIES} and identities["vae"] == "made vae"
    before = {path.name: path.read_bytes() for path in folder.glob("images-*")}
    ddim = embedded.with_images(parts["ddim"].tail(3), folder)
    pd.testing.assert_frame_equal(embedded.write({**parts, "ddim": ddim}, folder, identities).drop(columns="path"),
                                  pd.concat([parts["real"], ddim[rows.columns], parts["vae"], parts["sample"]],
                                            ignore_index=True).drop(columns="path"))
    after = {path.name: path.read_bytes() for path in folder.glob("images-*")}
    assert {name for name in before if before[name] != after[name]} == {"images-ddim.parquet"}
    assert len(images.load_pixels(embedded.read_embedded(folder), folder)) == len(rows) - len(parts["ddim"]) + 3
    (folder / "identities.json").write_text("broken")
    assert embedded.read_parts(folder) == ({}, {})


def test_images_that_lie_elsewhere_keep_their_paths(world, tmp_path):
    rows = build(world, tmp_path / "benchmark").assign(path="../set/a.parquet#3")
    embedded.write({"published": rows}, tmp_path / "other", {"published": "x"})
    assert list(embedded.read_parts(tmp_path / "other")[0]) == ["published"]
    assert set(embedded.read_embedded(tmp_path / "other")["path"]) == {"../set/a.parquet#3"}


def test_an_incomplete_benchmark_is_named(world, tmp_path):
    with pytest.raises(UserError, match="manifest.parquet is missing; get it with `dvc pull benchmark`"):
        embedded.read_embedded(tmp_path)
    folder = tmp_path / "benchmark"
    build(world, folder)
    (folder / "images-vae.parquet").unlink()
    with pytest.raises(UserError, match="images-vae.parquet is missing"):
        embedded.read_embedded(folder)
    pd.DataFrame({"path": ["x"]}).to_parquet(folder / "manifest.parquet")
    with pytest.raises(UserError, match="cannot be read .*image_id"):
        embedded.read_embedded(folder)
    (folder / "manifest.parquet").write_bytes(b"nothing")
    with pytest.raises(UserError, match="cannot be read"):
        embedded.read_embedded(folder)
