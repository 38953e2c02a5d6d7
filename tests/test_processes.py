"""Two processes on one CPU against one: the same scores, targets and trainings, and one line when one of them fails."""

import os
import pickle
import shutil
import subprocess
import sys
import textwrap

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from anl import families_study, launch, processes, robustness, runs, sync_norm, targets
from anl.errors import UserError
from tests import together
from tests.conftest import ROOT

torch.set_num_threads(1)


def two(place, *words):
    """Run `together.py` in two processes as `anl --processes 2` does; returns (exit status, what stands on stderr)."""
    program = textwrap.dedent(f"""
        import sys
        from anl import launch
        from anl.errors import UserError
        try:
            sys.exit(launch.start(sys.argv[1:], 2, program=({str(ROOT / "tests" / "together.py")!r},)))
        except UserError as problem:
            print(f"anl test: {{problem}}", file=sys.stderr)
            sys.exit(2)
    """)
    done = subprocess.run([sys.executable, "-c", program, str(place), *words], cwd=place, capture_output=True, text=True,
                          check=False, env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"})
    return done.returncode, done.stderr


def made(place, act, index=0, count=2):
    return pickle.loads((place / f"made-{act}-{index}-of-{count}.pickle").read_bytes())


@pytest.fixture(scope="module")
def place(world, tmp_path_factory):
    """A copy of the tiny world in which one process, this one, has trained and scored a run."""
    root = tmp_path_factory.mktemp("together") / "world"
    shutil.copytree(world.root, root)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        profile = together.settings(root)
        runs.train_run(together.spec_of(profile), profile, "adhoc")
    return root


@pytest.fixture(scope="module")
def both(place):
    """What two processes made of everything, by process; the scores this one makes are put aside first."""
    status, said = two(place, "all")
    assert status == 0, said[-3000:]
    return made(place, "all", 0), made(place, "all", 1)


def close(found, wanted, limit):
    assert found.keys() == wanted.keys()
    assert max(float((found[key].double() - wanted[key].double()).abs().max()) for key in wanted) <= limit


def test_batches_are_shared_in_order_and_none_is_lost(both):
    for found in (made["shares"] for made in both):
        assert [[row for batch in found[count] for row in batch] for count in (0, 1, 4, 7)] == [list(range(count)) for count in (0, 1, 4, 7)]
        assert found["sum"] == [3.0, 1.0] and found["any"] == (True, False)
        assert found["lost"] == "2 processes made 2 results of 3 images; run the command again"
    assert torch.cat(both[0]["shares"]["main alone"]).tolist() == [0, 1, 2, 3, 4] and both[1]["shares"]["main alone"] is None


def test_batch_norm_of_uneven_shares_is_that_of_the_whole_batch(both):
    torch.manual_seed(0)
    x = torch.randn(8, 3, 4, 4, dtype=torch.float64).requires_grad_()
    plain = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).double()
    plain(x).pow(3).sum().backward()
    found = both[1]["normalised"]
    assert found["type"] == "SyncBatchNorm"
    torch.testing.assert_close(torch.cat(found["x"]), x.grad, rtol=0, atol=1e-12)
    for shares, parameter in zip(found["parameters"], plain.parameters(), strict=True):
        torch.testing.assert_close(sum(shares), parameter.grad, rtol=0, atol=1e-12)
    close(found["state"], plain.state_dict(), 1e-12)


def test_scores_of_one_model_are_the_same_numbers_for_every_image(place, both, monkeypatch):
    monkeypatch.chdir(place)
    profile = together.settings(place)
    run = runs.run_folder(profile, together.spec_of(profile), "adhoc")
    alone = pd.read_parquet(run / "predictions.parquet")
    for found in both:
        pd.testing.assert_frame_equal(found["scores"], alone)
    together_made = {path.relative_to(place): path.read_bytes() for path in place.glob("runs/tiny/*/*/*.parquet")
                     if path.parts[-3] in ("robustness", "families")}
    for folder in ("robustness", "families"):
        shutil.rmtree(place / "runs" / "tiny" / folder)
    robustness.score_run(run, profile)
    families_study.score_run(run, profile)
    assert len(together_made) > 3
    assert all((place / path).read_bytes() == data for path, data in together_made.items())


@pytest.mark.parametrize("kind", ["prior", "shuffled"])
def test_targets_are_the_same_bytes(place, both, kind, monkeypatch):
    monkeypatch.chdir(place)
    profile = together.settings(place)
    path = targets.compute(profile, 10, kind, folder="alone")
    assert path.read_bytes() == targets.target_path(profile, 10, kind, folder="together").read_bytes()


def test_a_run_of_two_processes_follows_that_of_one(place, both):
    alone, shared = (place / "runs" / "tiny" / group / "prior-t10-affinity-s0" for group in ("adhoc", "main"))
    tables = [pd.read_parquet(folder / "predictions.parquet") for folder in (alone, shared)]
    pd.testing.assert_frame_equal(tables[0].drop(columns="logit"), tables[1].drop(columns="logit"))
    assert np.abs(tables[0]["logit"] - tables[1]["logit"]).max() < 1e-5
    assert not list(place.glob("runs/tiny/main/.*")) and (shared / "curves").is_dir()


def test_four_steps_give_the_same_losses_in_full_precision(place, both, tmp_path, monkeypatch):
    monkeypatch.chdir(place)
    _, alone = together.fitted(place, tmp_path)
    close(both[1]["whole"][0], both[0]["whole"][0], 0)
    for name in ("loss", "classification_loss", "noise_loss"):
        gaps = [abs(one[name] - two[name]) for one, two in zip(alone, both[0]["whole"][1], strict=True)]
        assert max(gaps) < 1e-5, (name, gaps)


def test_what_remains_is_rounding(place, both):
    """In double precision every weight agrees after twelve steps, and where batches cannot be shared evenly."""
    done = subprocess.run([sys.executable, str(ROOT / "tests" / "together.py"), str(place), "double"], cwd=place, check=False,
                          capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr[-3000:]
    for name, (weights, curve) in made(place, "double", 0, 1).items():
        close(both[0]["double"][name][0], weights, 1e-8)
        close(both[1]["double"][name][0], both[0]["double"][name][0], 0)
        assert max(abs(one["loss"] - two["loss"]) for one, two in zip(curve, both[0]["double"][name][1], strict=True)) < 1e-10


def test_a_killed_training_resumes_to_the_very_weights_under_as_many_processes_alone(place, both, monkeypatch):
    status, said = two(place, "killed", "2")
    assert status == 2 and "anl test: process 0 of 2 was killed (SIGKILL" in said.splitlines()[-1]
    monkeypatch.chdir(place)
    with pytest.raises(UserError, match=r"left by a training in 2 processes, and this is one in 1; run it again with --proc"):
        together.fitted(place, "resumed")
    status, said = two(place, "resume")
    assert status == 0, said[-3000:]
    close(made(place, "resume")[0], both[0]["whole"][0], 0)
    assert not list((place / "resumed").glob("*.pt"))


def test_a_loss_that_is_not_finite_names_the_process_and_the_samples_of_all(place):
    status, said = two(place, "broken")
    lines = [line for line in said.splitlines() if line.startswith("anl test:")]
    assert status == 2 and len(lines) == 1, said[-3000:]
    assert "the loss is nan at step 1 in process 1 of 2 (batch of real/" in lines[0] and "Traceback" not in said
    (listed,) = (place / "stopped").glob("*-stopped.txt")
    names = listed.read_text().split()
    assert len(names) == len(set(names)) == 8


@pytest.mark.parametrize("how, line", [
    ("refused", "anl test: process 1 of 2: the disk is on fire; put it out"),
    ("killed", ("anl test: process 1 of 2 was killed (SIGKILL, perhaps for want of memory), and the others were stopped; run "
                "the same command again to go on from here"))])
def test_one_process_that_fails_stops_all_with_one_line(place, how, line):
    status, said = two(place, "die", how)
    assert status == 2 and said.splitlines() == [line]
    assert not list(place.glob("made-die*"))


def test_a_process_alone_needs_no_others():
    assert processes.here() == processes.Here(0, 1) and processes.here().main
    assert processes.gathered(3) == [3] and processes.agreed(lambda: 4) == 4


def test_a_batch_norm_that_cannot_be_shared_is_refused_by_name():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    with pytest.raises(UserError, match="the detector's 1 is a BatchNorm1d, which several processes on CPUs cannot share"):
        sync_norm.synchronised(model, "cpu")


def test_who_asks_for_how_many_processes(world, monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert launch.wanted("train", None, lambda: world.params) == 1
    assert launch.wanted("train", 3, pytest.fail) == 3
    assert launch.wanted("book", None, pytest.fail) == 1
    with pytest.raises(UserError, match="this command runs in one process; those that share their work are train, target"):
        launch.wanted("book", 2, pytest.fail)
    with pytest.raises(UserError, match="--processes 0: at least 1"):
        launch.wanted("train", 0, pytest.fail)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert launch.wanted("train", 3, pytest.fail) == 1
