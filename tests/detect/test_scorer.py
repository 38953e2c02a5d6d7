import doctest
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import anl
from anl.detect import card, scorer
from anl.detect.crops import tile
from anl.errors import UserError
from anl.files import sha256_of
from tests.conftest import ROOT


def test_every_kind_of_picture_gives_the_same_score(in_use, picture, tmp_path):
    Image.fromarray(picture).save(tmp_path / "a b.png")
    tensor = torch.from_numpy(picture).permute(2, 0, 1)
    kinds = [picture, Image.fromarray(picture), tensor, tensor.float() / 255, tmp_path / "a b.png", str(tmp_path / "a b.png")]
    scores = in_use.score(kinds)
    assert {score._replace(probability=0, logit=0) for score in scores} == {scores[0]._replace(probability=0, logit=0)}
    assert scores[0].crops == 15 and (scores[0].width, scores[0].height) == (130, 90)
    assert [score.logit for score in scores] == pytest.approx([in_use.score(picture).logit] * len(kinds), abs=1e-5)


def test_a_score_is_the_rule_over_the_crops_and_does_not_depend_on_the_batch(in_use, picture):
    other = picture[:40, :40]
    alone = in_use.score(picture)
    logit = in_use.logits(tile(picture, 32)[0]).mean()  # the card's rule
    assert in_use.card.rule in ("mean", "median", "max", "top_quarter")
    assert in_use.card.rule != "mean" or alone.logit == pytest.approx(logit, abs=1e-6)
    for batch_size in (1, 7, 500):
        scores = in_use.score([other, picture, other], batch_size)
        assert scores[1].logit == pytest.approx(alone.logit, abs=1e-5) and scores[0].logit == pytest.approx(scores[2].logit, abs=1e-5)
    assert alone.probability == in_use.card.probability(alone.logit) and alone.verdict == in_use.card.verdict(alone.logit)
    assert in_use.score([]) == []


@pytest.mark.parametrize("kind", ["RGBA", "LA", "I;16", "P", "L", "CMYK"])
def test_a_pil_image_scores_as_its_file_does(in_use, picture, tmp_path, kind):
    image = Image.fromarray(picture)
    if kind == "I;16":
        image = Image.fromarray(picture[..., 0].astype(np.uint16) * 200)
    elif kind in ("RGBA", "LA"):
        image.putalpha(Image.linear_gradient("L").resize(image.size))
        image = image.convert(kind)
    else:
        image = image.convert(kind)
    image.save(tmp_path / "a.tif")
    with Image.open(tmp_path / "a.tif") as opened:
        assert in_use.score(opened) == in_use.score(tmp_path / "a.tif")


@pytest.mark.parametrize("thing, message", [
    (Image.new("F", (8, 8)), "mode F is refused: floating-point"),
    (np.zeros((4, 4), np.uint8), "array of shape"), (np.zeros((4, 4, 3)), "float64 array"), (torch.zeros(4, 4), "no picture"),
    (torch.full((3, 4, 4), 2.0), "must lie in"), (torch.full((3, 4, 4), float("nan")), "must lie in"), (7, "int is no picture"),
    ("no such file.png", "is refused: cannot be opened"), (np.zeros((0, 4, 3), np.uint8), "array of shape")])
def test_what_is_no_picture_is_named(in_use, thing, message):
    with pytest.raises(UserError, match=message):
        in_use.score([thing])


def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


def test_missing_folder_weights_and_pickles(folder, tmp_path):
    with pytest.raises(UserError, match="no folder with a detector; get the default one with `make data`"):
        anl.load_detector(tmp_path / "none")
    broken = copy(folder, tmp_path)
    (broken / card.WEIGHTS).unlink()
    (broken / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(UserError, match="model.safetensors is missing; pytorch_model.bin may be a pickle"):
        anl.load_detector(broken)


def test_a_card_of_other_weights_is_refused(folder, tmp_path):
    broken = copy(folder, tmp_path)
    weights = load_file(broken / card.WEIGHTS)
    save_file({key: value + 1 if value.is_floating_point() else value for key, value in weights.items()}, broken / card.WEIGHTS)
    with pytest.raises(UserError, match="is not the file that .*card.json speaks of"):
        anl.load_detector(broken)


def test_a_card_of_another_size_than_the_weights_is_refused(folder, tmp_path):
    broken = copy(folder, tmp_path)
    value = json.loads((broken / card.CARD).read_text())
    (broken / card.CARD).write_text(json.dumps(value | {"size": 64}))
    with pytest.raises(UserError, match="looks at another size than the 64 pixels of .*card.json"):
        anl.load_detector(broken)


def resigned(folder, settings):
    """Rewrite the weights' settings, and the card to match."""
    path = folder / card.WEIGHTS
    save_file(load_file(path), path, metadata={} if settings is None else {"detector": json.dumps(settings)})
    value = json.loads((folder / card.CARD).read_text())
    (folder / card.CARD).write_text(json.dumps(value | {"weights_sha256": sha256_of(path)}))


@pytest.mark.parametrize("change, message", [
    ({"backbone": "hf-hub:someone/evil"}, "is no model of timm"), ({"backbone": ["a"]}, "is no model of timm"),
    ({"stem_width": 10**9}, "stem_width is 1000000000, over the limit"), ({"size": float("nan")}, "over the limit"),
    (None, "holds no detector"), ({"attention": "__import__"}, "holds no detector")])
def test_settings_from_elsewhere_neither_fetch_nor_allocate(folder, tmp_path, change, message):
    broken = copy(folder, tmp_path)
    settings = scorer.ImageDetector.load(folder).detector.settings
    resigned(broken, None if change is None else settings | change)
    with pytest.raises(UserError, match=message):
        anl.load_detector(broken)


def test_scores_that_are_not_finite_stop(folder, tmp_path, picture):
    broken = copy(folder, tmp_path)
    path = broken / card.WEIGHTS
    settings = scorer.ImageDetector.load(folder).detector.settings
    weights = load_file(path)
    weights["classifier.bias"] = torch.full((1,), float("nan"))
    save_file(weights, path, metadata={"detector": "x"})
    resigned(broken, settings)
    with pytest.raises(UserError, match="not finite; get its weights again"):
        anl.load_detector(broken).score(picture)


def test_saved_and_read_back_by_the_hubs_mixin(in_use, tmp_path, picture):
    in_use.save_pretrained(tmp_path / "saved")
    assert {card.CARD, card.WEIGHTS} <= {path.name for path in (tmp_path / "saved").iterdir()}
    again = scorer.ImageDetector.from_pretrained(tmp_path / "saved")
    assert again.score(picture).logit == pytest.approx(in_use.score(picture).logit, abs=1e-6)


def test_the_documented_example_runs(monkeypatch):
    monkeypatch.chdir(ROOT)
    assert doctest.testmod(scorer) == (0, 1)


def test_an_id_that_the_hub_does_not_give_is_one_line(monkeypatch):
    monkeypatch.setattr(scorer, "snapshot_download", lambda *a, **k: (_ for _ in ()).throw(OSError("offline\nmore")))
    with pytest.raises(UserError, match="hf://owner/name cannot be downloaded .*offline") as problem:
        anl.load_detector("hf://owner/name", revision="f" * 40)
    assert "\n" not in str(problem.value)


@pytest.mark.parametrize("revision", [None, "f" * 40])
def test_a_mistyped_folder_is_never_looked_up_on_the_hub(revision, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(scorer, "snapshot_download", lambda *a, **k: pytest.fail("the hub was asked"))
    with pytest.raises(UserError, match="models/detektor is no folder.*hf://models/detektor with revision=<40-hex commit>"):
        anl.load_detector("models/detektor", revision=revision)


@pytest.mark.parametrize("revision", [None, "main", "0123456", "F" * 40])
def test_a_detector_of_the_hub_needs_a_full_commit(revision, monkeypatch):
    monkeypatch.setattr(scorer, "snapshot_download", lambda *a, **k: pytest.fail("the hub was asked"))
    with pytest.raises(UserError, match="hf://owner/name needs revision=<40-hex commit>"):
        anl.load_detector("hf://owner/name", revision=revision)
    with pytest.raises(UserError, match="owner/name needs revision=<40-hex commit>"):
        scorer.ImageDetector.from_pretrained("owner/name", revision=revision)


def test_a_folder_has_no_revision(folder):
    with pytest.raises(UserError, match="is a folder and has no revision"):
        anl.load_detector(folder, revision="f" * 40)


def test_the_repositorys_detector_loads_and_its_card_is_of_a_committed_profile(picture):
    default = anl.load_detector(ROOT / scorer.DEFAULT)
    trained = default.card.whole["trained_on"]
    assert trained["profile"] == "small" and trained["spec"]["target"] == "prior" and default.card.size == 64
    assert not any("prior" in key for key in default.detector.state_dict())  # no diffusion model inside
    assert default.score(picture).crops == 6
