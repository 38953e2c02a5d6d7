"""A benchmark is made part by part, from patches or from published files, and opened like any other."""

import hashlib
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from anl.data import embedded, images, indexing
from anl.data.decode import read_bytes, read_header
from anl.io import UserError
from anl.training import benchmark, generators
from anl.training.runs import open_benchmark
from tests.data.trees import encoded, write
from tests.training import tiny


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Photographs, generators and benchmark of the tiny profile."""
    place = tiny.write_photographs(tmp_path_factory.mktemp("embedded"))
    generators.make_generators(tiny.embedded_profile(place))
    benchmark.make_benchmark(tiny.embedded_profile(place))
    return place


@pytest.fixture
def copy(made, tmp_path):
    shutil.copytree(made, tmp_path / "copy")
    return tmp_path / "copy"


def states(folder):
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in Path(folder).iterdir()}


def contents(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in Path(folder).iterdir()}


def test_patches_and_their_regenerations(made):
    config = tiny.embedded_profile(made)
    rows, folder = embedded.read_embedded(config.benchmark.folder), config.benchmark.folder
    assert rows["image_id"].is_unique and set(rows["generator"]) == {"real", *config.families}
    pixels = images.load_pixels(rows, folder)
    assert pixels.shape[1:] == (16, 16, 3)
    assert set(rows.loc[rows["split"] == "train", "generator"]) == {"real", "ddim"}
    reals, generated = rows[rows["label"] == 0], rows[rows["label"] == 1]
    assert set(generated["pair"]) <= {"", *reals["pair"]} and (generated["pair"] == "").eq(generated["generator"] == "unconditional").all()
    assert (rows.groupby("group")["split"].nunique() == 1).all() and "twins" in set(rows["group"])
    assert (rows[(rows["generator"] == "unconditional") & (rows["split"] == "val")].groupby("group").size() <= 2).all()
    place = reals.reset_index().set_index("pair")["index"]
    ddim = rows[rows["generator"] == "ddim"]
    difference = np.abs(pixels[ddim.index].astype(int) - pixels[place[ddim["pair"]]]).mean((1, 2, 3))
    assert (difference > 0).all()
    opened = open_benchmark(config)
    assert opened.pixels(opened.rows).shape[0] == len(opened.rows) and not list((made / "cache").rglob("*.npy"))


def test_what_is_up_to_date_is_not_touched(copy):
    config = tiny.embedded_profile(copy)
    before = states(config.benchmark.folder)
    shutil.rmtree(copy / "photos")  # nothing is decoded
    benchmark.make_benchmark(config)
    assert states(config.benchmark.folder) == before


def test_a_new_family_and_a_newly_seen_generator_are_added(copy, monkeypatch):
    config = tiny.embedded_profile(copy)
    before, calls = contents(config.benchmark.folder), []
    more = config.override(families={"ddpm": {"model": "pixel", "sampler": "ddpm", "strength": 0.2, "inference_steps": 2}},
                           experiments={"other": {"variants": {"plain": {"method.target": "none", "benchmark.seen": ["vae"]}}}})
    generate = benchmark.generators.regenerate

    def counted(family, networks, x, draws):
        calls.append((family.model, family.sampler, len(x)))
        return generate(family, networks, x, draws)

    monkeypatch.setattr(benchmark.generators, "regenerate", counted)
    rows = benchmark.make_benchmark(more)
    after = contents(config.benchmark.folder)
    assert {name for name in before if before[name] != after[name]} == {"manifest.parquet", "identities.json", "images-vae.parquet"}
    assert set(after) - set(before) == {"images-ddpm.parquet"}
    learned = rows[rows["split"] != "test"]["generator"].value_counts()
    assert {call[:2] for call in calls} == {("pixel", "ddpm"), ("vae", None)}
    assert sum(count for model, _, count in calls if model == "vae") == learned["vae"] == learned["real"]
    assert len(images.load_pixels(rows, config.benchmark.folder)) == len(rows)  # all hashes are right
    calls.clear()
    benchmark.make_benchmark(config.override(families={"ddpm": more.families["ddpm"].model_dump()}))
    assert not calls  # a profile that needs less keeps what is there


def test_halving_is_part_of_what_an_image_is_made_with(copy):
    """... but a benchmark that was made before there was the choice keeps its identity."""
    config = tiny.embedded_profile(copy)
    assert config.benchmark.cut == 2 * config.benchmark.size
    whole = config.override(benchmark={"halve": False, "size": 32, "folder": str(copy / "whole")})
    assert whole.benchmark.cut == 32
    rows = benchmark.make_benchmark(whole)
    known = [json.loads((copy / name / "identities.json").read_text()) for name in ("benchmark", "whole")]
    assert known[0].keys() == known[1].keys() and not set(known[0].values()) & set(known[1].values())
    assert set(rows["width"]) == {32} and len(images.load_pixels(rows, whole.benchmark.folder)) == len(rows)


def test_other_weights_are_noticed(copy):
    config = tiny.embedded_profile(copy)
    before = contents(config.benchmark.folder)
    other = config.override(models={"unconditional": {"steps": 3}})
    generators.make_generators(other)
    benchmark.make_benchmark(other)
    after = contents(config.benchmark.folder)
    assert {name for name in before if before[name] != after[name]} == {"manifest.parquet", "identities.json",
                                                                        "images-unconditional.parquet"}


def test_an_interrupted_making_continues_to_the_same_bytes(made, copy, monkeypatch):
    config = tiny.embedded_profile(copy)
    shutil.rmtree(config.benchmark.folder)
    generate, calls = benchmark.generators.regenerate, []

    def stop(family, networks, x, draws):
        calls.append(family.model)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return generate(family, networks, x, draws)

    monkeypatch.setattr(benchmark.generators, "regenerate", stop)
    with pytest.raises(KeyboardInterrupt):
        benchmark.make_benchmark(config)
    assert not Path(config.benchmark.folder).exists() and len(list((copy / "cache").rglob("*.npy"))) == 2
    benchmark.make_benchmark(config)
    counts = embedded.read_embedded(config.benchmark.folder).query("label == 1").groupby("generator").size()
    assert len(calls) - 1 == sum(-(-counts // embedded.CHUNK))  # no chunk twice, but the interrupted one
    assert contents(config.benchmark.folder) == contents(made / "benchmark")
    assert not list((copy / "cache").rglob("*.npy"))


def test_a_limit_makes_few_images(copy):
    config = tiny.embedded_profile(copy, benchmark={"limit": 2, "folder": str(copy / "few")})
    rows = benchmark.make_benchmark(config)
    counts = rows[rows["label"] == 1].groupby(["generator", "split"]).size()
    assert (counts <= 2).all() and len(open_benchmark(config).rows) > 0
    whole = benchmark.make_benchmark(config.override(benchmark={"limit": 0}))
    same = whole.set_index("image_id")["sha256"].reindex(rows["image_id"])
    assert len(whole) > len(rows) and same.tolist() == rows["sha256"].tolist()  # draws belong to images, not to batches


def test_photographs_of_an_index_and_another_data_set(copy):
    for name, first in (("photographs", 0), ("others", 50)):
        write(copy / name, {f"cat{i % 2}/{i}.png": encoded(first + i, size=80) for i in range(8)}
              | {"cat1/again.jpg": encoded(first, "JPEG", size=80, quality=95)})
        indexing.index(copy / name, copy / f"{name}.parquet", layout="photographs")
    changes = {"manifest": str(copy / "photographs.parquet"), "folder": str(copy / "indexed"), "shrink": [0.5, 0.9],
               "encode": ["jpeg", "webp"], "test_sets": {"others": str(copy / "others.parquet")}}
    config = tiny.embedded_profile(copy, benchmark=changes)
    kept = (copy / "others/cat0/0.png").read_bytes()
    (copy / "others/cat0/0.png").write_bytes(b"another file")
    with pytest.raises(UserError, match=r"cat0/0\.png is not the listed file .*fetch the photographs that .*others\.parquet lists"):
        benchmark.make_benchmark(config)
    (copy / "others/cat0/0.png").write_bytes(kept)
    rows = benchmark.make_benchmark(config)
    assert set(rows.loc[rows["dataset"] == "embedded", "split"]) == {"train", "val", "test"}
    assert set(rows["dataset"]) == {"embedded", "others"} and set(rows["format"]) == {"JPEG", "WEBP"}
    assert set(rows.loc[rows["dataset"] == "others", "split"]) == {"test"} and rows["image_id"].is_unique
    assert len(images.load_pixels(rows, config.benchmark.folder)) == len(rows)
    reals = rows[(rows["label"] == 0) & (rows["dataset"] == "embedded")]
    photo = reals["pair"].str.rpartition("@")[0]
    assert reals["group"][photo == "cat1/again.jpg"].tolist() == reals["group"][photo == "cat0/0.png"].tolist() != []
    formats = rows[rows["pair"] != ""].groupby("pair")[["format", "jpeg_quality"]].nunique(dropna=False)
    assert (formats == 1).all(axis=None)


def test_near_duplicates_of_a_test_photograph_are_left_out_of_training():
    photos = [SimpleNamespace(id=name, cluster=cluster) for name, cluster in zip("abcdef", "xxyyzz", strict=True)]
    splits = dict(zip("abcdef", ["train", "test", "val", "train", "train", "train"], strict=True))
    assert [photo.id for photo in benchmark._apart(photos, splits)] == ["b", "c", "e", "f"]


def test_published_files_and_images_of_our_generators(tmp_path):
    config = tiny.published_profile(tiny.write_cifake(tmp_path))
    with pytest.raises(UserError, match="holds no weights"):
        benchmark.make_benchmark(config)
    generators.make_generators(config)
    rows = benchmark.make_benchmark(config)
    folder = Path(config.benchmark.folder)
    counts = rows.groupby(["generator", "split"]).size()
    assert counts["real"].to_dict() == {"train": 8, "val": 3, "test": 12} and counts["sd14"].to_dict() == {"train": 9, "val": 3,
                                                                                                          "test": 12}
    assert all(counts[name].to_dict() == {"test": 5} for name in ("vae", "unconditional"))
    assert not set(rows.loc[rows["split"] == "test", "sha256"]) & set(rows.loc[rows["split"] != "test", "sha256"])
    assert rows["image_id"].is_unique and len(images.load_pixels(rows, folder)) == len(rows)
    published = rows[rows["generator"].isin(["real", "sd14"])]
    assert published["path"].str.startswith("../set/").all() and not any(os.path.isabs(path) for path in rows["path"])
    for name, share in (("vae", 1.0), ("unconditional", 0.0)):  # a regeneration is of the group of its photograph
        assert rows.loc[rows["generator"] == name, "group"].isin(rows.loc[rows["generator"] == "real", "group"]).mean() == share
    made, real = (rows[(rows["generator"] == name) & (rows["split"] == "test")].set_index("group") for name in ("vae", "real"))
    one, other = (images.load_pixels(part, folder).astype(float) for part in (made, real.loc[made.index]))
    assert np.corrcoef(one.mean(-1).ravel(), other.mean(-1).ravel())[0, 1] > np.corrcoef(one.mean(-1).ravel(), other[::-1].mean(-1).ravel())[0, 1]
    sample = rows[rows["generator"] == "unconditional"].iloc[0]
    header = read_header(read_bytes(folder / sample["path"]))
    assert (header.format, header.jpeg_quality) == ("JPEG", 75) == (sample["format"], sample["jpeg_quality"])
    before = states(folder)
    pd.testing.assert_frame_equal(benchmark.make_benchmark(config), rows)
    assert states(folder) == before
    more = benchmark.make_benchmark(config.override(benchmark={"samples": 7}))
    assert (more["generator"] == "unconditional").sum() == 7
    assert set(rows.loc[rows["label"] == 1, "sha256"]) <= set(more["sha256"])
    opened = open_benchmark(config.override(benchmark={"limit": 4}))
    assert set(opened.rows["generator"]) == {"real", "sd14", "vae", "unconditional"}


def test_parquet_sets_and_test_sets_of_an_index(tmp_path):
    tiny.write_cifake(tmp_path)
    data = [encoded(9000 + i, "PNG", 40) for i in range(6)]
    (tmp_path / "other").mkdir()
    pd.DataFrame({"image": data, "label": [0, 1] * 3}).to_parquet(tmp_path / "other/test-00000.parquet")
    indexing.index(tmp_path / "other", tmp_path / "other.parquet")
    sets = {"cifake": str(tmp_path / "set.parquet"), "other": str(tmp_path / "other.parquet")}
    config = tiny.published_profile(tmp_path, families=dict.fromkeys(("vae", "unconditional")), benchmark={"test_sets": sets})
    rows = benchmark.make_benchmark(config)
    other = rows[rows["dataset"] == "other"]
    assert len(other) == 6 and set(other["split"]) == {"test"} and other["path"].str.contains(r"other/test-00000\.parquet#\d").all()
    assert set(rows["dataset"]) == {"cifake", "other"}
    assert images.load_pixels(rows, config.benchmark.folder, 32).shape == (len(rows), 32, 32, 3)


def test_a_folder_is_not_shared_and_holds_nothing_else(copy):
    config = tiny.embedded_profile(copy)
    variants = {"plain": {"method.target": "none", "benchmark.least_std": 3.0}}
    with pytest.raises(UserError, match="differ in benchmark.least_std; state a folder for each"):
        benchmark.make_benchmark(config.override(experiments={"other": {"variants": variants}}))
    (copy / "benchmark/mine.txt").write_text("keep")
    with pytest.raises(UserError, match="holds mine.txt, which is no part of a benchmark"):
        benchmark.make_benchmark(config)


def test_samples_in_an_unusual_format_are_refused(tmp_path):
    write(tmp_path, {"a.gif": encoded(1, "GIF", 8), "b.png": encoded(1, "PNG", 8)})
    with pytest.raises(UserError, match="a.gif: samples cannot be written in GIF"):
        benchmark.encode_like(np.zeros((8, 8, 3), np.uint8), tmp_path / "a.gif")
    with pytest.raises(UserError, match="nowhere.png' is refused"):
        benchmark.encode_like(np.zeros((8, 8, 3), np.uint8), str(tmp_path / "nowhere.png"))
    assert read_header(benchmark.encode_like(np.full((8, 8, 3), 7, np.uint8), tmp_path / "b.png")).format == "PNG"
