"""The Sphinx extension of the book: hands the numbers to the prose, and stops a build whose numbers are not there.

Loaded by book/_config.yml. `{{ notebook.key }}` in a page is the text of that value in book/generated/values.json. Under
each figure from book/generated it shows where the figure comes from (`X.origin.html` beside X.png), and it hands what interactive
ones are drawn anew from (`X.plot.json`, `X.forest.json`) to their script.
"""

import html
import json
import re
import shutil
from pathlib import Path

from docutils import nodes
from PIL import Image
from sphinx.errors import ExtensionError

from anl.origins import FILES

PLACEHOLDER = re.compile(r"\{\{\s*([A-Za-z_][\w]*(?:\.[A-Za-z_][\w]*)*)\s*\}\}")
ON_ONE_PAGE = ("demo/", "vendor/")  # folders of book/_static
# class of a figure: of the place that plots.js, forest.js or gallery.js draws in, and what ends the name of its numbers
DRAWN = {"interactive": ("plot", ".plot.json"), "forest": ("plot", ".forest.json"), "gallery": ("gallery-view", ".plot.json")}
DPI, PAGE_DPI = 144, 96  # of the notebooks' figures, and of a page
WIDE = 600  # pixels of a page; a wider image would be illegible on a phone and scrolls there, at LEAST of its size
LEAST = 0.7
LATE = 900  # after MathJax has been asked for
EARLY = 100  # before the table of contents is read, so that a missing `anl book` is the first thing said


def setup(app):
    app.connect("config-inited", give_values, priority=EARLY)
    app.connect("config-inited", leave_thebe_out)
    app.connect("config-inited", take_parts_of_mathjax, priority=EARLY)
    app.connect("config-inited", keep_demo_to_its_page, priority=EARLY)
    app.connect("doctree-read", complete_figures)
    app.connect("html-page-context", leave_mathjax_out, priority=LATE)
    app.connect("build-finished", offer_files)
    app.connect("build-finished", leave_icons_to_the_font)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}


def give_values(app, config):
    """Fill myst_substitutions and the banner from values.json; raise ExtensionError on what is missing or unknown."""
    source = Path(app.srcdir)
    values = read_values(source)
    if problems := unknown_keys(source, values):
        raise ExtensionError(f"the book names values that no notebook wrote: {'; '.join(problems)}")
    config.myst_substitutions = values
    config.html_theme_options = {**config.html_theme_options, "announcement": values["book"]["banner"]}


def leave_thebe_out(app, _config):
    """Undo sphinx-thebe, which Jupyter Book always loads: its script names a CDN and logs an error on every page."""
    for listeners in list(app.events.listeners.values()):
        for listener in list(listeners):
            if listener.handler.__module__.startswith("sphinx_thebe"):
                app.disconnect(listener.id)
    app.registry.css_files[:] = [entry for entry in app.registry.css_files if "thebe" not in entry[0]]


def take_parts_of_mathjax(_app, config):
    """Load what the equations need; MathJax's ready-made bundle, the default, is half as large again."""
    config.mathjax_path = "mathjax/startup.js"
    config.mathjax3_config = {"loader": {"load": ["input/tex", "output/chtml", "a11y/assistive-mml"]}}


def keep_demo_to_its_page(_app, config):
    """Undo what Jupyter Book does with every script and style in _static: it links them on every page. Those of one page are
    linked by that page, and the megabytes that run the detector when the reader asks."""
    for name in ("html_js_files", "html_css_files"):
        config[name] = [file for file in config[name] if not str(file).startswith(ON_ONE_PAGE)]


def leave_mathjax_out(_app, _page, _template, context, doctree):
    """Load MathJax on pages with mathematics alone; Sphinx also asks for it where a page below in the contents has some."""
    if doctree is None or not (list(doctree.findall(nodes.math)) or list(doctree.findall(nodes.math_block))):
        context["script_files"] = [file for file in context["script_files"]
                                   if "mathjax" not in f"{getattr(file, 'filename', file)}{getattr(file, 'attributes', '')}".lower()]


def leave_icons_to_the_font(app, exception):
    """Empty the theme's script that draws 1.5 MB of icons anew: its style sheet has the few that are shown, in a font."""
    script = Path(app.outdir) / "_static/scripts/fontawesome.js"
    if exception is None and script.is_file():
        script.write_text("/* the icons come from the style sheet's font */\n", encoding="utf-8")


def complete_figures(app, doctree):
    """Under each figure that a notebook wrote, where it comes from; raise ExtensionError where that is not known.

    One of a class in DRAWN also gets what its script draws. Raises ExtensionError on an image without alternative text.
    """
    for image in doctree.findall(nodes.image):
        if not image.get("alt", "").strip() and not app.env.docname.startswith("generated/"):  # a notebook's lie in its cells
            raise ExtensionError(f"{app.env.docname}.md shows {Path(image['uri']).name} without alternative text: say in `:alt:` "
                                 "what there is to see")
    for figure in list(doctree.findall(nodes.figure)):
        path = Path(app.srcdir) / next(figure.findall(nodes.image))["uri"]
        if "generated" not in path.parts:
            continue
        origin = path.with_name(f"{path.stem}.origin.html")
        if not origin.is_file():
            raise ExtensionError(f"nothing tells where {path} comes from ({origin.name} is missing): run `anl book`")
        figure.parent.insert(figure.parent.index(figure) + 1, _raw(origin.read_text(encoding="utf-8")))
        _scroll(figure, path)
        for name in set(DRAWN) & set(figure["classes"]):
            next(figure.findall(nodes.image))["loading"] = "lazy"  # hidden where scripts draw it anew; without them it is loaded at once
            figure.insert(0, _raw(_plot(path, next(figure.findall(nodes.caption)).astext(), name)))


def _scroll(figure, path):
    """Put the figure's image into a box of its own, so that it may scroll where its caption does not."""
    with Image.open(path) as image:
        width = image.width / DPI * PAGE_DPI
    wide = f' class="figure-image wide" style="--least: {LEAST * width:.0f}px"' if width > WIDE else ' class="figure-image"'
    place = next(index for index, child in enumerate(figure.children) if list(child.findall(nodes.image)))
    figure.insert(place + 1, _raw("</div>"))
    figure.insert(place, _raw(f"<div{wide}>"))


def _plot(path, title, name):
    """What the script of a figure of class `name` draws, hidden until it has run."""
    place, suffix = DRAWN[name]
    numbers = path.with_suffix(suffix)
    if not numbers.is_file():
        raise ExtensionError(f"{path} is marked {name}, and {numbers.name} is missing: run `anl book`, or take the mark away")
    return (f'<div class="{place}" data-title="{html.escape(title, quote=True)}" hidden><script type="application/json">'
            f'{numbers.read_text(encoding="utf-8")}</script></div>')


def _raw(text):
    return nodes.raw("", text, format="html")


def offer_files(app, exception):
    """Copy what the pages offer for download to where they look for it."""
    generated, target = Path(app.srcdir) / "generated", Path(app.outdir) / FILES
    if exception is not None or app.builder.format != "html":
        return
    notebooks = [*generated.glob("*/*/*.ipynb"), *generated.glob("source_notebooks/*.ipynb")]
    assets = [*generated.glob("*/sheets/*.png"), *generated.glob("demo/*.js")]
    for path in [*generated.rglob("*.csv"), *notebooks, *assets]:
        place = target / path.relative_to(generated).as_posix().replace("source_notebooks", "notebooks")
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, place)


def read_values(source):
    """book/generated/values.json as a dict. Raises ExtensionError when `anl book` has not been run."""
    path = Path(source) / "generated" / "values.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        raise ExtensionError("the book's results are not there (generated/values.json): run `anl book`, or `dvc repro`, "
                             "then build again") from None


def unknown_keys(source, values):
    """Lines `page.md:12: notebook.key` for each placeholder of the hand-written pages that has no value."""
    problems = []
    for page in sorted(Path(source).glob("*.md")):
        for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
            for name in PLACEHOLDER.findall(line):
                if not isinstance(_find(name, values), str):
                    problems.append(f"{page.name}:{number}: {name}")
    return problems


def _find(name, values):
    for part in name.split("."):
        values = values.get(part) if isinstance(values, dict) else None
    return values
