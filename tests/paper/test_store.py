"""The paper's images from Arrow files: mapped or streamed, they are the published ones, each once."""

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from anl import detector, processes
from anl.errors import UserError
from anl.paper import images, protocol, scoring, settings, store, training
from anl.paper import settings as settings_module
from tests.paper.conftest import EACH


@pytest.fixture(scope="module")
def packed(stand_in, tmp_path_factory):
    """Settings that keep GenImage's stand-in in Arrow files of four images each, with batches of two."""
    found = settings.load(stand_in[1])
    root = tmp_path_factory.mktemp("store")
    found = dataclasses.replace(
        found, storage="arrow", folders=dataclasses.replace(found.folders, manifests=str(root)),
        evaluation=dataclasses.replace(found.evaluation, batch_size=2), tested=["genimage"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "SHARD_BATCHES", 2)
        protocol.index(found, "genimage")
        yield found


def files(found):
    return dataclasses.replace(found, storage="files")


def test_a_training_sees_the_same_batches(packed):
    rows, _ = protocol.training_rows(packed, "genimage")
    config = dataclasses.replace(packed.training, batch_size=4, steps=2)
    pairs = [list(images.training_loader(images.TrainingBatches(rows, 32, config, 0, pictures=store.pictures(
        kind, "genimage", rows)), range(2), workers)) for kind, workers in ((files(packed), 0), (packed, 0), (packed, 2))]
    for published, mapped, by_workers in zip(*pairs, strict=True):
        assert torch.equal(published["x"], mapped["x"]) and torch.equal(published["x"], by_workers["x"])
        assert published["files"] == mapped["files"]


@pytest.mark.parametrize("workers", [0, 2])
def test_scores_of_a_stream_are_those_of_the_files(packed, workers):
    torch.manual_seed(0)
    model = detector.Detector("test_resnet", 8, 8, 4, 32, noise=False, attention="none").eval()
    rows = protocol.test_rows(packed, "genimage")
    assert len(rows) == 8 * 2 * EACH and len(store.shards(packed, "genimage", "test")) == len(rows) // 4
    spread = dataclasses.replace(packed, training=dataclasses.replace(packed.training, workers=workers))
    drawn = scoring.drawn_from_reals(rows, 0)
    for view in ("raw", "matched"):
        assert np.array_equal(scoring.score(model, rows, spread, "genimage", view, "cpu", drawn),
                              scoring.score(model, rows, files(packed), "genimage", view, "cpu", drawn))


def test_processes_stream_other_files_and_whole_batches(packed, monkeypatch):
    treat = images.TestImages((), 32).treated
    shares = []
    for rank in range(3):
        monkeypatch.setattr(processes, "here", lambda rank=rank: processes.Here(rank, 3))
        monkeypatch.setattr(processes, "agreed", lambda decide: decide())
        shares.append([(rows, x[:, 0, 0, 0].numpy()) for rows, x in store.stream(packed, "genimage", treat)])
    count = len(protocol.test_rows(packed, "genimage"))
    assert all(len(rows) == 2 and rows[0] % 2 == 0 for share in shares for rows, _ in share)
    assert np.isfinite(store.once(shares, count)).all()
    for lost in (shares[1:], [*shares, shares[0][:1]]):
        with pytest.raises(UserError, match=f"scores of {count} images; run the command again"):
            store.once(lost, count)


def test_files_are_written_once_and_again_for_other_images(packed, monkeypatch):
    before = {path: Path(path).stat().st_mtime_ns for path in store.shards(packed, "genimage", "test")}
    assert {path: Path(path).stat().st_mtime_ns for path in store.shards(packed, "genimage", "test")} == before
    fewer = dataclasses.replace(packed, limit=2)
    assert len(store.shards(fewer, "genimage", "test")) == 8 * 2 * 2 // 4
    assert Path(next(iter(before))).stat().st_mtime_ns != before[next(iter(before))]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_image_is_named_by_its_own_path(packed, monkeypatch, workers):
    def damaged(data):
        raise store.Refused("cut short")

    monkeypatch.setattr(store, "decode_bytes", damaged)
    spread = dataclasses.replace(packed, training=dataclasses.replace(packed.training, workers=workers))
    with pytest.raises(UserError, match=r"^\S+\.(png|jpg) is refused: cut short; replace"):
        list(store.stream(spread, "genimage", images.TestImages((), 32).treated))


def test_a_run_from_arrow_files_is_the_run_from_the_published_ones(packed, tmp_path):
    made = []
    for kind in (files(packed), packed):
        mine = dataclasses.replace(kind, folders=dataclasses.replace(kind.folders, runs=str(tmp_path / kind.storage)),
                                   training=dataclasses.replace(kind.training, steps=2, batch_size=4))
        folder = training.train(mine, "genimage", "tiny", "plain", 0, cache=tmp_path / "cache")
        scoring.score_run(mine, "genimage", "tiny", "plain", 0, "cpu")
        made.append((folder / training.WEIGHTS, folder / "genimage.parquet", folder / "validation.parquet"))
    assert made[0][0].read_bytes() == made[1][0].read_bytes()
    for one, other in zip(*(paths[1:] for paths in made), strict=True):
        pd.testing.assert_frame_equal(pd.read_parquet(one), pd.read_parquet(other), check_exact=True)


def test_a_storage_that_does_not_exist_is_refused(packed):
    with pytest.raises(UserError, match="'storage' cannot work: choose one of files, arrow"):
        settings_module.check(dataclasses.replace(packed, storage="tape"), "paper.yaml")
