"""What the Sphinx extension adds to a page, without a build."""

from types import SimpleNamespace

import pytest
from docutils import nodes
from sphinx.errors import ExtensionError

from anl import book_extension


@pytest.fixture
def page(tmp_path):
    """A document with one interactive figure, and the app that reads it."""
    document = nodes.section()
    figure = nodes.figure(classes=["interactive"])
    figure += [nodes.image(uri="generated/step_t/ap.png"), nodes.caption(text='AP, "unseen"')]
    document += [figure, nodes.paragraph(text="after")]
    (tmp_path / "generated/step_t").mkdir(parents=True)
    return document, SimpleNamespace(srcdir=str(tmp_path)), tmp_path / "generated/step_t"


def test_figure_gets_its_origin_below_and_its_numbers_inside(page):
    document, app, folder = page
    (folder / "ap.origin.html").write_text("<details>origin</details>")
    (folder / "ap.plot.json").write_text('{"kind":"steps"}')
    book_extension.complete_figures(app, document)
    figure, origin, after = document.children
    assert origin.astext() == "<details>origin</details>" and after.astext() == "after"
    assert '{"kind":"steps"}' in figure[0].astext() and 'data-title="AP, &quot;unseen&quot;"' in figure[0].astext()
    assert isinstance(figure[1], nodes.image)


def test_unknown_origin_and_missing_numbers_stop_the_build(page):
    document, app, folder = page
    with pytest.raises(ExtensionError, match="ap.origin.html is missing"):
        book_extension.complete_figures(app, document)
    (folder / "ap.origin.html").write_text("<details></details>")
    with pytest.raises(ExtensionError, match="ap.plot.json is missing"):
        book_extension.complete_figures(app, document)
