"""The numbers embedded for the browser are those of the notebook's CSV, intervals and all."""

import json

from anl import plots
from anl.files import write_csv
from tests import synthetic


def written(tmp_path, notebook, figure, tables):
    source = tmp_path / notebook
    for name, rows in tables.items():
        write_csv(source / f"{name}.csv", rows)
    synthetic.draw_figure(source / figure)
    (tmp_path / "out").mkdir()
    plots.write(source, tmp_path / "out", "matched")
    return json.loads((tmp_path / "out" / figure).with_suffix(".plot.json").read_text())


def test_steps_and_methods_come_from_the_summary(tmp_path):
    tables = synthetic.tables()
    steps = written(tmp_path / "a", "step_t", "ap_by_step.png", tables["step_t"])
    assert steps["start"]["view"] == "matched" and len(steps["rows"]) == len(tables["step_t"]["summary"])
    assert steps["rows"][0] == {"method": "t1", "generator": "ddim", "seen": True, "view": "raw", "metric": "AP", "mean": 0.8,
                                "low": 0.7, "high": 0.9, "seeds": 3, "n": 800}
    heat = written(tmp_path / "b", "cross_generator", "ap_by_generator.png", tables["cross_generator"])
    gains = [row for row in heat["rows"] if row.get("difference")]
    assert {row["method"] for row in gains} == {"anl minus plain"} and gains[0]["mean"] == -0.02


def test_cost_has_a_row_a_view_and_a_place(tmp_path):
    cost = written(tmp_path, "peers", "accuracy_and_cost.png", {"peers": [{**synthetic.PEER, "unseen_AP": 0.123456}]})
    assert [(row["view"], row["generator"]) for row in cost["rows"]] == [
        (view, where) for view in ("matched", "jpeg96") for where in ("unseen", "seen")]
    assert cost["rows"][0]["mean"] == 0.1235 and cost["rows"][0]["multiply_adds"] == 27672624


def test_a_figure_that_is_not_drawn_anew_gets_no_numbers(tmp_path):
    synthetic.draw_figure(tmp_path / "step_t.png")
    plots.write(tmp_path, tmp_path, "matched")
    assert not list(tmp_path.glob("*.json"))
