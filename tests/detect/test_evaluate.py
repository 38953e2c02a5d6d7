"""Whole pictures in conditions, and what the verdicts are worth."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

from anl.data.indexing import index
from anl.detect import evaluate
from anl.evaluation.compare import compare
from anl.io import UserError
from tests.conftest import photograph
from tests.data.trees import encoded, genimage, write
from tests.project import make_project


def test_every_picture_is_scored_in_every_condition(detector, tmp_path):
    for number in range(2):
        Image.fromarray(photograph(number, 70, 90)).save(tmp_path / f"{number}.png")
    pictures = pd.DataFrame({"path": [str(tmp_path / f"{number}.png") for number in range(2)], "set": "mine", "label": 0})
    scores = evaluate.score_pictures(detector, pictures)
    assert list(scores["condition"]) == list(evaluate.CONDITIONS) * 2 and list(scores["set"]) == ["mine"] * 8
    assert scores["logit"].iloc[4] == detector.score(pictures["path"].iloc[1]).logit
    half = np.asarray(Image.fromarray(photograph(1, 70, 90)).resize((45, 35), Image.Resampling.BICUBIC))
    assert scores["logit"].iloc[7] == pytest.approx(detector.score(half).logit, abs=1e-6)
    assert (scores["verdict"] == [detector.card.verdict(logit) for logit in scores["logit"]]).all()
    with pytest.raises(UserError, match="unknown processing 'sepia'"):
        evaluate.score_pictures(detector, pictures, ["sepia"])


def test_results_are_those_of_scikit_learn_and_of_counting():
    rng = np.random.default_rng(0)
    scores = pd.concat([pd.DataFrame({"source": name, "set": name, "label": label, "condition": "files", "logit": rng.normal(mean, 1, 200)})
                        for name, label, mean in (("cats", 0, -1), ("dogs", 0, -1), ("new", 1, 1))])
    scores["verdict"] = np.where(scores["logit"] > 1, "generated", np.where(scores["logit"] < 0, "real", "undecided"))
    table = evaluate.results(scores, replicates=200).set_index("set")
    assert table.loc["new", "auroc"] == pytest.approx(roc_auc_score(scores["label"], scores["logit"]))
    assert table.loc["new", "low"] < table.loc["new", "auroc"] < table.loc["new", "high"] and table.loc["cats", "auroc":"high"].isna().all()
    mine = scores[scores["set"] == "new"]["verdict"]
    assert table.loc["new", "accuracy"] == pytest.approx((mine == "generated").sum() / (mine != "undecided").sum())
    assert np.allclose(table[["generated", "undecided", "real"]].sum(axis=1), 1) and (table["n"] == 200).all()


def test_pictures_are_compared_with_photographs_of_their_own_source():
    rng = np.random.default_rng(1)
    parts = [("mine", "mine", 0, 0.0), ("mine", "mine/gan", 1, 0.5), ("yours", "yours", 0, 5.0), ("new", "new/flux", 1, 3.0)]
    scores = pd.concat([pd.DataFrame({"source": source, "set": name, "label": label, "condition": "files", "verdict": "real",
                                      "logit": rng.normal(mean, 1, 100)}) for source, name, label, mean in parts])
    table = evaluate.results(scores, replicates=50).set_index("set")
    own = scores[scores["source"] == "mine"]
    others = scores[(scores["label"] == 0) | (scores["source"] == "new")]
    assert table.loc["mine/gan", "auroc"] == pytest.approx(roc_auc_score(own["label"], own["logit"]))
    assert table.loc["new/flux", "auroc"] == pytest.approx(roc_auc_score(others["label"], others["logit"]))


def test_test_images_are_chosen_of_a_manifest_with_splits_and_all_of_one_without(tmp_path):
    index(genimage(tmp_path / "genimage"), tmp_path / "genimage.parquet")
    write(tmp_path / "folder", {f"{name}/{number}.png": encoded(number + 10 * len(name)) for number in range(2)
                                for name in ("real", "dalle")})
    index(tmp_path / "folder", tmp_path / "folder.parquet")
    chosen = evaluate.choose_pictures({"a": tmp_path / "genimage.parquet", "b": tmp_path / "folder.parquet"}, 2, 0)
    assert chosen["set"].value_counts().to_dict() == {"a": 2, "a/adm": 2, "a/midjourney": 2, "b": 2, "b/dalle": 2}
    assert all("/val/" in path for path in chosen["path"][chosen["source"] == "a"])  # the test images of this layout
    assert list(chosen["label"]) == [0] * 4 + [1] * 6 and all(Path(path).is_file() for path in chosen["path"])
    assert chosen.equals(evaluate.choose_pictures({"a": tmp_path / "genimage.parquet", "b": tmp_path / "folder.parquet"}, 2, 0))
    assert evaluate.choose_pictures({}, 2, 0).empty
    trained = genimage(tmp_path / "trained")
    for folder in trained.glob("*/val"):
        shutil.rmtree(folder)
    index(trained, tmp_path / "trained.parquet")
    with pytest.raises(UserError, match="trained.parquet has no test images"):
        evaluate.choose_pictures({"a": tmp_path / "trained.parquet"}, 2, 0)
    with pytest.raises(UserError, match="none.parquet is missing"):
        evaluate.choose_pictures({"a": tmp_path / "none.parquet"}, 2, 0)


def test_runs_are_compared_on_pictures(tmp_path):
    config = make_project(tmp_path, seeds=[0, 1], experiments={"main": {"variants": {"plain": {"method.target": "none"}, "anl": {}}}})
    for number in range(4):
        Image.fromarray(photograph(number, 40, 50)).save(tmp_path / f"{number}.png")
    pictures = pd.DataFrame({"path": [str(tmp_path / f"{number}.png") for number in range(4)], "label": [0, 0, 1, 1],
                             "set": ["mine", "mine", "new/a", "new/b"]})
    scores = evaluate.score_with_runs(config, "main", pictures, ("files", "jpeg_90"))
    assert len(scores) == 2 * 2 * 4 * 2 and set(scores["generator"]) == {"real", "new/a", "new/b"}
    table = compare(scores, "plain", metrics=("auroc",), seen=config.benchmark.seen, replicates=20).set_index(["variant", "generator", "view"])
    for variant in ("plain", "anl"):
        own = scores[(scores["variant"] == variant) & (scores["view"] == "jpeg_90") & (scores["generator"] != "new/a")]
        expected = own.groupby("seed").apply(lambda part: roc_auc_score(part["label"], part["logit"])).mean()
        assert table.loc[(variant, "new/b", "jpeg_90"), "mean"] == pytest.approx(expected)
    assert table.loc[("anl", "unseen", "files"), "n"] == 4 and table.loc[("anl", "unseen", "files"), "seeds"] == 2
