"""Scores depend on the image alone; tables hold what the comparison needs and know what they were made from."""

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from anl.data import processing
from anl.evaluation import scoring, tables
from anl.evaluation.compare import COLUMNS, compare
from anl.io import UserError
from anl.models.detector import Output

CPU = torch.device("cpu")


class Tiny(nn.Module):
    """A small network with batch norm and dropout, whose logits would depend on the batch in training mode."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Conv2d(4, 1, 3))
        self.images = 0

    def forward(self, x):
        self.images += len(x)
        return Output(self.layers(x).mean((1, 2, 3)), None, None)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Tiny()


@pytest.fixture(scope="module")
def pixels():
    return np.random.default_rng(0).integers(0, 256, (23, 12, 12, 3), dtype=np.uint8)


def test_scores_do_not_depend_on_batch_size_or_order(model, pixels):
    scores = scoring.score(model, pixels, CPU, 23)
    assert scores.dtype == np.float64 and scores.shape == (23,) and scores.std() > 0
    for batch_size in (1, 4, 7, 100):
        np.testing.assert_allclose(scoring.score(model, pixels, CPU, batch_size), scores, atol=1e-6)
    order = np.random.default_rng(1).permutation(23)
    np.testing.assert_allclose(scoring.score(model, pixels[order], CPU, 5), scores[order], atol=1e-6)


def test_a_model_in_training_mode_is_scored_in_eval_mode_and_left_as_it_was(model, pixels):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.train()
    scores = scoring.score(model, pixels, CPU)
    assert model.training and all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    with torch.autocast("cpu", torch.bfloat16):  # autocast around the call changes nothing
        np.testing.assert_array_equal(scoring.score(model.eval(), pixels, CPU), scores)
    mirrored = scoring.score(model, pixels, CPU, mirrored=True)
    np.testing.assert_allclose(mirrored, (scores + scoring.score(model, pixels[:, :, ::-1], CPU)) / 2, atol=1e-6)


def test_views_get_the_positions_of_their_images_and_unchanged_images_are_scored_once(model, pixels):
    def dark(batch, index):
        return (batch * (index[:, None, None, None] % 2)).astype(np.uint8)

    found = scoring.score_views(model, pixels, {"raw": None, "same": lambda batch, index: batch, "dark": dark}, CPU, 5)
    assert model.images == 2 * len(pixels)
    np.testing.assert_array_equal(found["raw"], found["same"])
    np.testing.assert_allclose(found["dark"][1::2], found["raw"][1::2], atol=1e-6)
    np.testing.assert_allclose(found["dark"][::2], scoring.score(model, np.zeros_like(pixels[:1]), CPU)[0], atol=1e-6)


def test_scores_that_are_not_finite_are_refused(model, pixels):
    nn.init.constant_(model.layers[0].bias, float("nan"))
    with pytest.raises(UserError, match="NaN"):
        scoring.score(model, pixels, CPU)


def manifest(photographs=6):
    rows = [{"image_id": f"{split}/{generator}/{photo}", "generator": generator, "split": split, "label": int(generator != "real"),
             "group": f"{split}{photo}", "pair": f"{split}{photo}", "source_real": "" if generator == "real" else "set",
             "format": "JPEG" if generator == "real" else "PNG", "jpeg_quality": 80 if generator == "real" else None}
            for split in ("train", "val", "test") for generator in ("real", "ddim", "vae") for photo in range(photographs)]
    return pd.DataFrame(rows).sample(frac=1, random_state=0)


def scored(model, rows, images, **changes):
    options = {"variant": "anl", "run_seed": 3, "seen": "ddim", "views": ["raw", "matched"], "controls": ["blur"],
               "seed": 0, "device": CPU}
    return scoring.score_benchmark(model, rows, images, **{**options, **changes})


def test_a_benchmark_is_scored_for_threshold_result_and_controls(model):
    rows = manifest()
    images = np.random.default_rng(0).integers(0, 256, (len(rows), 16, 16, 3), dtype=np.uint8)
    table = scored(model, rows, images)
    counts = table.groupby(["split", "view", "generator"]).size().to_dict()
    expected = {("val", "raw", name): 6 for name in ("real", "ddim")} | {("test", "blur", "real"): 6}
    expected |= {("test", view, name): 6 for view in ("raw", "matched") for name in ("real", "ddim", "vae")}
    assert counts == expected and list(table) == COLUMNS
    place = {name: number for number, name in enumerate(rows["image_id"])}
    for view, name, change in (("raw", "test/vae/2", "raw"), ("matched", "test/vae/2", "jpeg_80"),
                               ("matched", "test/real/2", "raw"), ("blur", "test/real/4", "blur")):
        image = processing.apply(change, images[place[name]])[None]
        found = table[(table["view"] == view) & (table["image_id"] == name)]["logit"].item()
        assert found == pytest.approx(scoring.score(model, image, CPU)[0], abs=1e-6)
    assert len(compare(table, seen="ddim", replicates=20)) > 0
    held_out = scored(model, rows, images, held_out=["vae"]).query("split == 'val'")
    assert set(zip(held_out["generator"], held_out["view"])) == {(name, view) for name in ("real", "ddim", "vae") for view in ("raw", "matched")}
    on_demand = scored(model, rows, lambda part: images[[place[name] for name in part["image_id"]]])
    pd.testing.assert_frame_equal(on_demand, table)


def test_scores_are_written_with_their_key_and_read_back(model, tmp_path):
    rows = manifest()
    table = scored(model, rows, np.zeros((len(rows), 16, 16, 3), np.uint8))
    path = tmp_path / "scores.parquet"
    tables.write_scores(path, table, "abc")
    assert tables.scores_key(path) == "abc"
    pd.testing.assert_frame_equal(tables.read_scores(path), table, check_dtype=False, rtol=2**-12)
    first = path.read_bytes()
    tables.write_scores(path, table, "abc")
    assert path.read_bytes() == first


def test_files_that_hold_no_such_scores_are_refused(tmp_path):
    path = tmp_path / "scores.parquet"
    with pytest.raises(UserError, match="missing"):
        tables.read_scores(path)
    path.write_bytes(b"PAR1 nothing")
    assert tables.scores_key(path) is None
    with pytest.raises(UserError, match="no scores table"):
        tables.read_scores(path)
    pd.DataFrame({"variant": ["a"]}).to_parquet(path)
    with pytest.raises(UserError):
        tables.read_scores(path)
