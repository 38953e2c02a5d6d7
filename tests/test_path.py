"""From a configuration to a decided claim: training, scores, the comparison table, a figure, the ledger."""

import os
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import timm
import torch

from anl import config, seeds
from anl.evaluation.compare import compare
from anl.evaluation.scoring import score_benchmark
from anl.models import baselines, generators
from anl.models.detector import Detector
from anl.report import claims, figures
from anl.training.detector import TrainingData, train_detector
from anl.training.device import make_accelerator
from tests.conftest import ROOT

SIZE, PHOTOGRAPHS = 32, 12
GENERATORS = {"ddim": 40, "vae": 30}  # amplitude of the checkerboard that each leaves, in grey levels


def make_benchmark():
    """Manifest rows and pixels: smooth photographs, and the same with a checkerboard for each generator."""
    rng = seeds.generator(0, "photographs")
    checker = (np.indices((SIZE, SIZE)).sum(0) % 2 * 2 - 1)[..., None]
    rows, pixels = [], []
    for split in ("train", "val", "test"):
        for number in range(PHOTOGRAPHS):
            photo = f"{split}{number}"
            base = rng.integers(60, 190, (1, 1, 3)) + rng.normal(0, 4, (SIZE, SIZE, 3))
            for generator, amplitude in {"real": 0, **GENERATORS}.items():
                if split != "test" and generator == "vae":
                    continue
                rows.append({"image_id": f"{generator}/{photo}", "generator": generator, "label": int(generator != "real"),
                             "split": split, "group": photo, "pair": photo, "format": "PNG", "jpeg_quality": None})
                pixels.append(np.clip(base + amplitude / 2 * checker, 0, 255).astype(np.uint8))
    return pd.DataFrame(rows), np.stack(pixels)


def training_data(rows, pixels, target):
    train, val = (rows["split"] == split for split in ("train", "val"))
    mine, images = rows[train].reset_index(drop=True), pixels[train.to_numpy()]
    fake = mine.index[mine["label"] == 1].to_numpy()
    return TrainingData(images, mine["label"].to_numpy(np.float32), mine["image_id"].tolist(),
                        mine.index[mine["label"] == 0].to_numpy(), fake[:, None], target(images),
                        pixels[val.to_numpy()], rows.loc[val, "label"].to_numpy(np.float32))


def noise_target(images):
    """What differs from the mean of each image, in its standard deviations: a target that a detector can learn."""
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float()
    residual = x - x.mean((2, 3), keepdim=True)
    return (residual / residual.std()).half()


@pytest.fixture(scope="module")
def scores():
    rows, pixels = make_benchmark()
    profile = config.load_config(profile="smoke").override(
        training={"steps": 12, "warmup_steps": 2, "batch_size": 8, "learning_rate": 0.01, "augment_probability": 0.0, "precision": "fp32"},
        method={"attention": "none"})
    tables = []
    for name, variant in profile.variants("main").items():
        noise = variant.method.target != "none"
        for seed in (0, 1, 2):
            detector = Detector(variant.detector.backbone, variant.detector.stride, variant.detector.stem_width, SIZE,
                                noise=noise, attention=variant.method.attention, seed=seed)
            data = training_data(rows, pixels, noise_target if noise else lambda images: None)
            trained, _ = train_detector(detector, data, variant.training, variant.method, seed=seed,
                                        accelerator=make_accelerator("fp32"))
            tables.append(score_benchmark(trained.for_inference(), rows, pixels, variant=name, run_seed=seed, seen="ddim",
                                          views=["raw", "jpeg96"], seed=0, device="cpu"))
    return pd.concat(tables, ignore_index=True)


@pytest.fixture(scope="module")
def table(scores):
    return compare(scores, "plain", seen="ddim", replicates=50)


def test_every_variant_seed_and_image_is_scored_once_in_every_view(scores):
    keys = ["variant", "seed", "image_id", "view"]
    assert not scores.duplicated(keys).any() and np.isfinite(scores["logit"]).all()
    test = scores[scores["split"] == "test"]
    assert len(test) == 2 * 3 * 2 * 3 * PHOTOGRAPHS  # variants, seeds, views, classes


def test_a_detector_learns_the_traces_and_finds_them_in_an_unseen_generator(table):
    rows = table[(table["metric"] == "auroc") & (table["view"] == "raw")].set_index(["variant", "generator"])
    for variant in ("plain", "anl"):
        for generator in ("ddim", "vae", "unseen"):
            assert rows.loc[(variant, generator), "mean"] > 0.8
    assert (table["low"] <= table["mean"]).all() and (table["mean"] <= table["high"]).all()
    assert set(table["n"]) == {PHOTOGRAPHS} and set(table["seeds"]) == {3}


def test_p_values_agree_with_the_intervals(table):
    rows = table[table["p"].notna()]
    excluded = (rows["difference_low"] > 0) | (rows["difference_high"] < 0)
    assert set(rows["variant"]) == {"anl"} and ((rows["p"] < 0.05) == excluded).all() and rows["p"].between(0, 1).all()


def test_the_table_is_drawn_and_decides_a_claim(table):
    figure = figures.forest(table, view="raw", baseline="plain", generators=["ddim", "unseen"], reference=table)
    assert len(figures.to_png(figure)) > 5000
    claim = claims.Claim.model_validate({
        "id": "gain", "title": "Noise learning helps", "sentence": "It helps.", "source": "abstract", "kind": "exploratory",
        "benchmark": "synthetic", "profiles": ["smoke"], "rules": [
            {"measure": "AUROC, ANL minus plain", "table": "main", "above": 0,
             "where": {"variant": "anl", "generator": "unseen", "view": "raw", "metric": "auroc"}}]})
    ledger = claims.evaluate([claim], {"main": table}, "smoke")
    row = ledger.iloc[0]
    assert row["verdict"] in ("supported", "undecided", "contradicted") and row["low"] <= row["value"] <= row["high"]
    chosen = claims.select(table, claim.rules[0].where).iloc[0]
    assert row["value"] == chosen["difference"] and claims.verdicts(ledger) == {"gain": row["verdict"]}


@pytest.mark.parametrize("name", config.profiles())
def test_every_generator_of_a_profile_is_one_that_can_be_built(name):
    profile = config.load_config(profile=name)
    kinds = {model: generators.kind_of(model, section) for model, section in profile.models.items()}
    assert set(kinds.values()) <= set(generators.MODELS)


def test_the_encoder_of_the_profiles_is_one_that_univfd_knows():
    method = baselines.get("univfd")
    for name in config.profiles():
        encoder = config.load_config(profile=name).baselines.encoder
        assert encoder.split(":")[0] in ("timm", "untrained") and timm.is_model(encoder.split(":")[1])
    assert method.needs == "encoder"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.skipif(not (ROOT / "data/photos").is_dir(), reason="the photographs are not there: `dvc pull data.dvc`")
def test_a_gpu_runs_the_pipeline_and_its_weights_score_alike_on_a_cpu(tmp_path):
    shutil.copy(ROOT / "claims.yaml", tmp_path)
    (tmp_path / "data").mkdir()
    for name in ("photos", "photos.csv"):
        (tmp_path / "data" / name).symlink_to(ROOT / "data" / name)

    def anl(*words, **environment):
        command = [sys.executable, "-m", "anl.cli", "--profile", "smoke", "--limit", "6", *words]
        done = subprocess.run(command, cwd=tmp_path, env={**os.environ, **environment}, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return next(tmp_path.glob("results/*/scores/main.parquet"), None)

    for words in (("make", "prior"), ("make", "generator"), ("make", "benchmark"), ("train", "main")):
        anl(*words)
    on_gpu = pd.read_parquet(anl("score", "main"))
    for known in tmp_path.glob("runs/*/*/scores*.parquet"):
        known.unlink()
    on_cpu = pd.read_parquet(anl("score", "main", CUDA_VISIBLE_DEVICES=""))
    keys = ["variant", "seed", "image_id", "view"]
    both = on_gpu.merge(on_cpu, on=keys, suffixes=("", "_cpu"), validate="one_to_one")
    assert len(both) == len(on_gpu) == len(on_cpu) and (both["logit"] - both["logit_cpu"]).abs().max() < 1e-3
