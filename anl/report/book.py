"""The Sphinx extension of the book, loaded by book/_config.yml.

The executed notebooks in book/pages are the pages with results. This extension stops a build in which one of them is
missing, was run with another profile, ended in an error or shows NaN; it fills in the settings that
the prose mentions and the tables that are made from files of the repository; and it keeps the pages free of CDNs.
"""

import ast
import html
import json
import re
from pathlib import Path

import pandas as pd
import yaml
from docutils import nodes
from docutils.parsers.rst import Directive
from docutils.statemachine import StringList
from sphinx.errors import ExtensionError

import anl
from anl.config import load_config
from anl.data import registry
from anl.data.crops import split_photos
from anl.data.photos import read_card
from anl.io import UserError
from anl.report import claims

ON_ONE_PAGE = ("demo/", "vendor/")  # folders of book/_static that one page loads itself
MEANINGLESS = {"smoke"}  # profiles that only test the code
NOT_A_NUMBER = re.compile(r"(?<![\w.])nan(?![\w.])", re.IGNORECASE)
UNSHOWN = re.compile(r"<style.*?</style>|<[^>]*>", re.DOTALL)  # a table's styles, and tags with their links
SAVED_TO = re.compile(r"""^save_to\s*=\s*["']results/([\w-]+)/tables/?["']""", re.MULTILINE)
SPLITS = {"train": "training", "val": "validation", "test": "test"}
MODEL_WORDS = {"pixel": "diffusion in pixels", "flow": "flow matching in pixels", "latent": "diffusion in the latent space of the autoencoder",
               "vae": "variational autoencoder", "vq": "autoencoder with a codebook, trained against a discriminator",
               "superres": "super-resolution of the downscaled image", "unconditional": "diffusion in pixels, from noise",
               "taef2": "tiny autoencoder for the latents of FLUX.2, as published"}
EARLY, LATE = 100, 900  # before the table of contents is read; after MathJax has been added


def setup(app):
    app.connect("config-inited", prepare, priority=EARLY)
    app.connect("config-inited", leave_thebe_out)
    app.connect("doctree-read", require_alternative_text)
    app.connect("html-page-context", leave_mathjax_out, priority=LATE)
    app.connect("build-finished", leave_icons_to_the_font)
    app.connect("autodoc-skip-member", skip_fields)
    for name, table in TABLES.items():
        app.add_directive(f"anl-{name}", _directive(table))
    app.add_directive("anl-answers", Answers)
    return {"version": "2", "parallel_read_safe": True, "parallel_write_safe": True}


def prepare(app, config):
    """Check the executed notebooks; fill in settings and banner; keep scripts off pages that do not need them."""
    source = Path(app.srcdir)
    try:
        profile = load_config(source.parent / "params.yaml")
        config.myst_substitutions = settings(source.parent, profile)
    except UserError as problem:
        raise ExtensionError(str(problem)) from None
    for name in notebook_pages(source):
        if problem := problem_of(source / "pages" / f"{name}.ipynb", profile.profile):
            raise ExtensionError(f"book/pages/{name}.ipynb {problem}; make it with `dvc repro notebook@{name}`")
    config.html_theme_options = {**config.html_theme_options, "announcement": banner(profile)}
    # MathJax's default bundle is half as large again as the components that the equations need
    config.mathjax_path = "mathjax/startup.js"
    config.mathjax3_config = {"loader": {"load": ["input/tex", "output/chtml", "a11y/assistive-mml"]}}
    # Jupyter Book links every script and style of _static on every page
    for name in ("html_js_files", "html_css_files"):
        config[name] = [file for file in config[name] if not str(file).startswith(ON_ONE_PAGE)]


def notebook_pages(source):
    """Names of the notebooks among the pages of `source`/_toc.yml, in their order."""
    contents = yaml.safe_load((Path(source) / "_toc.yml").read_text(encoding="utf-8"))
    files = [chapter["file"] for part in contents["parts"] for chapter in part["chapters"]]
    return [file.removeprefix("pages/") for file in files if file.startswith("pages/")]


def problem_of(path, profile):
    """What makes an executed notebook unfit as a page of this profile's book, as the end of a sentence; "" if nothing."""
    try:
        cells = [cell for cell in json.loads(Path(path).read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    except FileNotFoundError:
        return "is missing"
    except (ValueError, KeyError, TypeError):
        return "is not a notebook"
    source = ["".join(cell["source"]) for cell in cells]
    outputs = [(number, output) for number, cell in enumerate(cells, 1) for output in cell["outputs"]]
    if failed := [number for number, output in outputs if output["output_type"] == "error"]:
        return f"ended in an error in code cell {failed[0]}"
    if not outputs or any(cell["execution_count"] is None for cell, text in zip(cells, source) if text.strip()):
        return "has not been executed"
    if found := [other for text in source for other in SAVED_TO.findall(text) if other != profile]:
        return f"holds results of profile '{found[-1]}', and params.yaml is of '{profile}'"
    for number, output in outputs:
        shown = ["".join(text) for kind, text in output.get("data", {}).items() if "text/" in kind]
        if any(NOT_A_NUMBER.search(UNSHOWN.sub(" ", text)) for text in shown):
            return f"shows a value that is not a number (NaN) in code cell {number}"
    return ""


def banner(config):
    """One line of HTML for the top of every page."""
    count = len(config.seeds)
    text = f"Numbers of profile <b>{html.escape(config.profile)}</b>, {count} seed{'' if count == 1 else 's'} unless stated otherwise."
    if config.profile in MEANINGLESS:
        return f"{text} It tests the code: <b>its numbers mean nothing</b>. Run <code>make book</code> for real ones."
    return f"{text} Small generators, small detectors: results are about the mechanism, not the paper's tables."


def settings(root, config):
    """The settings that the prose mentions, dict of str to str."""
    def listed(names):
        return ", ".join(f"`{name}`" for name in names)

    def span(bounds):
        return f"{bounds[0]:g} to {bounds[1]:g}"

    training, method, benchmark, caltech = config.training, config.method, config.benchmark, load_config(profile="caltech")
    return {"profile": f"`{config.profile}`", "seen": listed(benchmark.seen),
            "caltech_shrink": span(caltech.benchmark.shrink), "caltech_steps": f"{caltech.training.steps:,}",
            "attention_weight": f"{method.attention_weight:g}",
            "size": str(benchmark.size), "double_size": str(benchmark.cut), "least_factor": f"{config.data.least_factor:g}",
            "step": str(method.step), "attention": f"`{method.attention}`", "loss_weight": f"{method.loss_weight:g}",
            "backbone": f"`{config.detector.backbone}`", "stride": str(config.detector.stride),
            "stem_width": str(config.detector.stem_width), "training_steps": f"{training.steps:,}",
            "batch_size": str(training.batch_size), "augmented": f"{training.augment_probability:.0%}",
            "augment_jpeg": span(training.jpeg_quality), "augment_resize": span(training.resize_scale),
            "augment_blur": span(training.blur_radius), "views": listed(config.evaluation.views),
            "headline": f"`{config.evaluation.headline}`", "controls": listed(config.evaluation.controls),
            "target_fpr": f"{config.evaluation.target_fpr:.0%}", "bootstrap": f"{config.evaluation.bootstrap:,}",
            "photographs": str(len(read_card(root / config.data.card)))}


# ---- tables made from files of the repository ---------------------------------------------------------------------------
def licence_table(root, config):
    """Number of photographs per licence and split."""
    photos = photograph_table(root, config)
    table = pd.crosstab(photos["Licence"], photos["Split"], margins=True, margins_name="all")
    return table.reindex(columns=[*SPLITS.values(), "all"], fill_value=0).reset_index()


def photograph_table(root, config):
    """Every photograph with author, licence, split and origin."""
    photos = read_card(root / config.data.card)
    splits = split_photos(photos, config.data.split, config.seed)
    return pd.DataFrame([{"Photograph": html.escape(photo.file), "Author": html.escape(photo.author),
                          "Licence": html.escape(photo.licence), "Split": SPLITS[splits[photo.id]],
                          "Package": html.escape(photo.package)} for photo in photos])


def card_table(root, _config):
    """Measured verdicts of the packaged detector, real images first."""
    try:
        card = json.loads((root / "models/detector/card.json").read_text(encoding="utf-8"))
        rows = sorted(card["measured"], key=lambda row: (row["generator"] != "real", not row["seen"], row["generator"]))
        return pd.DataFrame([{"Test images": html.escape(row["generator"]) + ("" if row["generator"] == "real" else
                                                                              ", seen" if row["seen"] else ", unseen"),
                              "Condition": html.escape(row["condition"]),
                              **{f"Called {name}": f"{row[name]:.2f}" for name in ("generated", "undecided", "real")},
                              "AUROC": "" if row["auroc"] is None else f"{row['auroc']:.2f}", "n": row["n"]} for row in rows])
    except (OSError, ValueError, KeyError, TypeError):
        return pd.DataFrame({"No packaged detector": ["Get it with <code>dvc pull detector</code> and build the book again."]})


def data_set_table(_root, _config):
    """The public data sets that `anl data fetch` knows."""
    return pd.DataFrame([{"Id": f"<code>{html.escape(source.id)}</code>", "Data set": html.escape(source.title),
                          "Access": source.access, "Licence": html.escape(source.licence)} for source in registry.load().values()])


def family_table(_root, config):
    """The generators of a profile and of `caltech`: what each does, and with which others it shares a network."""
    profiles = {part.profile: part for part in (config, load_config(profile="caltech"))}
    families = {name: family for part in profiles.values() for name, family in part.families.items() if family.model in part.models}
    kinds = {name: model.kind or name for part in profiles.values() for name, model in part.models.items()}
    rows = []
    for name, family in families.items():
        how = [MODEL_WORDS.get(kinds[family.model], kinds[family.model])]
        how += [f"{family.sampler.upper()} sampler"] if family.sampler else []
        how += [f"strength {family.strength:g}"] if family.strength else []
        how += [f"{family.inference_steps} steps"] if family.inference_steps else []
        how += [] if family.paired else ["regenerates no photograph"]
        shares = [f"<code>{other}</code>" for other, its in families.items() if other != name and its.networks & family.networks]
        rows.append({"Generator": f"<code>{name}</code>", "What it does": "; ".join(how), "Shares a network with": ", ".join(shares),
                     "In profile": ", ".join(f"<code>{key}</code>" for key, part in profiles.items() if name in part.families)})
    return pd.DataFrame(rows)


def stage_table(root, _config):
    """The stages of the pipeline in their order: command, and what it makes."""
    stages = yaml.safe_load((root / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    stages = {name: stage.get("do", stage) for name, stage in stages.items()}
    commands = {name: [stage["cmd"]] if isinstance(stage["cmd"], str) else stage["cmd"] for name, stage in stages.items()}
    commands = {name: " && ".join(lines).replace("${key}", "NAME") for name, lines in commands.items()}
    return pd.DataFrame([{"Stage": f"<code>{name}</code>", "Command": f"<code>{html.escape(commands[name])}</code>",
                          "What it makes": html.escape(stage["desc"])} for name, stage in stages.items()])


def package_table(_root, _config):
    """The library's packages and top-level modules: the purpose of each, and its modules."""
    rows = []
    for path in sorted(Path(anl.__file__).parent.iterdir()):
        source = path / "__init__.py" if path.is_dir() else path
        if source.suffix == ".py" and source.is_file() and path.name != "__init__.py":
            purpose = ast.get_docstring(ast.parse(source.read_text(encoding="utf-8"))).partition("\n\n")[0].replace("\n", " ")
            inside = sorted(part.stem for part in path.iterdir() if part.suffix == ".py" or (part / "__init__.py").is_file()) if path.is_dir() else []
            rows.append({"Package": f"<code>anl.{path.stem}</code>", "What it is for": html.escape(purpose),
                         "Modules": ", ".join(name for name in inside if not name.startswith("__"))})
    return pd.DataFrame(rows)


class Answers(Directive):
    """What held, what did not and what is undecided, from the ledgers of all profiles, as a list."""

    def run(self):
        root = Path(self.state.document.settings.env.srcdir).parent
        config = load_config(root / "params.yaml")
        ledgers = claims.read_ledgers(root / config.run.results, config.profile)
        headline = [claim.id for claim in claims.read_claims(root / "claims.yaml") if claim.headline]
        for path in (root / "claims.yaml", *(root / config.run.results / name / "claims.csv" for name in ledgers)):
            self.state.document.settings.env.note_dependency(str(path))  # read the page again when a verdict changes
        parent = nodes.container()
        self.state.nested_parse(StringList(claims.answers(ledgers, headline), "claims"), self.content_offset, parent)
        return parent.children


TABLES = {"card": card_table, "licences": licence_table, "photographs": photograph_table, "data-sets": data_set_table,
          "families": family_table, "stages": stage_table, "packages": package_table}


def _directive(table):
    class Table(Directive):
        def run(self):
            root = Path(self.state.document.settings.env.srcdir).parent
            text = table(root, load_config(root / "params.yaml")).to_html(index=False, escape=False, border=0, classes="results", justify="left")
            return [nodes.raw("", f'<div class="scroll" tabindex="0" role="region" aria-label="Table">{text}</div>', format="html")]

    return Table


# ---- accessibility, and no unneeded scripts ------------------------------------------------------------------------------
def require_alternative_text(app, doctree):
    """Raise ExtensionError on an image without alternative text."""
    for image in doctree.findall(nodes.image):
        if not image.get("alt", "").strip():
            raise ExtensionError(f"book/{app.env.docname} shows an image without alternative text; say what it shows in "
                                 "`show(figure, alt=...)` of the notebook, or in `:alt:` of the page")


def skip_fields(_app, _what, _name, value, _skip, _options):
    """Leave fields of named tuples out of the reference: their class describes them."""
    return True if (getattr(value, "__doc__", "") or "").startswith("Alias for field number") else None


def leave_thebe_out(app, _config):
    """Undo sphinx-thebe, which Jupyter Book always loads: its script names a CDN and logs an error on every page."""
    for listeners in list(app.events.listeners.values()):
        for listener in list(listeners):
            if listener.handler.__module__.startswith("sphinx_thebe"):
                app.disconnect(listener.id)
    app.registry.css_files[:] = [entry for entry in app.registry.css_files if "thebe" not in entry[0]]


def leave_mathjax_out(_app, _page, _template, context, doctree):
    """Load MathJax only on pages with mathematics."""
    if doctree is None or not (list(doctree.findall(nodes.math)) or list(doctree.findall(nodes.math_block))):
        context["script_files"] = [file for file in context["script_files"] if "mathjax" not in
                                   f"{getattr(file, 'filename', file)}{getattr(file, 'attributes', '')}".lower()]


def leave_icons_to_the_font(app, exception):
    """Empty the theme's script of 1.5 MB that draws icons: the style sheet's font has those that are shown."""
    script = Path(app.outdir) / "_static/scripts/fontawesome.js"
    if exception is None and script.is_file():
        script.write_text("/* the icons come from the style sheet's font */\n", encoding="utf-8")
