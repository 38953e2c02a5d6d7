import pytest

from anl import bench_summary
from anl.files import read_json, rounded, write_csv, write_json
from tests.conftest import ROOT


@pytest.fixture
def bench(tmp_path):
    write_csv(tmp_path / "bench/detect-64/start.csv", [{"what": "first score", "seconds": 4.2}])
    write_csv(tmp_path / f"bench/{bench_summary.LARGE}/inference.csv", [
        {"model": name, "batch": batch, "time_over_bare": time, "time_over_bare_low": time - 0.01, "time_over_bare_high": time + 0.01,
         "parameters_over_bare": 1.001} for name, batch, time in (("affinity", 1, 1.08), ("affinity", 64, 1.12), ("shallow", 1, 1.05))])
    write_csv(tmp_path / f"bench/{bench_summary.LARGE}/scoring.csv", [
        {"model": "affinity", "what": "scoring", "speed_over_loop": 0.94, "speed_over_loop_low": 0.9, "speed_over_loop_high": 0.96}])
    for folder in ("detect-64", bench_summary.LARGE):
        write_json(tmp_path / "bench" / folder / "machine.json", {"device": "x86_64", "cores": 2, "torch": "2", "python": "3"})
    return tmp_path / "bench"


def test_each_figure_is_held_against_its_limit(bench):
    found = {(row["table"].split("/", 2)[2], row["what"]): row for row in bench_summary.figures(bench)}
    of = {part: [row for (table, what), row in found.items() if part in f"{table} {what}" and row["value"] is not None]
          for part in ("start.csv", "inference.csv time of the detector over", "shallow", "scoring.csv")}
    assert [(row["value"], row["met"], row["unit"], row["low"]) for row in of["start.csv"]] == [(4.2, True, "s", None)]
    assert [row["met"] for row in of["inference.csv time of the detector over"]] == [True, False]
    assert [(row["value"], row["met"]) for row in of["shallow"] if "time" in row["what"]] == [(1.05, True)]
    assert [(row["met"], row["at"], row["high"]) for row in of["scoring.csv"]] == [(False, "least", 0.96)]
    assert of["start.csv"][0]["machine"] == "x86_64, 2 cores, torch 2"


def test_what_was_not_measured_is_neither_met_nor_missed(bench, tmp_path):
    path = bench_summary.write(bench, tmp_path / "bench.json")
    rows = read_json(path)["figures"]
    assert len(rows) == len(bench_summary.FIGURES)
    missing = [row for row in rows if row["value"] is None]
    assert missing and all(row["met"] is None and row["machine"] is None for row in missing)


def test_every_figure_is_named_once():
    names = [(figure.what, figure.table) for figure in bench_summary.FIGURES]
    assert len(set(names)) == len(names)


def test_the_stored_summary_is_that_of_the_stored_tables():
    """Whoever measures a part again renews the whole: `anl bench --summary`."""
    assert read_json(ROOT / "results/bench.json")["figures"] == rounded(bench_summary.figures(ROOT / "results/bench"))
