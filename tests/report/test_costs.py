"""Costs as rows of a figure and as texts."""

import pandas as pd

from anl.report import costs

TABLE = pd.DataFrame({"variant": ["plain", "anl"], "ratio": [1.0, 1.25], "ratio_low": [1.0, 1.1], "ratio_high": [1.0, 1.4],
                      "speed": [1234.5, 98.76]})


def test_quartiles_become_the_ends_of_an_interval_and_counts_have_none():
    found = costs.ratio_rows(TABLE, "ratio", "time", "over plain")
    assert found[["mean", "low", "high"]].to_numpy().tolist() == [[1, 1, 1], [1.25, 1.1, 1.4]]
    counted = costs.ratio_rows(TABLE, "speed", "time", "over plain", variant="anl").iloc[0]
    assert counted["low"] == counted["mean"] == counted["high"] == 98.76
    assert len(costs.together(None, found, found)) == 4 and costs.together(None) is None


def test_texts_say_what_was_not_measured_and_answers_leave_it_out():
    ratios = [costs.ratio_text(TABLE, "ratio", variant="anl"), costs.ratio_text(TABLE, "ratio", variant="plain"), costs.ratio_text(None, "ratio")]
    assert ratios == ["1.25 [1.10, 1.40]", "1.00", costs.NOT_MEASURED]
    numbers = [costs.number_text(TABLE, "speed", variant=name) for name in ("plain", "gate")]
    assert numbers == ["1,230", costs.NOT_MEASURED]
    assert costs.measured(*(f"Takes {text} s." for text in numbers)) == "Takes 1,230 s."
    assert costs.measured(numbers[1]) == "Not measured yet; anl bench does so."


def test_a_method_that_was_not_measured_runs_the_plain_detector():
    table = pd.DataFrame({"variant": ["anl", "dnf", "anl", "dnf"], "multiply_adds_over_anl": [1.0, 33.0] * 2})
    assert costs.inference_costs(table, ["anl", "dnf", "drct"]) == {"anl": 1, "dnf": 33, "drct": 1}
    assert costs.inference_costs(None, ["anl"]) == {}
