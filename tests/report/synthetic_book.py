"""A book built from made-up executed notebooks: the prose of the real ones, with an output of each kind."""

import base64
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import matplotlib.figure
import nbformat
import pandas as pd
import pytest
import yaml
from filelock import FileLock

from anl.config import load_config
from anl.report import figures, notebooks
from anl.report.book import notebook_pages
from anl.report.claims import LEDGER_COLUMNS, write_ledger
from tests.conftest import ROOT

LEDGER = [("generalises", "Noise learning helps", "confirmatory", "tiny", "supported", "AUROC, ANL minus plain", None, 0.0412, 0.0123, 0.0701,
           3, 33, "95 % interval above 0"),
          ("best", "The first step is best", "exploratory", "tiny", "not run", "AUROC, t = 1 minus others", None, None, None, None, None, None,
           "95 % interval above 0")]
GLUED = re.compile(r"\{glue:text\}`(\w+)`")
ELSEWHERE = re.compile(r"```\{glue:\} (\w+)\n:doc: pages/(\w+)\.ipynb")


def output(kind, data, **metadata):
    return nbformat.v4.new_output(kind, data=data, metadata=metadata)


def glued(name, text, mime="text/plain"):
    """The output of myst_nb.glue(name, text, display=False)."""
    prefix = "application/papermill.record/"
    return output("display_data", {f"{prefix}{mime}": repr(text) if mime == "text/plain" else text},
                  scrapbook={"mime_prefix": prefix, "name": name})


def figure(width=5.6, alt="A line that rises"):
    """The output of anl.report.experiments.show."""
    drawing = matplotlib.figure.Figure(figsize=(width, 2))
    drawing.subplots().plot([1, 2, 3])
    png = base64.b64encode(figures.to_png(drawing)).decode()
    return output("display_data", {"image/png": png, "text/plain": alt}, **{"image/png": {"alt": alt}})


def table():
    style = pd.DataFrame({"generator": ["ddim", "vae", "vq"], **{f"a long name {n}": ["0.50 [0.40, 0.60]", "", "1,250"] for n in range(9)}}).style
    return output("display_data", {"text/html": style.hide(axis="index").set_caption("Numbers").set_uuid("a").to_html(), "text/plain": "Numbers"})


def executed(source, profile="tiny", outputs=None):
    """An executed notebook with the prose of `source` (a path or None)."""
    cells = [cell for cell in nbformat.read(source, as_version=4).cells if cell.cell_type == "markdown"] if source else []
    cells = cells or [nbformat.v4.new_markdown_cell("# A page\n\nProse.")]
    names = {name for cell in cells for name in GLUED.findall(cell.source)}
    elsewhere = [name for page in (ROOT / "book").glob("*.md") for name, at in ELSEWHERE.findall(page.read_text()) if source and at == Path(source).stem]
    shown = [figure(), figure(9), table(), output("display_data", {"text/markdown": "*Profile `tiny`, command `dvc repro`.*"})]
    code = [nbformat.v4.new_code_cell(f'save_to = "results/{profile}/tables"', metadata={"tags": ["injected-parameters", "hide-input"]}),
            *(nbformat.v4.new_code_cell("show()", outputs=[one], metadata={"tags": ["hide-input"]}) for one in (shown if outputs is None else outputs)),
            nbformat.v4.new_code_cell("glue()", outputs=[
                *(glued(name, "0.040 [0.010, 0.070]") for name in sorted(names)),
                *(glued(name, '<img alt="Noise" src="data:image/png;base64,">', "text/html") for name in elsewhere)],
                metadata={"tags": ["remove-cell"]})]
    for number, cell in enumerate(code, 1):
        cell.execution_count = number
    return notebooks.clean(nbformat.v4.new_notebook(cells=[cells[0], *code, *cells[1:]], metadata={
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}, "language_info": {"name": "python"}}))


def write_project(root):
    """The files of a project that the book is built from."""
    shutil.copytree(ROOT / "book", root / "book", ignore=shutil.ignore_patterns("_build", "pages"))
    for name in ("samples.js", "model.js"):  # written by `anl export --to demo`; without them the page says so
        (root / "book/_static/demo" / name).write_text("")
    (root / "data").mkdir()
    for name in ("data/photos.csv", "dvc.yaml", "claims.yaml"):
        shutil.copyfile(ROOT / name, root / name)
    config = load_config(profile="small").override(profile="tiny")
    (root / "params.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json", exclude_none=True)))
    for profile in ("tiny", "caltech"):
        (root / "results" / profile).mkdir(parents=True)
        write_ledger(root / "results" / profile / "claims.csv", pd.DataFrame(LEDGER, columns=LEDGER_COLUMNS))
    (root / "book/pages").mkdir()
    for name in notebook_pages(root / "book"):
        source = ROOT / "notebooks" / f"{name}.ipynb"
        nbformat.write(executed(source if source.is_file() else None), root / "book/pages" / f"{name}.ipynb")
    return root / "book"


def build(book):
    """Build a book; the finished process."""
    return subprocess.run([f"{sys.prefix}/bin/jupyter-book", "build", str(book), "-W", "-n", "--keep-going"], capture_output=True,
                          text=True, timeout=300, check=False, cwd=book.parent, env={**os.environ, "PYTHONPATH": str(ROOT)})


@pytest.fixture(scope="session")
def built_book(tmp_path_factory):
    """Folder of the HTML, built once for all test processes."""
    root = tmp_path_factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root
    with FileLock(root / "book.lock"):
        site = root / "project/book/_build/html"
        if not site.is_dir():
            done = build(write_project(Path(root, "project")))
            assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return site
