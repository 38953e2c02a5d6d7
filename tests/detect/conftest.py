"""A packaged detector of an untrained network, with made-up scores."""

import numpy as np
import pandas as pd
import pytest

from anl.config import load_config
from anl.detect import card as cards
from anl.detect.detector import ImageDetector
from anl.models.detector import Detector
from tests.conftest import photograph

CONDITIONS = ("raw", "jpeg96", "blur")
WHOLE = ("files", "files+jpeg96", "files+blur")  # whole photographs


def tiny(attention="none", noise=False, **options):
    return Detector("test_resnet", 8, 4, 32, noise=noise, attention=attention, attention_dim=8, **options).eval()


def make_scores(groups=40, patches=3, seed=0):
    """Scores of reals, one seen generator and one that is not, in three conditions; of reals also as whole photographs."""
    rng, rows = np.random.default_rng(seed), []
    for split in ("val", "test"):
        for generator, mean in (("real", -2.0), ("ddim", 1.0), ("vae", 0.0)):
            for view in (*CONDITIONS, *(WHOLE if generator == "real" else [])):
                if generator == "vae" and split == "val":
                    continue
                shift = {"raw": 0, "files": 1}.get(view, 0.5)
                for group in range(groups):
                    base = mean + shift + rng.normal()
                    rows += [{"group": f"{split}{group}", "generator": generator, "split": split, "view": view,
                              "label": int(generator != "real"), "logit": base + 0.1 * rng.normal()} for _ in range(patches)]
    return pd.DataFrame(rows)


@pytest.fixture(scope="session")
def config():
    return load_config(profile="smoke").override(benchmark={"size": 32})


@pytest.fixture(scope="session")
def scores():
    return make_scores()


@pytest.fixture(scope="session")
def folder(config, scores, tmp_path_factory):
    """The packaged detector's folder, to be read only."""
    path = tmp_path_factory.mktemp("packaged") / "detector"
    cards.write(tiny(), path, config=config, scores=scores, run={"identity": "0", "seed": 0}, licence="MIT")
    return path


@pytest.fixture
def detector(folder):
    return ImageDetector.load(folder)


@pytest.fixture
def picture():
    """uint8 (90, 130, 3)."""
    return np.ascontiguousarray(photograph(3, 90, 130))
