"""What the Sphinx extension adds to a page, without a build."""

from types import SimpleNamespace

import pytest
from docutils import nodes
from sphinx.errors import ExtensionError

from anl import book_extension
from tests import synthetic


@pytest.fixture
def page(tmp_path):
    """A document with one interactive figure, and the app that reads it."""
    document = nodes.section()
    figure = nodes.figure(classes=["interactive"])
    figure += [nodes.image(uri="generated/step_t/ap.png", alt="Look at the line"), nodes.caption(text='AP, "unseen"')]
    document += [figure, nodes.paragraph(text="after")]
    (tmp_path / "generated/step_t").mkdir(parents=True)
    synthetic.draw_figure(tmp_path / "generated/step_t/ap.png")
    app = SimpleNamespace(srcdir=str(tmp_path), env=SimpleNamespace(docname="step_t"))
    return document, app, tmp_path / "generated/step_t"


def test_figure_gets_its_origin_below_and_its_numbers_inside(page):
    document, app, folder = page
    (folder / "ap.origin.html").write_text("<details>origin</details>")
    (folder / "ap.plot.json").write_text('{"kind":"steps"}')
    book_extension.complete_figures(app, document)
    figure, origin, after = document.children
    assert origin.astext() == "<details>origin</details>" and after.astext() == "after"
    assert '{"kind":"steps"}' in figure[0].astext() and 'data-title="AP, &quot;unseen&quot;"' in figure[0].astext()
    assert figure[1].astext() == '<div class="figure-image wide" style="--least: 560px">' and figure[3].astext() == "</div>"
    assert isinstance(figure[2], nodes.image) and isinstance(figure[4], nodes.caption)


def test_unknown_origin_and_missing_numbers_stop_the_build(page):
    document, app, folder = page
    with pytest.raises(ExtensionError, match="ap.origin.html is missing"):
        book_extension.complete_figures(app, document)
    (folder / "ap.origin.html").write_text("<details></details>")
    with pytest.raises(ExtensionError, match="ap.plot.json is missing"):
        book_extension.complete_figures(app, document)


@pytest.mark.parametrize("alt", [None, " "])
def test_a_figure_without_alternative_text_stops_the_build(page, alt):
    document, app, folder = page
    (folder / "ap.origin.html").write_text("<details></details>")
    image = next(document.findall(nodes.image))
    del image["alt"]
    if alt is not None:
        image["alt"] = alt
    with pytest.raises(ExtensionError, match="step_t.md shows ap.png without alternative text"):
        book_extension.complete_figures(app, document)
    app.env.docname = "generated/notebooks/step_t"  # its images lie in the executed cells
    with pytest.raises(ExtensionError, match="ap.plot.json is missing"):
        book_extension.complete_figures(app, document)


def test_mathjax_is_loaded_where_there_is_mathematics():
    context = {"script_files": ["a.js", "_static/mathjax/startup.js", SimpleNamespace(filename="mathjax/x.js", attributes={})]}
    document = nodes.section()
    document += nodes.math_block(text="x")
    book_extension.leave_mathjax_out(None, "method", "page.html", context, document)
    assert len(context["script_files"]) == 3
    book_extension.leave_mathjax_out(None, "index", "page.html", context, nodes.section())
    assert context["script_files"] == ["a.js"]
