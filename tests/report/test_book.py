"""The Sphinx extension of the book: what it refuses, and the pages of a book built from made-up notebooks."""

import re
from types import SimpleNamespace

import nbformat
import pytest
import yaml
from docutils import nodes
from sphinx.errors import ExtensionError

from anl.config import load_config
from anl.report import book
from tests.conftest import ROOT
from tests.report.synthetic_book import built_book, executed, figure, glued, output  # noqa: F401


def problem(tmp_path, change=lambda node: None, profile="tiny", **options):
    node = executed(None, **options)
    change(node)
    nbformat.write(node, tmp_path / "page.ipynb")
    return book.problem_of(tmp_path / "page.ipynb", profile)


def test_missing_broken_and_foreign_notebooks_are_refused(tmp_path):
    assert book.problem_of(tmp_path / "page.ipynb", "tiny") == "is missing"
    (tmp_path / "page.ipynb").write_text("{")
    assert book.problem_of(tmp_path / "page.ipynb", "tiny") == "is not a notebook"
    assert problem(tmp_path, profile="small") == "holds results of profile 'tiny', and params.yaml is of 'small'"
    assert problem(tmp_path) == ""


def test_failed_and_unexecuted_notebooks_are_refused(tmp_path):
    failed = nbformat.v4.new_output("error", ename="ValueError", evalue="no", traceback=[])
    assert problem(tmp_path, outputs=[figure(), failed]) == "ended in an error in code cell 3"

    def forget(node):
        node.cells[2].execution_count = None

    assert problem(tmp_path, forget) == "has not been executed"


@pytest.mark.parametrize("shown, refused", [
    (glued("gain", "nan [nan, nan]"), True), (output("display_data", {"text/html": "<td>0.1</td><td>NaN</td>"}), True),
    (output("display_data", {"text/html": '<style>.nan {}</style><a href="x/nan/y">banana</a>'}), False)])
def test_values_that_are_no_numbers_are_refused(tmp_path, shown, refused):
    assert problem(tmp_path, outputs=[figure(), shown]) == ("shows a value that is not a number (NaN) in code cell 3" if refused else "")


def test_a_build_stops_with_one_line(tmp_path):
    folder = tmp_path / "book"
    folder.mkdir()
    app = SimpleNamespace(srcdir=str(folder))
    with pytest.raises(ExtensionError, match="params.yaml"):
        book.prepare(app, SimpleNamespace())
    (tmp_path / "params.yaml").write_text("base: small\nprofile: tiny\n")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/photos.csv").write_bytes((ROOT / "data/photos.csv").read_bytes())
    (folder / "_toc.yml").write_text("parts: [{chapters: [{file: method}, {file: pages/step_t}]}]")
    with pytest.raises(ExtensionError) as caught:
        book.prepare(app, SimpleNamespace())
    assert str(caught.value) == "book/pages/step_t.ipynb is missing; make it with `dvc repro notebook@step_t`"


def test_every_notebook_is_a_page():
    assert sorted(book.notebook_pages(ROOT / "book")) == sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))


def test_the_banner_names_profile_and_meaningless_numbers():
    text = book.banner(load_config(profile="small"))
    assert "<b>small</b>" in text and "2 seeds" in text and "mean nothing" not in text
    assert "1 seed " in book.banner(load_config(profile="smoke")) and "mean nothing" in book.banner(load_config(profile="smoke"))


@pytest.mark.parametrize("alt", [None, " "])
def test_an_image_without_alternative_text_stops_the_build(alt):
    document, image = nodes.section(), nodes.image(uri="a.png")
    document += image
    if alt is not None:
        image["alt"] = alt
    with pytest.raises(ExtensionError, match="book/pages/step_t shows an image without alternative text"):
        book.require_alternative_text(SimpleNamespace(env=SimpleNamespace(docname="pages/step_t")), document)


def test_a_book_is_built_without_warnings(built_book):  # noqa: F811
    pages = {path.relative_to(built_book).as_posix(): path.read_text(encoding="utf-8") for path in built_book.rglob("*.html")}
    assert "Numbers of profile <b>tiny</b>" in pages["index.html"]
    assert "0.041 [0.012, 0.070]" in pages["index.html"]
    assert "0.040 [0.010, 0.070]" in pages["pages/cross_generator.html"]
    assert 'alt="A line that rises" class="wide"' in pages["pages/cross_generator.html"]
    assert "Air_Balloon.png" in pages["pages/data.html"] and "CC0-1.0" in pages["pages/data.html"]
    assert '<img alt="Noise"' in pages["index.html"]
    article = re.search(r"<article.*?</article>", pages["index.html"], re.DOTALL)[0]
    assert "{{" not in article and "<strong>Held.</strong> Noise learning helps." in article
    assert not re.findall(r'(?:src|href)="(?:https?:)?//[^"]*\.(?:js|css|woff2?)', "".join(pages.values()))
    assert "mathjax/startup.js" in pages["method.html"] and "startup.js" not in pages["use.html"]
    assert not [name for name, text in pages.items() if "thebe" in text.lower()]
    assert (built_book / "_sources/pages/step_t.ipynb").is_file()  # the download button's


def test_the_drawing_of_the_architecture_shows_every_stage_and_every_package():
    drawn = set(re.findall(r"<text[^>]*>([^<]*)</text>", (ROOT / "book/_static/architecture.svg").read_text()))
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"].keys() - {"demo", "detector"}
    assert any("detector trains" in text and "demo writes" in text for text in drawn)
    packages = {path.stem for path in (ROOT / "anl").iterdir() if (path / "__init__.py").is_file() or path.suffix == ".py"} - {"__init__"}
    assert stages | packages <= drawn
    assert {name for name in drawn if " " not in name} - {"photographs"} == stages | packages
