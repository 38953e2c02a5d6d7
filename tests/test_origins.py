"""Whatever the book shows tells of the run that made it, and of no other."""

import re
import shlex
from pathlib import Path

import pytest
import yaml

from anl import cli, origins
from anl.book import NOTEBOOKS
from anl.errors import UserError
from anl.files import read_json, sha256_of, write_json
from anl.origins import FIGURES, Origin
from anl.params import EXPERIMENTS
from tests import synthetic

ROOT = synthetic.ROOT


@pytest.fixture
def ran(tmp_path):
    """A notebook's results with a sidecar of their run."""
    folder = tmp_path / "results/small/step_t"
    folder.mkdir(parents=True)
    synthetic.write_notebook(folder / "step_t.ipynb", "step_t")
    synthetic.draw_figure(folder / "ap_by_step.png")
    (folder / "summary.csv").write_text("a\n1\n")
    sidecar = {"commit": "0123456789abcdef", "dirty": True, "wall_seconds": 12.3, "peak_memory_mb": 1536, "device": "cpu",
               "versions": {"torch": "2", "anl": None}, "data": {"data/benchmark": "b8b9b7387d1d"},
               "files": {str(path): sha256_of(path) for path in folder.iterdir()},
               "settings": {"profile": "small", "steps": [1, 10]}, "command": "anl notebook step_t --set 'steps=[1, 10]'"}
    write_json(tmp_path / "provenance/small/step_t.json", sidecar)
    return folder / "step_t.ipynb", tmp_path / "provenance"


def test_details_hold_the_facts_of_the_run_and_its_command(ran):
    sidecar = origins.sidecar_of(*ran)
    text = origins.details(Origin("step_t", "dvc repro step_t", "step_t", "small", (0, 1), sidecar=sidecar), ["summary.csv"])
    for words in ("0123456789 with uncommitted changes", "12 s", "1.5 GB", "torch 2<", "data/benchmark b8b9b7387d<", "seeds 0, 1",
                  'href="files/step_t/summary.csv"', "anl notebook step_t --set"):
        assert words in text, words
    stored = origins.details(Origin("step_t", "dvc repro step_t", "step_t", "small"), [])
    assert "as stored" in stored and "<pre>dvc repro step_t</pre>" in stored


def test_a_sidecar_of_another_run_is_not_shown(ran, tmp_path):
    notebook, folder = ran
    assert origins.sidecar_of(notebook, tmp_path / "nothing", folder) is not None
    synthetic.write_notebook(notebook, "run again")
    assert origins.sidecar_of(notebook, folder) is None


@pytest.mark.parametrize("name", ["ap_by_step.png", "summary.csv", "new.csv"])
def test_a_result_that_the_run_did_not_write_is_named(ran, name):
    notebook, folder = ran
    (notebook.parent / name).write_text("changed")
    with pytest.raises(UserError, match=rf"{name} is not of the run .*anl notebook step_t"):
        origins.sidecar_of(notebook, folder)


def test_stored_sidecars_tell_of_the_stored_results():
    stored = sorted((ROOT / "book/committed/provenance").glob("*/*.json"))
    assert stored
    for path in stored:
        notebook = ROOT / "results" / path.parent.name / path.stem / f"{path.stem}.ipynb"
        assert origins.sidecar_of(notebook, path.parents[1]) == read_json(path), path


def test_figures_name_tables_that_are_stored():
    for figure, tables in FIGURES.items():
        notebook, _ = figure.split("/")
        places = [folder for folder in (ROOT / "results").glob(f"*/{notebook}") if (folder / Path(figure).name).is_file()]
        if not (ROOT / f"book/committed/{notebook}.md.txt").is_file():  # no page shows what is stored of it
            places = [folder for folder in places if folder.parent.name != "full"]
        assert places, figure
        for folder in places:
            assert all((folder / table).is_file() for table in tables), figure


def test_every_command_shown_can_be_typed(built_book):
    shown = {line for page in built_book.glob("*.html")
             for block in re.findall(r'<details class="origin">.*?<pre>(.*?)</pre>', page.read_text(encoding="utf-8"), re.DOTALL)
             for line in block.splitlines()}
    stages = {file: yaml.safe_load((ROOT / file).read_text(encoding="utf-8"))["stages"] for file in ("dvc.yaml", "cifake/dvc.yaml")}
    assert len(shown) > len(NOTEBOOKS)
    for line in shown:
        words = shlex.split(line)
        if words[:2] == ["dvc", "repro"]:
            file, _, stage = words[2].rpartition(":")
            assert words[2] in stages or stage in stages[file or "dvc.yaml"], line
        elif words[0] == "make":
            assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE), line
        else:
            options = cli.make_parser().parse_args(words[1:])
            known = options.command == "notebook" and options.name in (*NOTEBOOKS, *EXPERIMENTS)
            assert known or options.command in ("profile", "fetch", "card", "compare"), line
