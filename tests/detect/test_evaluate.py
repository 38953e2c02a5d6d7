"""Whole pictures in conditions, and what the verdicts are worth."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

from anl.detect import evaluate
from anl.io import UserError
from tests.conftest import photograph


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
    scores = pd.concat([pd.DataFrame({"set": name, "label": label, "condition": "files", "logit": rng.normal(mean, 1, 200)})
                        for name, label, mean in (("cats", 0, -1), ("dogs", 0, -1), ("new", 1, 1))])
    scores["verdict"] = np.where(scores["logit"] > 1, "generated", np.where(scores["logit"] < 0, "real", "undecided"))
    table = evaluate.results(scores, ["cats", "dogs"], replicates=200).set_index("set")
    assert table.loc["new", "auroc"] == pytest.approx(roc_auc_score(scores["label"], scores["logit"]))
    assert table.loc["new", "low"] < table.loc["new", "auroc"] < table.loc["new", "high"] and table.loc["cats", "auroc":"high"].isna().all()
    mine = scores[scores["set"] == "new"]["verdict"]
    assert table.loc["new", "accuracy"] == pytest.approx((mine == "generated").sum() / (mine != "undecided").sum())
    assert np.allclose(table[["generated", "undecided", "real"]].sum(axis=1), 1) and (table["n"] == 200).all()
