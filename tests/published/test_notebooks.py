"""The notebooks of a public data set on a tiny one, and the same numbers from saved scores, without the data or a model."""

import json
import re
import shutil

import pytest
import yaml

from anl import params, runs, saved
from anl.files import read_json
from tests.conftest import ROOT

NOTEBOOKS = ("public_data", "public_peers", "cifake")
SCORES_ALONE = NOTEBOOKS[1:]


def execute(name, root):
    (root / "results/cifake" / name).mkdir(parents=True, exist_ok=True)
    space = {}
    for cell in json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text())["cells"]:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), space)  # noqa: S102 (the repository's own notebook)
    return root / "results/cifake" / name


@pytest.fixture(scope="module")
def project(public, tmp_path_factory):
    """A folder where the three have run, and the working directory while the tests run; (folder, its Params)."""
    root = tmp_path_factory.mktemp("project")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        (root / "profiles").mkdir()
        settings = {**public.settings, "runs": {**public.settings["runs"], "seeds": [0, 1]}}
        (root / "profiles/cifake.yaml").write_text(yaml.safe_dump(settings))
        for name in NOTEBOOKS:
            execute(name, root)
        yield root, params.load(root / "profiles/cifake.yaml")


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_what_the_book_shows_and_quotes_is_made(project, name):
    root, _ = project
    folder = root / "results/cifake" / name
    values = read_json(folder / "values.json")
    assert values and not any("nan" in item["text"] for item in values.values())
    page = (ROOT / "book/committed/cifake" / f"{name}.md.txt").read_text()
    for table in re.findall(rf"generated/cifake/{name}/(\w+)\.html", page):
        assert (folder / f"{table}.csv").is_file()
    for figure in re.findall(rf"generated/cifake/{name}/(\w+\.png)", page):
        assert (folder / figure).is_file()


def test_a_methods_prior_is_counted_where_the_set_keeps_it(project):
    root, settings = project
    assert not (root / "models").exists()
    cost = {name: saved.cost_of(runs.find_run(runs.specs_of(settings, baseline=name)[0], settings), settings) for name in ("npr", "dnf")}
    assert cost["npr"]["frozen_parameters"] == 0 < cost["dnf"]["frozen_parameters"]


def test_the_numbers_come_again_from_saved_scores_without_the_data_or_a_run(project, monkeypatch):
    root, settings = project
    saved.save(settings)
    shutil.move(root / "runs", root / "gone")
    monkeypatch.setattr("anl.runs.train_run", lambda *_: pytest.fail("a run was trained"))
    monkeypatch.setattr("anl.benchmark.read_manifest", lambda *_: pytest.fail("the data were read"))
    before = {path: path.read_bytes() for name in SCORES_ALONE for path in (root / "results/cifake" / name).iterdir()}
    with saved.restored(settings):
        for name in SCORES_ALONE:
            shutil.rmtree(root / "results/cifake" / name)
            execute(name, root)
    assert {path: path.read_bytes() for path in before} == before
