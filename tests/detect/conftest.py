"""A tiny detector in use, made of an untrained run, and pictures of many kinds."""

import numpy as np
import pytest
import torch

from anl import detector, predict
from anl.detect import card, scorer
from anl.files import write_json
from tests.conftest import photograph


@pytest.fixture(scope="module")
def run(world, tmp_path_factory):
    """A run folder of an untrained detector."""
    folder = tmp_path_factory.mktemp("run") / "prior-t1-affinity-s0"
    torch.manual_seed(0)
    made = detector.Detector("test_resnet", 8, 8, 4, 32, attention_dim=8).eval()
    detector.save(made, folder / "model.safetensors")
    write_json(folder / "run.json", {"spec": {"seed": 0, "formats": "lossless"}, "identity": "0", "versions": {"anl": "0"}})
    predict.write_predictions(folder, predict.score_benchmark(made, world.params))
    return folder


@pytest.fixture(scope="module")
def folder(world, run, tmp_path_factory):
    """The detector's folder, to be read only."""
    path = tmp_path_factory.mktemp("in_use") / "detector"
    card.make(run, world.params, path, "MIT")
    return path


@pytest.fixture
def in_use(folder):
    return scorer.ImageDetector.load(folder)


@pytest.fixture
def picture():
    """uint8 (90, 130, 3)."""
    return np.ascontiguousarray(photograph(3, 90, 130))
