"""The paper's experiment in two processes on one CPU against one, through the command line."""

import copy
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from safetensors.torch import load_file

from anl import cli, cli_paper, launch
from anl.errors import UserError
from anl.paper import protocol, settings, training
from tests.conftest import ROOT

RUN = ("genimage", "tiny", "anl", 0)
WORDS = ("--protocol", "genimage", "--method", "anl")


def anl(place, profile, *words, path=()):
    """Run `anl paper` as a person does; returns (exit status, stdout, stderr without progress bars). path: folders before ours
    on Python's path."""
    done = subprocess.run([sys.executable, "-m", "anl.cli", "--processes", "2", "--params", str(profile), "paper", *words],
                          cwd=place, capture_output=True, text=True, check=False, timeout=300,
                          env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (*path, ROOT))), "OMP_NUM_THREADS": "1"})
    return done.returncode, done.stdout, [line for line in done.stderr.splitlines() if "%|" not in line]


@pytest.fixture(scope="module")
def place(stand_in, tmp_path_factory):
    """(folder, {processes: profile}): one training of four steps whose six images two processes cannot share evenly."""
    root = tmp_path_factory.mktemp("together")
    value = yaml.safe_load(stand_in[1].read_text())
    value |= {"seeds": [0], "methods": ["anl"], "tested": ["genimage"], "protocols": {"genimage": value["protocols"]["genimage"]},
              "sets": {"genimage": value["sets"]["genimage"]}}
    value["training"] |= {"steps": 4, "batch_size": 6, "precision": "fp32", "workers": 1}
    value["prior"] |= {"precision": "fp32", "scale_images": 12}
    value["evaluation"] |= {"batch_size": 5, "views": ["raw"], "headline": "raw", "bootstrap": 20}
    profiles = {}
    for count in (1, 2):
        mine = copy.deepcopy(value)
        mine["folders"] |= {"manifests": str(root / "manifests"), "runs": str(root / f"runs{count}"), "results": str(root / f"results{count}")}
        profiles[count] = root / f"paper{count}.yaml"
        profiles[count].write_text(yaml.safe_dump(mine, sort_keys=False))
    return root, profiles


@pytest.fixture(scope="module")
def ran(place):
    """{processes: Settings}, all stages run."""
    root, profiles = place
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.delenv("WORLD_SIZE", raising=False)
        assert cli.main(["--params", str(profiles[1]), "paper"]) == 0
    status, out, said = anl(root, profiles[2])
    assert status == 0, said
    assert out.count("tiny-anl-s0\n") == 1  # the main process alone speaks
    return {count: settings.load(profile) for count, profile in profiles.items()}


def test_two_processes_follow_the_training_of_one(ran):
    folders = {count: found.run(*RUN) for count, found in ran.items()}
    assert [json.loads((folders[count] / "run.json").read_text())["processes"] for count in (1, 2)] == [1, 2]
    curves = [pd.read_csv(folders[count] / "curve.csv") for count in (1, 2)]
    assert len(curves[0]) == 4
    parts = ["classification_loss", "noise_loss"]  # the loss is their sum
    assert np.abs(curves[0][parts] - curves[1][parts]).max().max() < 1e-5
    scales = [(folders[count].parent / "target.json").read_bytes() for count in (1, 2)]
    assert scales[0] == scales[1]


def test_every_image_is_scored_once_with_the_number_that_one_process_gives(ran, place):
    root, profiles = place
    shutil.copytree(ran[1].run(*RUN), root / "kept")
    alone = pd.read_parquet(ran[1].run(*RUN) / "genimage.parquet")
    for path in ran[1].run(*RUN).glob("*.parquet"):
        path.unlink()
    status, _, said = anl(root, profiles[1], "score")
    assert status == 0, said
    shared = pd.read_parquet(ran[1].run(*RUN) / "genimage.parquet")
    pd.testing.assert_frame_equal(alone, shared, check_exact=True)
    assert shared["sample_id"].is_unique and len(shared) % 5 and len(shared) == len(protocol.test_rows(ran[1], "genimage"))


def test_the_profile_chooses_how_many_processes_and_a_launcher_is_heard(place, monkeypatch):
    _, profiles = place
    value = yaml.safe_load(profiles[1].read_text())
    value["launch"] = {"processes": 3}
    profiles[1].with_name("three.yaml").write_text(yaml.safe_dump(value))
    started = []
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setattr(launch, "start", lambda words, count: started.append(count) or 0)
    for words in (["train"], ["score"], ["targets"], []):
        assert cli.main(["--params", str(profiles[1].with_name("three.yaml")), "paper", *words]) == 0
    assert started == [3] * 4
    assert cli_paper.shared("index") == "paper index" and cli_paper.shared(None) == "paper"
    with pytest.raises(UserError, match="runs in one process"):
        launch.wanted("paper index", 2, pytest.fail)
    assert launch.wanted("paper", None, lambda: settings.load(profiles[1])) == 1  # no GPU here
    monkeypatch.setenv("WORLD_SIZE", "2")  # accelerate launch, torchrun, SLURM
    assert launch.wanted("paper", None, pytest.fail) == 1


def test_an_image_that_one_process_cannot_read_stops_all_with_one_line(ran, place, tmp_path):
    rows, _ = protocol.training_rows(ran[2], "genimage")
    batches = training.TrainingBatches(rows, 32, ran[2].training, 0, 1, 2)
    path = Path(batches[0]["files"][0])  # of the second process
    whole, value = path.read_bytes(), yaml.safe_load(place[1][2].read_text())
    value["folders"] |= {"runs": str(tmp_path / "runs")}
    (tmp_path / "broken.yaml").write_text(yaml.safe_dump(value))
    try:
        path.write_bytes(whole[:60])  # after it was indexed
        status, _, said = anl(place[0], tmp_path / "broken.yaml", "train", *WORDS)
    finally:
        path.write_bytes(whole)
    assert status == 2 and len(said) == 1 and said[0].startswith("anl paper: process "), said
    assert str(path) in said[0] and "is refused" in said[0]
    assert not list(tmp_path.rglob("model.safetensors"))


NOT_FINITE = """
import os
if os.environ.get("RANK") == "1":
    from anl.paper import training
    right = training.anl_loss
    training.anl_loss = lambda *arguments: {key: value * float("nan") for key, value in right(*arguments).items()}
"""


def test_a_loss_that_is_not_finite_in_one_process_stops_all_and_names_its_images(ran, place, tmp_path):
    value = yaml.safe_load(place[1][2].read_text())
    value["folders"] |= {"runs": str(tmp_path / "runs")}
    (tmp_path / "broken.yaml").write_text(yaml.safe_dump(value))
    (tmp_path / "sitecustomize.py").write_text(NOT_FINITE)
    status, _, said = anl(place[0], tmp_path / "broken.yaml", "train", *WORDS, path=[tmp_path])
    rows, _ = protocol.training_rows(ran[2], "genimage")
    first = training.TrainingBatches(rows, 32, ran[2].training, 0, 1, 2)[0]["files"][0]
    assert status == 2 and "Traceback" not in "".join(said), said
    (told,) = [line for line in said if line.startswith("anl paper: ")]  # torch, imported too early here, may warn beside it
    assert f"the loss is nan at step 1 in process 1 of 2 (batch of {first}" in told
    assert told.endswith("lower training.learning_rate") and not list(tmp_path.rglob("model.safetensors"))


def test_a_training_of_another_number_of_processes_is_not_gone_on_with(ran, tmp_path):
    from anl.fitting import Checkpoint

    name = training.checkpoint_of(ran[2], *RUN, cache=tmp_path)
    assert isinstance(name, Checkpoint)
    name.save({"step": 1, "processes": 2})
    with pytest.raises(UserError, match=r"left by a training in 2 processes, and this is one in 1; run it again with --processes 2"):
        training.train(ran[2], *RUN, cache=tmp_path)


def test_the_weights_are_those_of_one_process_but_for_rounding(ran):
    one, two = (load_file(ran[count].run(*RUN) / training.WEIGHTS) for count in (1, 2))
    assert one.keys() == two.keys()
    assert max(float((one[key].double() - two[key].double()).abs().max()) for key in one) < 1e-3
