import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from anl import benchmark, detector, predict, selection
from anl.detector import Detector


def test_the_score_is_the_mean_of_the_seen_generators_validation_ap(world, tmp_path, monkeypatch):
    read = []
    honest = selection.read_images
    monkeypatch.setattr(selection, "read_images", lambda folder, rows: read.append(rows) or honest(folder, rows))
    for seed in (0, 1):
        torch.manual_seed(seed)
        detector.save(Detector("test_resnet", 8, 8, 4, 32, attention_dim=8), tmp_path / f"s{seed}/model.safetensors")
    row = selection.validation_table({"anl": [tmp_path / "s0", tmp_path / "s1"]}, world.params).iloc[0]
    rows = read[0]
    assert set(rows["split"]) == {"val"} and set(rows["generator"]) == {"real", world.params.benchmark.seen}
    pixels = benchmark.read_images(world.params.benchmark.folder, rows)
    each = [average_precision_score(rows["label"], predict.score(detector.load(tmp_path / f"s{seed}/model.safetensors"), pixels))
            for seed in (0, 1)]
    assert row["raw"] == pytest.approx(np.mean(each))
    assert row["score"] == pytest.approx((row["raw"] + row["jpeg96"]) / 2) and row["seeds"] == 2
