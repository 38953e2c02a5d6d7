"""The numbers of the figures that the book draws anew in the reader's browser (book/_static/plots.js).

A figure that a page marks `:figclass: interactive` has its numbers beside it as X.plot.json, taken from the notebook's CSV.
"""

import csv
import json

from anl.files import rounded, write_text

DIGITS = 4  # the page shows three


def write(source, target, headline):
    """Write X.plot.json into `target` for each figure X.png that can be drawn anew. source: a notebook's results."""
    for name, (kind, rows_of) in PLOTS.items():
        notebook, figure = name.split("/")
        if source.name == notebook and (source / figure).is_file():
            value = {"kind": kind, "rows": rows_of(source), "start": {"view": headline, "metric": "AP", "generator": "unseen"}}
            text = json.dumps(rounded(value, DIGITS), separators=(",", ":"), allow_nan=False)
            write_text((target / figure).with_suffix(".plot.json"), text.replace("</", "<\\/"))


def step_rows(source):
    """Every step's and the plain detector's numbers, per generator, view and metric."""
    return [_row(row, row["method"]) for row in _read(source / "summary.csv")]


def method_rows(source):
    """Every method's numbers and, where there is one, the paired difference to its baseline."""
    rows = [_row(row, row["method"]) for row in _read(source / "summary.csv")]
    rows += [{**_row({**row, "mean": row["difference"]}, f"{row['method']} minus {row['baseline']}"), "difference": True}
             for row in _read(source / "difference.csv")]
    return rows


def curve_rows(source):
    """Every method's losses and validation AP, a row a training step that was logged."""
    return [{"method": row["method"], "metric": row["quantity"], "step": int(row["step"]), "mean": float(row["value"])}
            for row in _read(source / "curves.csv")]


def cost_rows(source):
    """AP and multiply-adds of every method, on the seen and on unseen generators, at the headline view and through JPEG."""
    rows = []
    for row in _read(source / "peers.csv"):
        for view, end in (("matched", ""), ("jpeg96", "_jpeg96")):
            for where in ("unseen", "seen"):
                key = f"{where}_AP{end}"
                if row.get(key):
                    rows.append({"method": row["method"], "view": view, "generator": where, "mean": float(row[key]),
                                 "low": float(row[f"{key}_low"]), "high": float(row[f"{key}_high"]),
                                 **{name: int(row[name]) for name in ("seeds", "n", "multiply_adds", "frozen_parameters")}})
    return rows


def _row(row, method):
    return {"method": method, "generator": row["generator"], "seen": row["seen"] == "True", "view": row["view"],
            "metric": row["metric"], **{name: float(row[name]) for name in ("mean", "low", "high")},
            **{name: int(row[name]) for name in ("seeds", "n")}}


def _read(path):
    with open(path, newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


# notebook/figure: how it is drawn, and from what
PLOTS = {"step_t/ap_by_step.png": ("steps", step_rows), "cross_generator/ap_by_generator.png": ("heat", method_rows),
         "peers/accuracy_and_cost.png": ("cost", cost_rows), "detector/curves.png": ("curves", curve_rows)}
