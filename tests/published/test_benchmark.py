import copy
import io

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from anl import params, predict, runs
from anl.benchmark import read_images, read_manifest, use_rows
from anl.errors import UserError
from anl.published import benchmark
from tests.conftest import photograph
from tests.published.conftest import QUALITY, TEST, jpeg


def test_the_published_bytes_are_kept(public):
    table = pd.read_parquet(public.root / "benchmark/images-sd14.parquet")
    published = {path.read_bytes() for path in (public.root / "set").rglob("*.jpg")}
    assert set(table["png"]) <= published


def test_the_folder_is_read_as_the_embedded_benchmark_is(public):
    rows = read_manifest(public.params.benchmark.folder)
    pixels = read_images(public.params.benchmark.folder, rows)
    assert pixels.shape == (len(rows), 32, 32, 3) and set(rows["generator"]) == {"real", "sd14", "gan", "vae", "ddpm"}
    assert not rows["sample_id"].duplicated().any()
    used = use_rows(rows, public.params)
    train = used[used["split"] == "train"]["sample_id"]
    real = {name.split("/")[1] for name in train if name.startswith("real/")}
    assert len(real) == 8 and real == {name.split("/")[1] for name in train if name.startswith("sd14/")}


def test_own_generators_only_test_and_are_encoded_as_the_reals_are(public):
    rows = read_manifest(public.params.benchmark.folder)
    own = rows[rows["generator"].isin(["gan", "vae", "ddpm"])]
    assert set(own["split"]) == {"test"} and own.groupby("generator").size().to_dict() == {"gan": 4, "vae": 4, "ddpm": 4}
    tables = {Image.open(io.BytesIO(data)).quantization[0][0] for name in ("real", "gan", "ddpm")
              for data in pd.read_parquet(public.root / f"benchmark/images-{name}.parquet")["png"]}
    assert len(tables) == 1 and set(rows["format"]) == {"JPEG"} and set(rows["jpeg_quality"]) == {QUALITY}


def test_encoding_a_decoded_jpeg_as_itself_gives_its_bytes():
    data = jpeg(3)
    again = benchmark.encode_like(np.asarray(Image.open(io.BytesIO(data)).convert("RGB")), data)
    assert Image.open(io.BytesIO(again)).quantization == Image.open(io.BytesIO(data)).quantization
    pixels = np.full((32, 32, 3), 90, np.uint8)  # flat: decodes to itself, so that the bytes must agree
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="JPEG", quality=QUALITY)
    assert benchmark.encode_like(pixels, stream.getvalue()) == stream.getvalue()


def test_samples_beside_lossless_reals_are_lossless_and_other_formats_are_refused():
    pixels, stream = photograph(0, 32, 32), io.BytesIO()
    Image.fromarray(pixels).save(stream, format="PNG")
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(benchmark.encode_like(pixels, stream.getvalue())))), pixels)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="WEBP")
    with pytest.raises(UserError, match="in WEBP; only JPEG and PNG"):
        benchmark.encode_like(pixels, stream.getvalue())


def test_images_of_equal_bytes_share_a_cluster_and_no_others(public):
    rows = read_manifest(public.params.benchmark.folder)
    assert (rows.groupby("cluster")["sha256"].nunique() == 1).all() and not rows["photo"].duplicated().any()


def test_a_generator_that_is_not_trained_yet_is_named_and_nothing_is_written(public, tmp_path):
    value = copy.deepcopy(public.settings)
    value["published"]["models"], value["benchmark"]["folder"] = str(tmp_path), str(tmp_path / "benchmark")
    with pytest.raises(UserError, match="holds no generator .*`anl --params PROFILE generate gan`"):
        benchmark.build(params.from_dict(value, "tiny"))
    assert not (tmp_path / "benchmark").exists()


def test_a_benchmark_that_is_not_there_is_named_with_its_own_mend(public, tmp_path):
    benchmark.check(public.params)
    value = copy.deepcopy(public.settings)
    value["benchmark"]["folder"] = str(tmp_path / "none")
    with pytest.raises(UserError, match="none holds no benchmark; .*`dvc repro cifake/dvc.yaml`, .*`anl --params profiles/cifake.yaml benchmark`"):
        benchmark.check(params.from_dict(value, "tiny"))


@pytest.mark.parametrize("changes", [{}, {"baseline": "dnf"}])
def test_a_detector_is_trained_and_scored_on_it(public, tmp_path, monkeypatch, changes):
    monkeypatch.chdir(tmp_path)
    spec = runs.specs_of(public.params, **({} if changes else {"target": "prior"}))[0]
    if changes:
        spec = runs.specs_of(public.params, **changes)[0]
    table = predict.read_predictions(runs.train_run(spec, public.params, "main", tmp_path / "runs"))
    test = table[table["split"] == "test"]
    raw, matched = (test[test["view"] == view].set_index("sample_id")["logit"] for view in ("raw", "matched"))
    assert len(raw) == 2 * TEST + 12 and raw.equals(matched)  # every file is a JPEG of one quality
    predict.score_run(tmp_path / "runs/cifake/main" / spec.slug, public.params)  # a saved one finds its prior again
