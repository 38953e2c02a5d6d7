import dataclasses

import numpy as np
import pytest
import torch

from anl import predict
from anl.benchmark import read_images, read_manifest, use_rows
from anl.detector import Detector
from anl.errors import UserError


def detector():
    torch.manual_seed(0)
    return Detector("test_resnet", 8, 8, 4, 32, attention_dim=8).eval()


def test_scores_do_not_depend_on_batch_size_or_order(world, monkeypatch):
    rows = use_rows(read_manifest(world.params.benchmark.folder), world.params).head(20)
    pixels = read_images(world.params.benchmark.folder, rows)
    whole = predict.score(detector(), pixels)
    monkeypatch.setattr(predict, "BATCH", 3)
    np.testing.assert_allclose(predict.score(detector(), pixels), whole, atol=1e-5)
    order = np.random.default_rng(0).permutation(len(pixels))
    np.testing.assert_allclose(predict.score(detector(), pixels[order]), whole[order], atol=1e-5)


def test_a_mirrored_score_is_the_mean_over_an_image_and_its_mirror_image():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    plain, other = (predict.score(detector(), images) for images in (pixels, pixels[:, :, ::-1]))
    assert not np.allclose(plain, other)
    mirrored = predict.score(detector(), pixels, mirrored=True)
    np.testing.assert_allclose(mirrored, (plain + other) / 2, atol=1e-6)
    np.testing.assert_allclose(predict.score(detector(), pixels[:, :, ::-1], mirrored=True), mirrored, atol=1e-6)


def test_a_profile_asks_for_mirrored_scores_in_every_view(world, monkeypatch):
    settings = dataclasses.replace(world.params, evaluation=dataclasses.replace(world.params.evaluation, mirrored=True))
    asked, score = [], predict.score
    monkeypatch.setattr(predict, "score", lambda *a: asked.append(a[3]) or score(*a))
    table = predict.score_benchmark(detector(), settings)
    assert len(asked) >= table["view"].nunique() - 1 and all(asked)


def test_every_test_image_is_scored_once_in_every_view(world):
    table = predict.score_benchmark(detector(), world.params)
    assert not table.duplicated(["sample_id", "view"]).any()
    test = table[table["split"] == "test"]
    rows = use_rows(read_manifest(world.params.benchmark.folder), world.params)
    wanted = set(rows.loc[rows["split"] == "test", "sample_id"])
    for view in world.params.evaluation.views:
        assert set(test.loc[test["view"] == view, "sample_id"]) == wanted
    for control in world.params.evaluation.controls:
        assert set(test.loc[(test["view"] == control) & (test["label"] == 0), "sample_id"]) == {
            s for s in wanted if s.startswith("real/")}
    raw, matched = (test[test["view"] == v].set_index("sample_id")["logit"] for v in ("raw", "matched"))
    assert raw.equals(matched.reindex(raw.index))
    assert np.isfinite(table["logit"]).all()


def test_missing_and_broken_predictions_are_named(tmp_path):
    with pytest.raises(UserError, match="predictions.parquet is missing"):
        predict.read_predictions(tmp_path)
    (tmp_path / "predictions.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match="cannot be read"):
        predict.read_predictions(tmp_path)


def test_a_leaky_copy_has_jpeg_reals_in_raw_and_no_format_left_to_tell_in_matched(world):
    honest, leaky = (predict.score_benchmark(detector(), world.params, formats=name).set_index(["sample_id", "view", "split"])
                     ["logit"] for name in ("lossless", "leaky"))
    real, fake = (honest.index.get_level_values("sample_id").str.startswith("real/") == kind for kind in (True, False))
    raw, matched, jpeg = (honest.index.get_level_values("view") == name for name in ("raw", "matched", "jpeg96"))
    assert np.array_equal(leaky[fake & raw], honest[fake & raw]) and not np.isclose(leaky[real & raw], honest[real & raw]).all()
    test = honest.index.get_level_values("split") == "test"
    np.testing.assert_allclose(leaky[real & raw & test], honest[real & jpeg], atol=1e-5)
    np.testing.assert_allclose(leaky[fake & matched], honest[fake & jpeg], atol=1e-5)


def test_fakes_that_are_encoded_otherwise_than_the_reals_are_re_encoded_in_view_matched(world, monkeypatch):
    """A manifest that says its reals are JPEG 75, and its fakes PNG."""
    honest = predict.score_benchmark(detector(), world.params).set_index(["sample_id", "view", "split"])["logit"]

    def read(folder):
        rows = read_manifest(folder)
        real = rows["generator"] == "real"
        return rows.assign(format=np.where(real, "JPEG", "PNG"), jpeg_quality=np.where(real, 75.0, np.nan))

    monkeypatch.setattr(predict, "read_manifest", read)
    table = predict.score_benchmark(detector(), world.params).set_index(["sample_id", "view", "split"])["logit"]
    name, view, split = (table.index.get_level_values(key) for key in ("sample_id", "view", "split"))
    here = (view == "matched") & (split == "test")
    real = name.str.startswith("real/")
    assert np.array_equal(table[here & real], honest[here & real])
    assert not np.isclose(table[here & ~real], honest[here & ~real]).all()
