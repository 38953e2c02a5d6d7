"""The stored notebooks: small, without outputs, one question each, no code that belongs into the library."""

import ast
from pathlib import Path

import nbformat
import pytest

from anl.book import NOTEBOOKS, PUBLIC, PUBLIC_NOTEBOOKS
from anl.params import EXPERIMENTS

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"


@pytest.fixture(params=[*NOTEBOOKS, *EXPERIMENTS, *PUBLIC_NOTEBOOKS])
def notebook(request):
    return nbformat.read(FOLDER / f"{request.param}.ipynb", 4)


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_there_is_a_notebook_for_every_page_and_no_other():
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == sorted([*NOTEBOOKS, *EXPERIMENTS, *PUBLIC_NOTEBOOKS])


def test_stored_without_what_a_run_leaves_behind(notebook):
    nbformat.validate(notebook)
    assert all(not cell.outputs and cell.execution_count is None for cell in code(notebook))
    assert notebook.metadata.kernelspec.name == "python3" and "papermill" not in notebook.metadata


def test_at_most_a_dozen_cells_and_the_question_first(notebook):
    assert len(notebook.cells) <= 12
    assert notebook.cells[0].cell_type == "markdown" and "**Question.**" in notebook.cells[0].source


def test_one_parameters_cell_of_plain_assignments(notebook):
    tagged = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    assert len(tagged) == 1
    body = ast.parse(tagged[0].source).body
    assert all(isinstance(node, ast.Assign) for node in body)
    values = {node.targets[0].id: ast.literal_eval(node.value) for node in body}
    assert values["profile"] == (PUBLIC if "params_file" in values else "smoke")


def test_no_functions_no_classes_no_file_formats_no_paths_of_a_machine(notebook):
    for cell in code(notebook):
        for node in ast.walk(ast.parse(cell.source)):
            assert not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)), cell.source
            if isinstance(node, ast.Call) and isinstance(node.func, (ast.Name, ast.Attribute)):
                name = node.func.id if isinstance(node.func, ast.Name) else node.func.attr
                assert name not in ("open", "savefig", "to_csv", "to_json", "dump"), cell.source
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert node.value == "/" or not node.value.startswith("/"), cell.source


def test_lines_fit(notebook):
    assert all(len(line) <= 120 for cell in code(notebook) for line in cell.source.splitlines())
