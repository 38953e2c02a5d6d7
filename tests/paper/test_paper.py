"""Every stage of profiles/paper.yaml, end to end, on stand-ins with the data sets' own trees and names."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import timm
import torch
import yaml

from anl import cli, params, verify_stages
from anl.errors import UserError
from anl.paper import images, protocol, scoring, settings, teacher, training
from tests.conftest import ROOT, photograph
from tests.paper.conftest import EACH


@pytest.fixture(scope="module")
def ran(stand_in):
    """All of it through the command line, on 3 images of each class, generator and split."""
    path = stand_in[1]
    assert cli.main(["--params", str(path), "paper", "--limit", "3"]) == 0
    return settings.load(path, 3)


def test_the_committed_profile_is_valid_and_asks_for_what_the_paper_does():
    full = settings.load(ROOT / "profiles/paper.yaml")
    assert full.crop == 256 and full.training.precision == "bf16" and len(full.evaluation.views) == 3
    assert full.protocols["genimage"].generators == ["sd14"] and set(full.tested) == {"genimage", "forensynths", "diffusionforensics"}
    assert all(backbone.pretrained for backbone in full.backbones.values())


def test_every_run_is_trained_and_scored_on_every_set_and_view(ran):
    for run in ran.runs():
        folder = ran.run(*run)
        about = json.loads((folder / "run.json").read_text())
        assert (about["scale"] is None) == (run[2] == "plain")
        for name in ran.tested:
            scores = pd.read_parquet(folder / f"{name}.parquet")
            assert set(scores["view"]) == {"raw", "matched", "jpeg96"} and np.isfinite(scores["logit"]).all()
            assert scores.groupby("view")["sample_id"].nunique().nunique() == 1


def test_the_table_has_a_row_a_generator_and_says_what_crosses_data_sets(ran):
    rows = pd.read_csv(f"{ran.folders.results}/genimage.csv")
    mine = rows[(rows["set"] == "genimage") & (rows["method"] == "anl") & (rows["view"] == "matched")]
    assert set(mine["generator"]) == {"adm", "biggan", "glide", "midjourney", "sd14", "sd15", "vqdm", "wukong"}
    assert list(mine.loc[mine["seen"], "generator"]) == ["sd14"]
    assert (mine["real"] == 3).all() and (mine["generated"] == 3).all()  # each generator against its own photographs
    assert set(rows.loc[rows["cross"], "set"]) == {"forensynths", "diffusionforensics"}
    assert not pd.read_csv(f"{ran.folders.results}/forensynths.csv").query("set == 'forensynths'")["cross"].any()
    assert {"progan", "deepfake", "stylegan"} <= set(rows.loc[rows["set"] == "forensynths", "generator"])


def test_a_set_that_was_fetched_in_place_is_used_where_it_lies(stand_in, tmp_path, monkeypatch):
    whole = yaml.safe_load(stand_in[1].read_text())
    there = f"{whole['folders']['data']}/forensynths"
    whole["folders"] |= {"data": str(tmp_path / "sources"), "manifests": str(tmp_path / "manifests")}
    (tmp_path / "p.yaml").write_text(yaml.safe_dump(whole, sort_keys=False))
    assert cli.main(["fetch", "forensynths", "--from", there, "--to", f"{tmp_path}/sources/forensynths", "--accept-licence"]) == 0
    assert cli.main(["--params", str(tmp_path / "p.yaml"), "paper", "index", "--set", "forensynths", "--limit", "2"]) == 0
    rows = protocol.test_rows(settings.load(tmp_path / "p.yaml", 2), "forensynths")
    assert len(rows) == 5 * 2 * 2 and all(Path(file).is_file() for file in rows["file"])


def test_training_learns_from_the_protocols_generators_alone_and_never_from_a_test_image(ran):
    for name, wanted in ran.protocols.items():
        train, val = protocol.training_rows(ran, name)
        for rows in (train, val):
            assert set(rows.loc[rows["label"] == 1, "generator"]) == set(wanted.generators)
            half = len(rows) // 2
            assert (rows["label"].to_numpy() == np.repeat([0, 1], half)).all()
            assert not wanted.source or set(rows["source_real"]) == {wanted.source}
        tested = set(protocol.test_rows(ran, wanted.train.removesuffix("-train"))["sha256"])
        assert not tested & {*train["sha256"], *val["sha256"]} and not set(train["sha256"]) & set(val["sha256"])


def test_photographs_are_those_published_with_the_generator(ran):
    train, _ = protocol.training_rows(ran, "genimage")
    assert train.loc[train["label"] == 0, "path"].str.startswith("stable_diffusion_v_1_4/").all()


def test_the_limit_takes_a_handful_into_folders_of_its_own(ran, stand_in):
    assert ran.folders.runs.endswith("-limit3") and ran.training.steps == 2 and ran.seeds == [0]
    rows = protocol.test_rows(ran, "genimage")
    assert rows.groupby(["generator", "source_real", "label"]).size().max() == 3 < EACH
    with pytest.raises(UserError, match="--limit 1: at least 2 images"):
        settings.load(stand_in[1], 1)


def test_a_batch_is_a_function_of_seed_and_number_and_processes_share_it(ran):
    rows, _ = protocol.training_rows(ran, "genimage")
    whole = images.TrainingBatches(rows, 32, ran.training, 0)[1]
    again = images.TrainingBatches(rows, 32, ran.training, 0)[1]
    assert (whole["x"] == again["x"]).all() and whole["x"].shape == (4, 32, 32, 3)
    shares = [images.TrainingBatches(rows, 32, ran.training, 0, rank, 2)[1] for rank in range(2)]
    assert sorted(whole["files"]) == sorted(shares[0]["files"] + shares[1]["files"])
    assert (shares[1]["x"][0] == whole["x"][1]).all() and (whole["label"] == [0, 0, 1, 1]).all()


def test_workers_decode_the_same_batches(ran):
    rows, _ = protocol.training_rows(ran, "genimage")
    batches = images.TrainingBatches(rows, 32, ran.training, 0)
    for alone, spread in zip(images.training_loader(batches, range(2), 0), images.training_loader(batches, range(2), 2), strict=True):
        assert torch.equal(alone["x"], spread["x"]) and alone["files"] == spread["files"]
    assert len(list(images.training_loader(batches, range(1, len(batches)), 0))) == 1  # resumed at the second


def test_a_crop_is_cut_or_mirrored_and_never_resized():
    pixels = photograph(0, 50, 70)
    assert (images.crop(pixels, 32, (0, 1)) == pixels[:32, 38:]).all()
    small = images.crop(pixels[:20, :70], 32)
    assert small.shape == (32, 32, 3) and (small[6:26] == pixels[:20, 19:51]).all() and (small[5] == small[6]).all()
    assert images.crop(pixels[:3, :4], 32).shape == (32, 32, 3)


def test_the_teacher_gives_unit_noise_for_untouched_images_alone(ran):
    given = teacher.Teacher(ran, "genimage", "cpu")
    rows, _ = protocol.training_rows(ran, "genimage")
    x = next(iter(images.training_loader(images.TrainingBatches(rows, 32, ran.training, 0), range(1), 0)))["x"]
    untouched = torch.tensor([True, False, True, False])
    target = given.target(x, untouched)
    assert target.shape == (4, given.channels, 32 // given.cell, 32 // given.cell) and given.cell == 2
    assert not target[~untouched].any() and 0.2 < float(target[untouched].std()) < 5
    assert not given.target(x, torch.zeros(4, dtype=torch.bool)).any()  # a batch, or a process's share, of processed images


def test_a_killed_training_resumes_into_the_same_weights(ran, tmp_path, monkeypatch):
    run = ("genimage", "tiny", "anl", 0)
    wanted = (ran.run(*run) / training.WEIGHTS).read_bytes()
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0)
    real, seen = training.anl_loss, []

    def dies(*words, **names):
        seen.append(1)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return real(*words, **names)

    monkeypatch.setattr(training, "anl_loss", dies)
    with pytest.raises(KeyboardInterrupt):
        training.train(ran, *run, cache=tmp_path)
    assert list(tmp_path.glob("*.pt"))
    monkeypatch.setattr(training, "anl_loss", real)
    training.train(ran, *run, cache=tmp_path)
    assert (ran.run(*run) / training.WEIGHTS).read_bytes() == wanted and not list(tmp_path.glob("*.pt"))


def test_scores_are_kept_until_something_that_decides_them_changes(ran, monkeypatch):
    import dataclasses

    run, asked = ran.runs()[0], []
    monkeypatch.setattr(scoring, "score", lambda detector, rows, *_: asked.append(len(rows)) or np.zeros(len(rows)))
    before = {path: path.read_bytes() for path in scoring.score_run(ran, *run, "cpu")}
    assert not asked
    fewer = dataclasses.replace(ran, evaluation=dataclasses.replace(ran.evaluation, views=["raw", "jpeg96"]))
    scoring.score_run(fewer, *run, "cpu")
    assert len(asked) == 2 * len(ran.tested)  # all but the validation images, which have one view
    for path, data in before.items():
        path.write_bytes(data)


def test_scores_do_not_depend_on_the_batch(ran):
    import dataclasses

    from anl import detector

    model = detector.load(ran.run("genimage", "tiny", "anl", 0) / training.WEIGHTS)
    rows = protocol.test_rows(ran, "genimage").head(6)
    one = dataclasses.replace(ran, evaluation=dataclasses.replace(ran.evaluation, batch_size=1))
    assert np.allclose(scoring.score(model, rows, ran, "genimage", "raw", "cpu"),
                       scoring.score(model, rows, one, "genimage", "raw", "cpu"), atol=1e-5)


@pytest.mark.parametrize("key, value, words", [
    ("sets", {"genimagee": {"assumed": 1}}, "sets.genimagee"), ("tested", ["nothing"], "'tested' cannot work"),
    ("methods", ["dire"], "any of plain, anl"), ("crop", 100, "multiple of 16"), ("depth", 3, "unknown key 'depth'")])
def test_values_that_cannot_work_are_named(stand_in, tmp_path, key, value, words):
    whole = yaml.safe_load(stand_in[1].read_text())
    (tmp_path / "p.yaml").write_text(yaml.safe_dump({**whole, key: value}))
    with pytest.raises(UserError, match=words):
        settings.load(tmp_path / "p.yaml")


def test_what_is_missing_is_one_line(stand_in, tmp_path, capsys):
    path = stand_in[1]

    def refused(*words, profile=path):
        assert cli.main(["--params", str(profile), "paper", *words]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        return error

    assert "--set wildrf: choose one of" in refused("index", "--set", "wildrf")
    assert "no run of paper has dire; protocols: genimage" in refused("train", "--method", "dire")
    assert "is missing; make it with" in refused("table", "--limit", "4")
    whole = yaml.safe_load(path.read_text())
    whole["folders"]["data"] = str(tmp_path / "none")
    (tmp_path / "p.yaml").write_text(yaml.safe_dump(whole, sort_keys=False))
    assert "get the data set with `anl fetch genimage`" in refused("index", profile=tmp_path / "p.yaml")


def test_pretrained_weights_that_cannot_be_had_are_one_line(ran, monkeypatch):
    import dataclasses

    backbones = {"resnet50": settings.Backbone("resnet50", 32, True)}
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def offline(*words, **names):
        if names.get("pretrained"):
            raise OSError("offline")
        return real(*words, **names)

    real = timm.create_model
    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(UserError, match="pretrained weights of resnet50 cannot be had.*backbones.resnet50.pretrained"):
        training.build(dataclasses.replace(ran, backbones=backbones), "resnet50", "plain")


@pytest.mark.parametrize("model, stride, first", [("test_resnet", 8, "conv1.0.weight"),
                                                  ("test_vit", 16, "patch_embed.proj.weight")])
def test_pretrained_weights_of_three_channels_are_repeated_over_the_stems(ran, monkeypatch, tmp_path, model, stride, first):
    import dataclasses

    make = timm.create_model
    published = make(model, in_chans=3)
    torch.save(published.state_dict(), tmp_path / "weights.pth")

    def stored(name, pretrained=False, **names):
        return make(name, pretrained=pretrained, **names, **({"pretrained_cfg_overlay": {"file": str(tmp_path / "weights.pth")}}
                                                             if pretrained else {}))

    monkeypatch.setattr(timm, "create_model", stored)
    detector = training.build(dataclasses.replace(ran, backbones={"tiny": settings.Backbone(model, stride, True)}), "tiny", "anl")
    weights = {key.removeprefix("model."): value for key, value in detector.backbone.state_dict().items()}
    wanted = published.state_dict()[first]
    width = ran.detector.stem_width
    for channel in range(width):  # R, G, B, R, ... scaled so that the sum over channels stays
        torch.testing.assert_close(weights[first][:, channel], wanted[:, channel % 3] * 3 / width)
    same = [key for key in weights if key != first and weights[key].shape == published.state_dict()[key].shape]
    assert len(same) > 10 and all(torch.equal(weights[key], published.state_dict()[key]) for key in same)
    bare = dataclasses.replace(ran.detector, branch="shallow")
    detector = training.build(dataclasses.replace(ran, backbones={"tiny": settings.Backbone(model, stride, True)}, detector=bare),
                              "tiny", "plain")
    weights = {key.removeprefix("model."): value for key, value in detector.backbone.state_dict().items()}
    assert detector.stem is None and torch.equal(weights[first], wanted)  # the backbone reads the image itself


def test_the_pipelines_stages_make_every_run_and_what_they_need(tmp_path):
    full = settings.load(ROOT / "profiles/paper.yaml")
    stages = {address.partition(":")[2]: stage for address, stage in verify_stages.read(ROOT).items()
              if address.startswith("paper/dvc.yaml:")}
    made = {out for stage in stages.values() for out in stage.outs}
    for run in full.runs():
        folder = full.run(*run)
        wanted = {f"{folder}/{training.WEIGHTS}", *(f"{folder}/{name}.parquet" for name in ("validation", *full.tested))}
        assert wanted <= made
    assert {str(full.manifest(name)) for name in full.sets} <= made
    for name, stage in stages.items():
        for dep in stage.deps:
            known = dep in made or any(out.startswith(f"{dep}/") for out in made) or dep.startswith(full.folders.data)
            assert known or (ROOT / dep).is_file(), f"{name} needs {dep}, which nothing makes"
    with pytest.raises(UserError, match="run `dvc repro paper/dvc.yaml`, or one stage of it with `anl paper STAGE`"):
        params.activate("paper", ROOT / "profiles", tmp_path / "params.yaml")
