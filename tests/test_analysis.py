import dataclasses

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score, balanced_accuracy_score

from anl import analysis, predict


def scores(families, seen, gains, seed, photos=12, each=4):
    """A run's table: logits of reals around 0, of each family around its gain."""
    rng = np.random.default_rng(seed)
    rows = []
    for split, names in (("val", ["real", seen]), ("test", ["real", *families])):
        for name in names:
            for photo in range(photos):
                for patch in range(each):
                    logit = rng.normal() + (0 if name == "real" else gains[name])
                    rows.append((f"{name}/{photo}@{patch}", f"p{photo}", f"p{photo}", name, split,
                                 int(name != "real"), logit))
    table = pd.DataFrame(rows, columns=["sample_id", "photo", "cluster", "generator", "split", "label", "logit"])
    views = [table.assign(view="raw"), table[table["split"] == "test"].assign(view="matched")]
    return pd.concat(views, ignore_index=True)


@pytest.fixture
def study(world, tmp_path):
    """Params, and two methods of two seeds: `better` gains 1 on unseen families and 0.3 on the seen one."""
    params = dataclasses.replace(world.params, evaluation=dataclasses.replace(
        world.params.evaluation, views=["raw", "matched"], headline="matched", bootstrap=200))
    seen = params.benchmark.seen
    groups = {}
    for label, on_seen, on_unseen in (("base", 1.0, 0.5), ("better", 1.3, 1.5)):
        groups[label] = []
        for seed in range(2):
            gains = {name: on_seen if name == seen else on_unseen for name in params.families}
            folder = tmp_path / f"{label}-{seed}"
            folder.mkdir()
            predict.write_predictions(folder, scores(params.families, seen, gains, 10 * seed + len(label)))
            groups[label].append(folder)
    return params, groups


def point(folder, params, name, metric):
    table = predict.read_predictions(folder)
    both = table[(table["view"] == "matched") & table["generator"].isin(["real", name])]
    if metric == "AP":
        return average_precision_score(both["label"], both["logit"])
    threshold = analysis.calibration_of(table, params).threshold
    return balanced_accuracy_score(both["label"], both["logit"] > threshold)


@pytest.mark.parametrize("metric", analysis.METRICS)
def test_summary_and_difference_agree_with_the_reference(study, metric):
    params, groups = study
    unseen = [name for name in params.families if name != params.benchmark.seen]
    mean = {label: np.mean([[point(folder, params, name, metric) for name in unseen] for folder in folders])
            for label, folders in groups.items()}
    summary = analysis.summary(groups, params)
    row = summary[(summary["method"] == "better") & (summary["generator"] == "unseen") & (summary["metric"] == metric)]
    assert row["mean"].item() == pytest.approx(mean["better"]) and row["seeds"].item() == 2
    assert row["low"].item() < mean["better"] < row["high"].item()
    assert row["n"].item() == 48 * (1 + len(unseen))
    difference = analysis.paired_difference(groups, "base", params)
    row = difference[(difference["generator"] == "unseen") & (difference["metric"] == metric)]
    assert row["difference"].item() == pytest.approx(mean["better"] - mean["base"]) and row["low"].item() > 0


def test_the_gap_is_the_difference_of_the_gains_on_the_same_draws(study):
    params, groups = study
    difference = analysis.paired_difference(groups, "base", params)
    ap = difference[difference["metric"] == "AP"].set_index("generator")
    gap = analysis.paired_gap(groups, "base", params).set_index("metric")
    seen = params.benchmark.seen
    assert gap.loc["AP", "gap"] == pytest.approx(ap.loc["unseen", "difference"] - ap.loc[seen, "difference"])
    widest = (ap.loc["unseen", "low"] - ap.loc[seen, "high"], ap.loc["unseen", "high"] - ap.loc[seen, "low"])
    assert widest[0] < gap.loc["AP", "low"] < gap.loc["AP", "gap"] < gap.loc["AP", "high"] < widest[1]


def test_a_method_against_itself_differs_by_nothing(study):
    params, groups = study
    same = {"base": groups["base"], "again": groups["base"]}
    for table, name in ((analysis.paired_difference(same, "base", params), "difference"),
                        (analysis.paired_gap(same, "base", params), "gap")):
        assert (table[[name, "low", "high"]].abs() < 1e-12).all(axis=None)


def test_value_text():
    assert analysis.value(0.8314, 0.79, 0.87, n=3)["text"] == "0.831 [0.790, 0.870]"
    assert analysis.value(0.5)["text"] == "0.500"
