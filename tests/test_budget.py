import csv
import dataclasses

import pandas as pd
import pytest

from anl import budget, cli, scale_page
from anl.errors import UserError
from anl.files import read_json, write_csv, write_json
from anl.paper import settings
from tests import tiny_priors
from tests.conftest import ROOT


@pytest.fixture
def bench(tmp_path):
    """Measurements made up so that every rate is a round number."""
    folder = tmp_path / "bench"
    write_csv(folder / "test_resnet-64/inference.csv", [
        {"model": "affinity", "batch": batch, "multiply_adds": 1000, "milliseconds": 64} for batch in (1, 64)])
    write_csv(folder / "test_resnet-64/training.csv", [{"model": "affinity", "batch": 10, "seconds": 0.03}])
    write_csv(folder / "test_resnet-64/targets.csv", [{"what": "bare prior", "images_per_second": 2.0}])
    write_csv(folder / "decode-256/decode.csv", [{"format": "JPEG", "bytes": 500_000, "core_seconds": 0.01},
                                                 {"format": "PNG", "bytes": 1_500_000, "core_seconds": 0.03}])
    return folder


@pytest.fixture
def small(tmp_path):
    """The paper's profile with a tiny backbone, a tiny prior and no manifests."""
    full = settings.load(ROOT / "profiles/paper.yaml")
    return dataclasses.replace(
        full, crop=32, backbones={"tiny": settings.Backbone("test_resnet", 8, False)}, seeds=[0, 1],
        detector=dataclasses.replace(full.detector, patch=4), folders=dataclasses.replace(full.folders, manifests=str(tmp_path)),
        prior=dataclasses.replace(full.prior, source=str(tiny_priors.pixel_folder(tmp_path / "prior"))))


def test_rates_are_operations_over_seconds(bench):
    here = budget.rates(bench=bench)
    assert here.train == pytest.approx(3 * 2 * 1000 * 10 / 0.03) and here.score == pytest.approx(2 * 1000 * 64 / 0.064)
    assert here.decode == pytest.approx(0.02) and here.decode_mb == pytest.approx(0.02) and here.cores == 2
    gpus = budget.rates(100, 8, 32, bench)
    assert gpus.train == gpus.prior == 8e14 and gpus.cores == 32 and "8 GPUs at 100 TFLOP/s each" in gpus.where


def test_hours_are_the_slower_of_computing_and_decoding(bench, small):
    rows = {(row["stage"], row["what"]): row for row in budget.work_out(small, 100, 1, 4, bench).rows}
    trained = rows["train", "tiny, plain"]
    images = small.training.steps * small.training.batch_size
    assert trained["times"] == 3 * 2 and trained["images"] == images
    assert trained["hours"] == pytest.approx(6 * images * 0.02 / 4 / 3600)  # a tiny model waits for the images
    slow = {(row["stage"], row["what"]): row for row in budget.work_out(small, 1e-6, 1, 4, bench).rows}["train", "tiny, plain"]
    assert slow["hours"] == pytest.approx(slow["PFLOP"] * 1e15 / 1e6 / 3600)
    assert rows["train", "tiny, anl"]["PFLOP"] > trained["PFLOP"]


def test_what_is_not_known_is_left_open_and_named(bench, small):
    found = budget.work_out(small, 100, 1, 4, bench)
    rows = {(row["stage"], row["what"]): row for row in found.rows}
    assert rows["index", "diffusionforensics"]["hours"] is None
    assert rows["index", "genimage"]["images"] == 1331167 + 1350000
    assert "bytes" in rows["index", "forensynths"]["known_from"]
    assert found.rows[-1]["known_from"] == "without index of diffusionforensics"
    assert found.rows[-1]["hours"] == pytest.approx(sum(row["hours"] for row in found.rows[:-1] if row["hours"] is not None))
    assert any("genimage, forensynths, diffusionforensics are assumed" in note for note in found.notes)
    assert any("On a GPU nothing was measured" in note for note in found.notes)
    assert any("extrapolated" in note for note in budget.work_out(small, bench=bench).notes)


def test_a_manifest_counts_where_there_is_one(bench, small, tmp_path, monkeypatch):
    monkeypatch.setattr(budget.manifest, "counts", lambda path, by, split: pd.DataFrame({"split": ["test"], "images": [70]}))
    (tmp_path / "genimage.parquet").touch()
    found = budget.work_out(small, 100, 1, 4, bench)
    rows = {(row["stage"], row["what"]): row for row in found.rows}
    assumed = small.sets["forensynths"].assumed + small.sets["diffusionforensics"].assumed
    assert rows["score", "tiny, plain"]["images"] == 3 * (70 + assumed)
    assert "assumed and counted" in rows["score", "tiny, plain"]["known_from"]


def test_decoding_is_measured(small, tmp_path):
    folder = budget.measure(small, tmp_path / "decode-256", images=3)
    rows = list(csv.DictReader((folder / "decode.csv").read_text().splitlines()))
    assert [row["format"] for row in rows] == ["JPEG", "PNG"] and all(0 < float(row["core_seconds"]) < 1 for row in rows)
    assert read_json(folder / "machine.json")["repeats"] == 3


def test_mistakes_are_one_line(tmp_path, monkeypatch, capsys):
    for words, said in ((["--tflops", "0"], "give a rate above 0"), (["--gpus", "0"], "give 1 or more"),
                        (["--write"], "--write needs --tflops")):
        assert cli.main(["--params", str(ROOT / "profiles/paper.yaml"), "budget", *words]) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1
    with pytest.raises(UserError, match="anl budget --measure"):
        budget.rates(bench=tmp_path)


def test_the_books_table_has_both_columns_and_says_what_is_unknown(tmp_path):
    write_csv(tmp_path / "scale/budget.csv", [dict(zip(scale_page.HEADS, row)) for row in (
        ("index", "genimage", 1, 2681167, 0.0, 2.03464, 0.0636, 500.402, 1.0, "registry's bytes"),
        ("index", "diffusionforensics", 1, None, 0.0, None, None, None, 1.0, "not known"))])
    write_json(tmp_path / "scale/budget.json", {"notes": ["Measured: much."], "gpu": "8 GPUs"})
    scale_page.gather(tmp_path, tmp_path / "out")
    table, text = ((tmp_path / "out" / name).read_text() for name in ("budget.html", "budget.md.txt"))
    assert "Hours, 8 GPUs" in table and "2,681,167" in table and "2.03" in table and "&ndash;" in table
    assert "generated/scale/budget.html" in text and "- Measured: much." in text
    assert (tmp_path / "out/budget.csv").read_bytes() == (tmp_path / "scale/budget.csv").read_bytes()
    scale_page.gather(tmp_path / "nowhere", tmp_path / "out")
    assert (tmp_path / "out/budget.md.txt").read_text() == "\n"


def test_the_stored_table_is_of_the_stored_profile():
    full = settings.load(ROOT / "profiles/paper.yaml")
    rows = list(csv.DictReader((ROOT / "results/scale/budget.csv").read_text().splitlines()))
    assert [row["what"] for row in rows if row["stage"] == "train"] == [
        f"{backbone}, {method}" for backbone in full.backbones for method in full.methods]
    assert {row["images"] for row in rows if row["stage"] == "train"} == {str(full.training.steps * full.training.batch_size)}
