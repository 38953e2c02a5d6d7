"""The paper's experiment from published folder trees to the claims, with the commands of the book, on tiny stand-ins."""

import shutil

import numpy as np
import pandas as pd
import pytest

from anl import cli
from anl.config import load_config
from tests import tiny_priors
from tests.conftest import ROOT, photograph
from tests.data.trees import encode, encoded, write

EACH = 4
TREES = {
    "genimage": [f"{name}/{split}/{label}" for name in ("stable_diffusion_v_1_4/imagenet_ai_0419_sdv4", "Midjourney/imagenet_midjourney",
                                                        "BigGAN/imagenet_ai_0419_biggan")
                 for split in ("train", "val") for label in ("ai", "nature")],
    "forensynths-train": [f"{split}/{kind}/{label}" for split in ("train", "val") for kind in ("car", "cat") for label in ("0_real", "1_fake")],
    "forensynths": [f"{name}/{label}" for name in ("progan/airplane", "biggan", "deepfake") for label in ("0_real", "1_fake")],
    "diffusionforensics": [f"images/{split}/lsun_bedroom/{name}" for split in ("train", "val", "test")
                           for name in ("real", "adm", *(("iddpm", "ldm") if split == "test" else ()))],
}


def published_trees(root):
    """A few images in the layouts of the data sets; photographs are JPEG files of several sizes, fakes PNG files of one."""
    number = iter(range(10_000))
    for name, places in TREES.items():
        files = {}
        for place in places:
            for index in range(EACH):
                if place.endswith(("nature", "0_real", "/real")):
                    files[f"{place}/{index}.jpg"] = encode(photograph(next(number), 72 + 8 * index, 90), "JPEG", quality=96)
                else:
                    files[f"{place}/{index}.png"] = encoded(next(number), size=80)
        write(root / name, files)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("paper")
    published_trees(root / "data/sources")
    tiny_priors.latent_folder(root / "prior")
    shutil.copytree(ROOT / "notebooks", root / "notebooks")
    shutil.copy(ROOT / "claims.yaml", root)
    return root


def test_every_stage_of_the_paper_s_experiment(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    stand_ins = ("prior.source=prior", "detector.backbone=test_resnet", "detector.pretrained=false", "detector.stride=8",
                 "experiments.convnext.vary={detector.backbone: [test_convnext], method.target: [none, prior]}", "benchmark.size=64",
                 "run.workers=2", "run.jobs=1", "profile=paper")
    limited = ("--profile", "paper", "--limit", str(EACH), *(part for setting in stand_ins for part in ("--set", setting)))

    def anl(*words):
        status = cli.main(list(words))
        assert not status, f"anl {' '.join(words)}: {capsys.readouterr().err}"

    for name in TREES:
        anl("data", "index", f"data/sources/{name}")
    for stage in ("prior", "generator", "benchmark"):
        anl(*limited, "make", stage)
    config = load_config(profile="paper")
    experiments = ("main", "convnext", "forensynths", "diffusionforensics", "step_t")
    for experiment in experiments:
        anl(*limited, "train", experiment)
        anl(*limited, "score", experiment)
    for page in ("cross_generator", "step_t"):
        anl(*limited, "notebook", page, "--out", f"{page}.ipynb")
    anl(*limited, "claims")

    results = folder / f"results/paper-limit{EACH}"
    scores = {path.stem: pd.read_parquet(path) for path in (results / "scores").glob("*.parquet")}
    assert scores.keys() == {*experiments, *(f"{name}@{test}" for name in experiments for test in config.benchmark.test_sets)}
    for name, table in scores.items():
        assert {"val", "test"} == set(table["split"]) and np.isfinite(table["logit"]).all()
        assert not table.duplicated(["variant", "seed", "image_id", "view"]).any(), name
    expected = {"main": {"sd14", "biggan", "midjourney"}, "main@forensynths": {"progan", "biggan", "deepfake"},
                "forensynths": {"sd14", "biggan", "midjourney"}, "diffusionforensics": {"adm", "iddpm", "ldm"}}
    for name, generators in expected.items():
        tested = scores[name][scores[name]["split"] == "test"]
        assert set(tested["generator"]) == {"real", *generators}, name
