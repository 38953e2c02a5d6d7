"""Costs as rows of a figure and as texts."""

import pandas as pd
import pytest

from anl.report import costs


@pytest.fixture
def glued(monkeypatch):
    texts = {}
    monkeypatch.setattr(costs, "glue", texts.__setitem__)
    return texts


TABLE = pd.DataFrame({"variant": ["plain", "anl"], "ratio": [1.0, 1.25], "ratio_low": [1.0, 1.1], "ratio_high": [1.0, 1.4],
                      "speed": [1234.5, 98.76]})


def test_quartiles_become_the_ends_of_an_interval_and_counts_have_none():
    found = costs.ratio_rows(TABLE, "ratio", "time", "over plain")
    assert found[["mean", "low", "high"]].to_numpy().tolist() == [[1, 1, 1], [1.25, 1.1, 1.4]]
    counted = costs.ratio_rows(TABLE, "speed", "time", "over plain", variant="anl").iloc[0]
    assert counted["low"] == counted["mean"] == counted["high"] == 98.76
    assert len(costs.together(None, found, found)) == 4 and costs.together(None) is None


def test_texts_say_what_was_not_measured(glued):
    costs.glue_ratio("a", TABLE, "ratio", variant="anl")
    costs.glue_ratio("b", TABLE, "ratio", variant="plain")
    costs.glue_ratio("c", None, "ratio")
    costs.glue_number("d", TABLE, "speed", variant="plain")
    costs.glue_number("e", TABLE, "speed", variant="gate")
    assert glued == {"a": "1.25 [1.10, 1.40]", "b": "1.00", "c": "(not measured)", "d": "1,230", "e": "(not measured)"}

def test_a_method_that_was_not_measured_runs_the_plain_detector():
    table = pd.DataFrame({"variant": ["anl", "dnf", "anl", "dnf"], "multiply_adds_over_anl": [1.0, 33.0] * 2})
    assert costs.inference_costs(table, ["anl", "dnf", "drct"]) == {"anl": 1, "dnf": 33, "drct": 1}
    assert costs.inference_costs(None, ["anl"]) == {}
