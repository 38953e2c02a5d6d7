"""The numbers embedded for the browser are those of the notebook's CSV, intervals and all."""

import json

from anl import plots, tables
from anl.files import write_csv
from tests import synthetic


def written(tmp_path, notebook, figure, tables, suffix=".plot.json"):
    """What the page gets, its rows as dicts without the empty cells."""
    source = tmp_path / notebook
    for name, rows in tables.items():
        write_csv(source / f"{name}.csv", rows)
    synthetic.draw_figure(source / figure)
    (tmp_path / "out").mkdir()
    plots.write(source, tmp_path / "out", "matched")
    value = json.loads((tmp_path / "out" / figure).with_suffix(suffix).read_text())
    value["rows"] = [{name: cell for name, cell in zip(value["columns"], cells, strict=True) if cell is not None}
                     for cells in value["rows"]]
    return value


def test_steps_and_methods_come_from_the_summary(tmp_path):
    made = synthetic.tables()
    steps = written(tmp_path / "a", "step_t", "ap_by_step.png", made["step_t"])
    assert steps["start"]["view"] == "matched" and len(steps["rows"]) == len(made["step_t"]["summary"])
    assert steps["rows"][0] == {"method": "t1", "generator": "ddim", "seen": True, "view": "raw", "metric": "AP", "mean": 0.8,
                                "low": 0.7, "high": 0.9, "seeds": 3, "n": 800}
    heat = written(tmp_path / "b", "cross_generator", "ap_by_generator.png", made["cross_generator"])
    gains = [row for row in heat["rows"] if row.get("difference")]
    assert {row["method"] for row in gains} == {"anl minus plain"} and gains[0]["mean"] == -0.02


def test_cost_has_a_row_a_view_and_a_place(tmp_path):
    cost = written(tmp_path, "peers", "accuracy_and_cost.png", {"peers": [{**synthetic.PEER, "unseen_AP": 0.123456}]})
    assert [(row["view"], row["generator"]) for row in cost["rows"]] == [
        (view, where) for view in ("matched", "jpeg96") for where in ("unseen", "seen")]
    assert cost["rows"][0]["mean"] == 0.123456 and cost["rows"][0]["multiply_adds"] == 27672624


def test_a_figure_that_is_not_drawn_anew_gets_no_numbers(tmp_path):
    synthetic.draw_figure(tmp_path / "step_t.png")
    plots.write(tmp_path, tmp_path, "matched")
    assert not list(tmp_path.glob("*.json"))


def test_a_forest_has_a_line_a_generator_and_a_panel_for_the_paired_differences(tmp_path):
    made = synthetic.tables()["cross_generator"]
    forest = written(tmp_path, "cross_generator", "ap_by_generator_jpeg96.png", made, ".forest.json")
    assert forest["kind"] == "forest" and forest["start"]["view"] == "jpeg96" and forest["baseline"] == "plain"
    assert list(dict.fromkeys(row["line"] for row in forest["rows"])) == ["ddim (trained on)", "ddpm", "vae", "unseen"]
    assert {(row["panel"], row["series"]) for row in forest["rows"]} == {(0, "plain"), (0, "anl"), (1, "anl")}
    assert {row["mean"] for row in forest["rows"] if row["panel"] == 1} == {-0.02}


def test_a_forest_of_variants_has_a_series_for_seen_and_for_unseen_generators(tmp_path):
    forest = written(tmp_path, "targets", "ap_by_target.png", synthetic.tables()["targets"], ".forest.json")
    assert list(dict.fromkeys(row["line"] for row in forest["rows"])) == ["plain", "prior", "highpass"]
    assert {row["series"] for row in forest["rows"]} == {"seen", "unseen"}
    assert len(forest["rows"]) == (3 + 2) * 2 * 3 * 2  # variants and gains, series, views, metrics


def test_a_forest_of_verdicts_has_the_rules_limits(tmp_path):
    rows = [{"id": name, "title": f"Claim {name}", "verdict": "reproduced", "measure": measure, "value": value, "low": None,
             "high": None, "n": None, "seeds": None, "text": "x", "rule": rule}
            for name, measure, value, rule in (("a", "AP", -0.1, "95 % interval above 0"), ("b", "parameters", 0.02, "at most 0.05"),
                                               ("b", "adds", 0.08, "at most 0.1"), ("c", "AP", None, "95 % interval above 0"))]
    forest = written(tmp_path, "claims", "verdicts.png", {"verdicts": rows}, ".forest.json")
    assert [(row["line"], row["limit"]) for row in forest["rows"]] == [("Claim a", 0), ("parameters", 0.05), ("adds", 0.1)]
    assert forest["rows"][0]["said"].startswith("Claim a: reproduced. AP")


def test_numbers_are_rounded_once_as_the_tables_round_them(tmp_path):
    rows = [{**row, "difference": 0.19748} for row in synthetic.tables()["cross_generator"]["difference"]]
    heat = written(tmp_path, "cross_generator", "ap_by_generator.png",
                   {**synthetic.tables()["cross_generator"], "difference": rows})
    shown = {f"{row['mean']:.3f}" for row in heat["rows"] if row.get("difference")}
    assert shown == {tables.number("0.19748")} == {"0.197"}
