"""The numbers of the figures that the book draws anew in the reader's browser (book/_static/plots.js and forest.js).

A figure that a page marks `:figclass: interactive` or `:figclass: forest` has its numbers beside it as X.plot.json or
X.forest.json, taken from the notebook's CSV.
"""

import csv
import json
import re
from collections import Counter

from anl.files import rounded, write_text
from anl.tables import signed

DIGITS = 6  # as the CSV; the page rounds once, to three, as its tables do
METRICS = ("AP", "balanced_accuracy")


def write(source, target, headline):
    """Write X.plot.json and X.forest.json into `target` for each figure X.png that can be drawn anew. source: a notebook's results."""
    for name, (kind, rows_of) in PLOTS.items():
        _write(source, target / name, headline, ".plot.json", kind, rows_of)
    for name, (value_of, view) in FORESTS.items():
        _write(source, target / name, view or headline, ".forest.json", "forest", value_of)


def _write(source, figure, view, suffix, kind, numbers_of):
    """figure: target / notebook / name of the image. numbers_of: gives rows, or a dict that holds them."""
    if source.name == figure.parent.name and (source / figure.name).is_file():
        found = numbers_of(source)
        found = found if isinstance(found, dict) else {"rows": found}
        columns = sorted({key for row in found["rows"] for key in row})  # named once: a third of the bytes
        rows = [[row.get(key) for key in columns] for row in found["rows"]]
        value = {"kind": kind, **found, "columns": columns, "rows": rows,
                 "start": {"view": view, "metric": "AP", "generator": "unseen"}}
        text = json.dumps(rounded(value, DIGITS), separators=(",", ":"), allow_nan=False)
        write_text(figure.parents[1] / (figure.stem + suffix), text.replace("</", "<\\/"))


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


def by_generator(values, differences):
    """A function from a notebook's folder to a forest: a line a generator, a series a method, plain and anl."""
    def value(source):
        rows = [_forest(row, panel, f"{row['generator']} (trained on)" if row["seen"] == "True" else row["generator"],
                        row["method"], row[key])
                for panel, key, table in ((0, "mean", values), (1, "difference", differences)) for row in _read(source / table)]
        kept = [row for row in rows if row["series"] in ("plain", "anl") and row["metric"] in METRICS]
        return {"rows": sorted(kept, key=lambda row: row["line"].startswith("unseen")), "baseline": "plain"}
    return value


def by_variant(values, differences):
    """The same of a notebook that compares variants of a method: a line a variant, a series for seen and for unseen generators."""
    def value(source):
        rows, gains = _read(source / values), _read(source / differences)
        forest = [_forest(row, panel, row["method"], "seen" if row["seen"] == "True" else "unseen", row[key])
                  for panel, key, table in ((0, "mean", rows), (1, "difference", gains)) for row in table
                  if row["seen"] == "True" or row["generator"] == "unseen"]
        return {"rows": [row for row in forest if row["metric"] in METRICS], "baseline": gains[0]["baseline"]}
    return value


def by_part(source):
    """A line a method, a series for the benchmark's and for the further unseen families."""
    parts = {"unseen_benchmark": "unseen, benchmark", "unseen_further": "unseen, further"}
    rows = [{"line": row["method"], "series": words, "panel": 0, "view": "matched", "metric": "AP", "mean": float(row[key]),
             "low": float(row[f"{key}_low"]), "high": float(row[f"{key}_high"]), "seeds": int(row["seeds"]), "n": int(row["n"])}
            for row in _read(source / "methods.csv") for key, words in parts.items()]
    return {"rows": rows, "baseline": ""}


def by_verdict(source):
    """A line a rule of the claims, with its limit; a series a verdict."""
    rows, table = [], _read(source / "verdicts.csv")
    rules = Counter(row["id"] for row in table)
    for row in table:
        if row["value"]:
            value = float(row["value"])
            rows.append({"line": row["title"] if rules[row["id"]] == 1 else row["measure"], "series": row["verdict"], "panel": 0, "view": "matched", "metric": "AP", "mean": value,
                         "low": float(row["low"] or value), "high": float(row["high"] or value),
                         "limit": float(re.search(r"[\d.]+$", row["rule"])[0]),
                         "said": signed(f"{row['title']}: {row['verdict']}. {row['measure']}: {row['text']} (rule: {row['rule']})")})
    return {"rows": rows, "label": "value; the stroke is the rule's limit"}


def _forest(row, panel, line, series, mean):
    return {"line": line, "series": series, "panel": panel, "view": row["view"], "metric": row["metric"], "mean": float(mean),
            **{name: float(row[name]) for name in ("low", "high")}, **{name: int(row[name]) for name in ("seeds", "n")}}


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
# notebook/figure: from what, and the view it starts with where that is not the headline's
FORESTS = {"cross_generator/ap_by_generator.png": (by_generator("summary.csv", "difference.csv"), None),
           "cross_generator/ap_by_generator_jpeg96.png": (by_generator("summary.csv", "difference.csv"), "jpeg96"),
           "families/AP_by_family.png": (by_generator("means.csv", "gain.csv"), None),
           "families/methods.png": (by_part, None), "claims/verdicts.png": (by_verdict, None),
           "attention/ap_by_attention.png": (by_variant("summary.csv", "difference.csv"), None),
           "attention_loss/ap_by_attention.png": (by_variant("summary.csv", "gain.csv"), None),
           "loss_weight/ap_by_weight.png": (by_variant("summary.csv", "gain.csv"), None),
           "targets/ap_by_target.png": (by_variant("summary.csv", "gain.csv"), None),
           "anl_plus/ap_by_variant.png": (by_variant("summary.csv", "gain.csv"), None)}
