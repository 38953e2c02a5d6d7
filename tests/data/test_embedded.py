import hashlib
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from anl.data import crops, decode, embedded, images
from anl.io import UserError

SPLIT = {"train": 0.4, "val": 0.3, "test": 0.3}
CAMERA = {"model": "pixel", "paired": True, "val_patches": 0}


def photograph(seed, height=150, width=190):
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)).resize((width, height), Image.BICUBIC)
    return np.clip(np.asarray(coarse, float) + rng.normal(0, 8, (height, width, 3)), 0, 255).astype(np.uint8)


class Section(SimpleNamespace):
    def model_dump(self):
        return dict(self.__dict__)


def family(**options):
    return Section(**{**CAMERA, **options})


FAMILIES = {"ddim": family(), "vae": family(model="vae", val_patches=1), "sample": family(paired=False)}


def regenerate(name, pixels, start):
    return np.roll(pixels, len(name), axis=2) // 2 + np.uint8(start)


@pytest.fixture
def world(tmp_path):
    """(photos, data, benchmark) sections of ten photographs, two of them near-duplicates."""
    (tmp_path / "photos").mkdir()
    photos = []
    for seed in range(10):
        Image.fromarray(photograph(seed)).save(tmp_path / "photos" / f"p{seed}.png")
        photos.append(SimpleNamespace(id=f"p{seed}", cluster="twins" if seed in (2, 5) else f"p{seed}", file=f"p{seed}.png"))
    data = Section(folder=tmp_path / "photos", least_factor=2.0, source_side=448, split=SPLIT)
    benchmark = Section(folder=tmp_path / "benchmark", size=16, seen=["ddim"], patches={"train": 3, "val": 4, "test": 2},
                        least_std=1.0, shrink=[], encode=["png"], encode_quality=[90, 90])
    return photos, data, benchmark


def build(world, tmp_path, function=regenerate, families=None, **options):
    return embedded.build(*world, families or FAMILIES, function, 1, cache=tmp_path / "cache", **options)


def test_the_manifest_has_the_columns_and_pairs_of_the_contract(world, tmp_path):
    rows = build(world, tmp_path)
    assert list(rows.columns) == list(embedded.COLUMNS) and rows["image_id"].is_unique
    pd.testing.assert_frame_equal(rows, embedded.read_embedded(tmp_path / "benchmark"))
    reals = set(rows.loc[rows["label"] == 0, "pair"])
    assert set(rows.loc[(rows["label"] == 1) & (rows["generator"] != "sample"), "pair"]) <= reals
    assert set(rows.loc[rows["generator"] == "sample", "pair"]) == {""}
    assert set(rows["format"]) == {"PNG"} and set(rows["width"]) == set(rows["height"]) == {16}
    assert (rows.groupby("group")["split"].nunique() == 1).all() and "twins" in set(rows["group"])
    assert set(rows.loc[rows["split"] == "train", "generator"]) == {"real", "ddim"}
    per_photo = rows[(rows["generator"] == "vae") & (rows["split"] == "val")].groupby("group").size()
    assert set(per_photo) <= {1, 2} and (rows["generator"] == "ddim").sum() == (rows["generator"] == "real").sum()


def test_real_and_generated_pixels_take_the_same_path(world, tmp_path):
    rows = build(world, tmp_path)
    patches, pixels = embedded.cut_patches(*world, 1)
    real = rows[rows["generator"] == "real"]
    assert real["pair"].tolist() == [patch.id for patch in patches]
    loaded = images.load_pixels(rows, tmp_path / "benchmark")
    assert np.array_equal(loaded[: len(real)], [crops.halve(image) for image in pixels])
    made = rows[rows["generator"] == "ddim"].index
    first = regenerate("ddim", np.stack(pixels[:embedded.CHUNK]), 0)
    assert np.array_equal(loaded[made[0]], crops.halve(first[0]))
    assert all(hashlib.sha256(embedded.encode(image)).hexdigest() == digest for image, digest in zip(loaded, rows["sha256"]))


def test_an_interrupted_build_continues_and_leaves_the_old_folder(world, tmp_path):
    first = build(world, tmp_path)
    calls = []

    def interrupted(name, pixels, start):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append((name, start))
        return regenerate(name, pixels, start)

    with pytest.raises(KeyboardInterrupt):
        build(world, tmp_path, interrupted)
    assert len(list((tmp_path / "cache").glob("*.npy"))) == 2
    pd.testing.assert_frame_equal(embedded.read_embedded(tmp_path / "benchmark"), first)
    done = list(calls)

    def counted(name, pixels, start):
        calls.append((name, start))
        return regenerate(name, pixels, start)

    pd.testing.assert_frame_equal(build(world, tmp_path, counted), first)
    assert not set(calls[2:]) & set(done) and not list((tmp_path / "cache").glob("*.npy"))
    assert [path.name for path in tmp_path.iterdir() if ".new" in path.name] == []


def test_kept_chunks_of_other_weights_or_photographs_are_not_used(world, tmp_path):
    def stop_after_first(name, pixels, start):
        if list((tmp_path / "cache").glob("*.npy")):
            raise KeyboardInterrupt
        return np.zeros_like(pixels)

    with pytest.raises(KeyboardInterrupt):
        build(world, tmp_path, stop_after_first, key={"weights": "old"})
    rows = build(world, tmp_path, key={"weights": "new"})
    assert images.load_pixels(rows[rows["generator"] == "ddim"].head(2), tmp_path / "benchmark").any()


def test_a_wrong_regeneration_is_named(world, tmp_path):
    with pytest.raises(UserError, match=r"generator 'ddim' returned float32 .* for patches of uint8 \(16, 32, 32, 3\)"):
        build(world, tmp_path, lambda name, pixels, start: pixels.astype(np.float32))


def test_shrunk_photographs_and_one_encoding_for_each_pair(world, tmp_path):
    photos, _, benchmark = world
    benchmark.shrink, benchmark.encode, benchmark.encode_quality = [0.4, 0.9], ["jpeg", "webp"], [75, 95]
    rows = build(world, tmp_path, splits={photo.id: ("train", "val", "test")[i % 3] for i, photo in enumerate(photos)})
    assert rows[rows["group"] == "p3"]["split"].unique().tolist() == ["train"]
    formats = rows[rows["pair"] != ""].groupby("pair")[["format", "jpeg_quality"]].nunique(dropna=False)
    assert (formats == 1).all(axis=None) and set(rows["format"]) == {"JPEG", "WEBP"}
    headers = [decode.read_header(images.ImageFiles(benchmark.folder).read(path)) for path in rows["path"][:12]]
    for header, row in zip(headers, rows.itertuples()):
        assert header.format == row.format and (row.format != "JPEG" or header.jpeg_quality == row.jpeg_quality)
    assert rows["jpeg_quality"].dropna().between(75, 95).all()


def first_edition(folder, generators=("real", "ddim"), patches=("p1@0x0", "p1@0x8", "p2@4x4"), **columns):
    folder.mkdir()
    tables = []
    for generator in generators:
        data = [embedded.encode(photograph(len(generator) + i, 16, 16)) for i in range(len(patches))]
        pd.DataFrame({"sample_id": [f"{generator}/{p}" for p in patches], "png": data})[::-1].to_parquet(
            folder / f"images-{generator}.parquet", index=False)
        tables.append(pd.DataFrame({
            "sample_id": [f"{generator}/{p}" for p in patches], "generator": generator, "label": int(generator != "real"),
            "split": "test", "photo": [p[:2] for p in patches], "cluster": [p[:2] for p in patches], "top": 0, "left": 0,
            "sha256": [hashlib.sha256(item).hexdigest() for item in data], "bytes": [len(item) for item in data], "width": 16,
            "height": 16, "format": "PNG", **columns}))
    pd.concat(tables, ignore_index=True).to_parquet(folder / "manifest.parquet", index=False)
    return folder


def test_a_benchmark_of_the_first_edition_is_read(tmp_path):
    folder = first_edition(tmp_path / "old")
    rows = embedded.read_embedded(folder)
    assert list(rows.columns) == list(embedded.COLUMNS) and rows["jpeg_quality"].isna().all()
    assert rows["pair"].tolist() == ["p1@0x0", "p1@0x8", "p2@4x4"] * 2 and rows["group"].tolist() == ["p1", "p1", "p2"] * 2
    assert np.array_equal(images.load_pixels(rows, folder)[3], photograph(4, 16, 16))


def test_further_generators_of_another_folder_are_joined(tmp_path):
    folder = first_edition(tmp_path / "old")
    more = first_edition(tmp_path / "more", ["sample"], ["p1@0x8"], paired=False)
    rows = embedded.read_embedded(folder, more)
    assert rows["path"].iloc[-1] == "../more/images-sample.parquet#0" and rows["pair"].iloc[-1] == ""
    assert images.load_pixels(rows, folder).shape == (7, 16, 16, 3)
    with pytest.raises(UserError, match="both hold 'ddim'"):
        embedded.read_embedded(folder, folder)
    other = first_edition(tmp_path / "other", ["vae"], ["p9@0x0"])
    with pytest.raises(UserError, match="its patch p9@0x0 is not there"):
        embedded.read_embedded(folder, other)


def test_an_incomplete_benchmark_is_named(world, tmp_path):
    with pytest.raises(UserError, match="manifest.parquet is missing; get it with `dvc pull"):
        embedded.read_embedded(tmp_path)
    build(world, tmp_path)
    folder = tmp_path / "benchmark"
    (folder / "images-vae.parquet").unlink()
    with pytest.raises(UserError, match="images-vae.parquet is missing"):
        embedded.read_embedded(folder)
    pd.DataFrame({"path": ["x"]}).to_parquet(folder / "manifest.parquet")
    with pytest.raises(UserError, match=r"lacks the column\(s\) image_id"):
        embedded.read_embedded(folder)
    (folder / "manifest.parquet").write_bytes(b"nothing")
    with pytest.raises(UserError, match="cannot be read"):
        embedded.read_embedded(folder)
    old = first_edition(tmp_path / "old")
    (old / "images-ddim.parquet").unlink()
    with pytest.raises(UserError, match="images-ddim.parquet is missing"):
        embedded.read_embedded(old)
