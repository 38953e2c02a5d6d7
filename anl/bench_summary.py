"""`results/bench.json`: every figure of cost and speed that the project set itself, beside what `anl bench` has measured of it."""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from anl.files import read_json, write_json

OWN, LARGE = "test_resnet-64", "resnet50-stem8-224"  # folders of results/bench: the profile's detector, a backbone of usual size
WORDS = {OWN: "the embedded benchmark's small backbone, 64 pixels", LARGE: "ResNet-50, 224 pixels"}


@dataclass(frozen=True)
class Figure:
    """One limit. issue: of the project's plan. table: FOLDER/NAME in results/bench; row: {column: value} that choose its row;
    column: the number, with its quartiles in COLUMN_low and COLUMN_high where it has them. least: whether the limit is the
    least, not the most. unit: of a number that is no ratio."""

    issue: int
    what: str
    table: str
    row: dict
    column: str
    limit: float
    least: bool = False
    unit: str = ""


def _inference(model, limit, words):
    places = [(LARGE, batch) for batch in (1, 64)] + [(OWN, batch) for batch in (1, 64)]
    time = [Figure(3, f"time of {words} over the bare backbone, batch {batch}, {WORDS[folder]}", f"{folder}/inference",
                   {"model": model, "batch": batch}, "time_over_bare", limit) for folder, batch in places]
    return [*time, *(Figure(3, f"parameters of {words} over the bare backbone, {WORDS[folder]}", f"{folder}/inference",
                            {"model": model, "batch": 1}, "parameters_over_bare", 1.05) for folder in (LARGE, OWN))]


def _step(issue, words, base, folder, table):
    whole = "with cached targets" if table == "steps" else "with cached targets, the batch ready"
    return Figure(issue, f"training step {whole}, over that of {words}, {WORDS[folder]}", f"{folder}/{table}", {"model": "affinity"},
                  f"time_over_{base}", 1.25)


FIGURES = (
    _step(3, "the plain detector", "plain", OWN, "steps"), _step(3, "the plain detector", "plain", OWN, "training"),
    _step(3, "the plain detector", "plain", LARGE, "training"),
    Figure(3, "speed of making the targets, over the bare prior's in a loop", f"{OWN}/targets", {"what": "targets"},
           "speed_over_bare", 0.9, True),
    *_inference("affinity", 1.1, "the detector"), *_inference("shallow", 1.05, "the detector with a shallow branch"),
    Figure(4, "a manifest of a million rows written, queried and sampled", "pipeline/manifest", {}, "seconds", 60, unit="s"),
    Figure(4, "peak memory of that", "pipeline/manifest", {}, "peak_memory_gb", 2, unit="GB"),
    *(Figure(6, f"speed of scoring stored images, over the same network on tensors in a loop, {WORDS[folder]}", f"{folder}/scoring",
             {"model": "affinity", "what": "scoring"}, "speed_over_loop", 0.95, True) for folder in (LARGE, OWN)),
    _step(6, "the bare backbone", "bare", LARGE, "training"), _step(6, "the bare backbone", "bare", OWN, "steps"),
    *(Figure(6, f"speed of two processes over one, a thread each: {what}", "processes/processes", {"what": what, "processes": 2},
             "speed_over_one", 1.7, True) for what in ("scoring", "training step", "training step, ResNet-50")),
    Figure(6, "a `dvc repro` with nothing to do, 100 trainings in the matrix", "pipeline/repro", {}, "seconds", 10, unit="s"),
    Figure(6, "from typing `anl detect` to a first score", "detect-64/start", {}, "seconds", 5, unit="s"),
    *(Figure(7, f"speed of `anl detect` over that of its slower part, pictures of {size}", "detect-64/throughput",
             {"pictures": size, "what": "whole"}, "whole_over_slower", 0.9, True) for size in ("640 x 480", "2,400 x 1,800")),
    Figure(7, "memory for 10,000 pictures over that for 1,000", "detect-64/memory", {"pictures": 10000}, "memory_over_first", 1.05),
    *(Figure(7, f"speed of ONNX runtime over PyTorch, batch {batch}", "detect-64/runtimes", {"runtime": "ONNX runtime", "batch": batch},
             "speed_over_pytorch", 1, True) for batch in (1, 64)))


def figures(bench="results/bench"):
    """What was measured of FIGURES, a dict each: issue, what, value, low, high (None where it has none), unit, limit, `at` (least
    or most), met, table, machine. value and met are None where the table is missing or lacks the row."""
    return [_found(figure, Path(bench)) for figure in FIGURES]


def _found(figure, bench):
    folder, path = bench / Path(figure.table).parent, bench / f"{figure.table}.csv"
    value, bounds = None, (None, None)
    if path.is_file():
        rows = pd.read_csv(path)
        for column, wanted in figure.row.items():
            rows = rows[rows[column] == wanted] if column in rows else rows.head(0)
        if len(rows) and figure.column in rows:
            row = rows.iloc[0]
            value, bounds = float(row[figure.column]), [_number(row, f"{figure.column}_{end}") for end in ("low", "high")]
    machine = read_json(folder / "machine.json") if value is not None and (folder / "machine.json").is_file() else {}
    met = None if value is None else value >= figure.limit if figure.least else value <= figure.limit
    where = f"{machine['device']}, {machine['cores']} cores, torch {machine['torch']}" if machine else None
    return {"issue": figure.issue, "what": figure.what, "value": value, "low": bounds[0], "high": bounds[1], "unit": figure.unit,
            "limit": figure.limit, "at": "least" if figure.least else "most", "met": met,
            "table": f"results/bench/{figure.table}.csv", "machine": where}


def _number(row, column):
    return float(row[column]) if column in row and row[column] == row[column] else None


def write(bench="results/bench", path="results/bench.json"):
    """Write the summary; returns its path."""
    write_json(path, {"figures": figures(bench)})
    return Path(path)
