"""The curves' files, as DVCLive writes them and `dvc plots` and the notebook read them."""

import subprocess
import sys

import pandas as pd
import pytest

from anl import tracking
from anl.errors import UserError
from anl.train import _accelerator

POINTS = [{"step": 10, "loss": 1.5, "classification_loss": 0.7, "noise_loss": None, "val_AP": None},
          {"step": 20, "loss": 1.25, "classification_loss": 0.5, "noise_loss": None, "val_AP": 0.75}]


def write(folder, points, before=()):
    accelerator = _accelerator("bf16")
    tracking.start(accelerator, folder, before)
    for point in points:
        tracking.log(accelerator, point)
    return accelerator


def test_what_was_logged_is_read_before_and_after_the_end(tmp_path):
    accelerator = write(tmp_path / "curves", POINTS)
    running = tracking.read(tmp_path / "curves")
    accelerator.end_training()
    expected = pd.DataFrame(POINTS).astype(dict.fromkeys(tracking.CURVE, float))
    for found in (running, tracking.read(tmp_path / "curves")):
        pd.testing.assert_frame_equal(found, expected)


def test_a_resumed_run_has_each_point_once(tmp_path):
    write(tmp_path / "curves", POINTS)  # killed: its checkpoint knows of one point only
    write(tmp_path / "curves", POINTS[1:], before=POINTS[:1]).end_training()
    assert tracking.read(tmp_path / "curves")["step"].tolist() == [10, 20]


def test_nothing_but_the_folder_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "curves", POINTS).end_training()
    assert {path.name for path in tmp_path.iterdir()} == {"curves"}
    write(None, POINTS).end_training()
    assert {path.name for path in tmp_path.iterdir()} == {"curves"}


def test_a_repository_without_a_commit_is_no_obstacle(tmp_path, monkeypatch):
    subprocess.run(["git", "init", "-q", "."], cwd=tmp_path, check=True)
    subprocess.run([sys.executable, "-m", "dvc", "init", "-q"], cwd=tmp_path, check=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))  # as in a stage of the pipeline
    write(tmp_path / "curves", POINTS).end_training()
    assert tracking.read(tmp_path / "curves")["step"].tolist() == [10, 20]


def test_dvc_plots_reads_the_files(tmp_path):
    write(tmp_path / "curves", POINTS).end_training()
    dvc = [sys.executable, "-m", "dvc"]
    subprocess.run([*dvc, "init", "--no-scm", "-q"], cwd=tmp_path, check=True)
    shown = subprocess.run([*dvc, "plots", "show", "--json", "curves/plots/metrics/loss.tsv"], cwd=tmp_path, check=True,
                           capture_output=True, text=True).stdout
    assert "1.25" in shown and "1.5" in shown


def test_missing_and_damaged_curves_are_named(tmp_path):
    with pytest.raises(UserError, match="holds no training curves; train the run again"):
        tracking.read(tmp_path)
    path = tmp_path / "plots/metrics/loss.tsv"
    path.parent.mkdir(parents=True)
    path.write_text("")
    with pytest.raises(UserError, match="loss.tsv cannot be read"):
        tracking.read(tmp_path)
