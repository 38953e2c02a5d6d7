import numpy as np
import pandas as pd
import pytest

from anl import analysis
from anl.published import peers, study
from tests.published.test_study import scores

COSTS = {"anl": 5, "plain": 4, "npr": 6, "dnf": 900}


@pytest.fixture(scope="module")
def tables(public):
    """(accuracy per view, AUROC minus ANL's, the table of costs) of four methods, two runs each."""
    gaps = {"anl": 2.0, "plain": 1.0, "npr": 2.6, "dnf": 3.0}
    read = {f"{name}{seed}": scores(10 * index + seed, gap) for index, (name, gap) in enumerate(gaps.items()) for seed in (0, 1)}
    groups = {name: [f"{name}0", f"{name}1"] for name in gaps}
    accuracy = {view: study.accuracy(groups, public.params, view, read.get) for view in ("matched", "jpeg96")}
    settings = (public.params, "matched", (study.RANKING,))
    across = study.across(analysis.summary(groups, *settings, read=read.get))
    over = analysis.paired_difference(groups, "anl", *settings, read=read.get)
    rates = pd.DataFrame([{"method": name, "control": control, "false_positive_rate": rate}
                                   for name in gaps for control, rate in (("raw", 0.05), ("blur", 0.4), ("resize75", 0.1))])
    costs = {name: {"parameters": 3, "frozen_parameters": 0, "multiply_adds": value} for name, value in COSTS.items()}
    return accuracy, across, over, peers.cost_table(costs, accuracy, across, rates, "matched")


def test_every_method_has_its_accuracy_beside_its_cost(tables):
    accuracy, across, _, table = tables
    assert table["method"].tolist() == ["dnf", "npr", "anl", "plain"]
    assert table.set_index("method")["multiply_adds"].to_dict() == COSTS and set(table["worst_control"]) == {"blur"}
    for view, end in (("matched", ""), ("jpeg96", "_jpeg96")):
        wanted = accuracy[view].set_index("method").loc[table["method"]]
        np.testing.assert_array_equal(table[f"accuracy{end}"], wanted["accuracy"])
        assert (table[f"accuracy{end}_low"] < table[f"accuracy{end}"]).all()
    np.testing.assert_array_equal(table["unseen_AUROC"], across.set_index("method").loc[table["method"], "unseen"])


def test_the_page_is_told_who_is_above_ours(tables):
    accuracy, _, over, _ = tables
    values = peers.quoted(accuracy["matched"], over)
    assert values["best_accuracy"]["text"] == values["best_unseen"]["text"] == "`dnf`"
    found = accuracy["matched"].set_index("method")["accuracy"]
    assert values["best_accuracy_minus_anl"]["value"] == pytest.approx(found["dnf"] - found["anl"])
    assert values["accuracy_plain_minus_anl"]["high"] < 0 < values["accuracy_dnf_minus_anl"]["low"]
    assert values["beaten_accuracy"]["text"] == values["beaten_unseen"]["text"] == "1 of 3"
    assert not any("nan" in item["text"] for item in values.values())
