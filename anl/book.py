"""What the book is fed: book/generated, gathered from the results of one profile.

values.json (numbers as texts), one folder per notebook (figures, CSV tables, the tables as HTML, the line that says
where the numbers come from), the executed notebooks, and the data card. The pages of book/ are written by hand.
"""

import dataclasses
import html
import json
import re
import shutil
from collections import Counter
from pathlib import Path

import yaml

from anl import (
    bench_page,
    card_page,
    claims,
    committed,
    gallery_page,
    origins,
    plots,
    public_page,
    scale_page,
    source_tables,
)
from anl.data.photos import read_card
from anl.errors import UserError
from anl.files import read_json, write_json, write_text
from anl.origins import Origin
from anl.tables import INTERVAL, badge, card_table, copy_results, html_table, prose, value_texts

NOTEBOOKS = ("data", "prior", "detector", "cross_generator", "step_t", "attention", "targets", "families",
             "robustness", "calibration", "gallery", "claims")
PUBLIC = "cifake"  # the profile of the public data set, stored as a whole, and the notebook of its study
PUBLIC_NOTEBOOKS = (PUBLIC, "public_data", "public_peers", "longer")
NUMBERLESS = {"smoke"}  # profiles that test the machinery
VIEW_WORDS = {"matched": "generated images carry the formats of the reals; all are lossless here, so these are the files as "
                         "published",
              "jpeg96": "both classes re-encoded as JPEG of quality 96"}
SPLIT_WORDS = {"train": "training", "val": "validation", "test": "test"}


def prepare(params, results="results", book="book", claims_path="claims.yaml", provenance="provenance",
            pipeline="dvc.yaml", notebooks="notebooks", citation="CITATION.cff", detector="models/detector",
            cache=".cache/anl"):
    """Write `<book>/generated` from `<results>/<profile>`; returns its path.

    Raises UserError, naming the notebook and the command, when a result is missing or a notebook holds an error.
    """
    from anl import demo  # imports torch, which the command line's other parts do without

    folder, target = Path(results) / params.profile, Path(book) / "generated"
    temporary = target.with_name(".generated.new")
    shutil.rmtree(temporary, ignore_errors=True)
    commands, stored = origins.commands(pipeline), Path(book) / "committed" / "provenance"
    (temporary / "source_notebooks").mkdir(parents=True)
    for path in Path(notebooks).glob("*.ipynb"):
        shutil.copyfile(path, temporary / "source_notebooks" / path.name)
    values, found = {}, {}
    for name in NOTEBOOKS:
        found[name] = _origin(name, folder / name, (provenance, stored), commands[name], params)
        values[name] = _gather(name, folder / name, temporary, found[name], params)
    judged = claims.evaluate(folder, claims_path)
    stored_claims = Path(results) / "full/claims.json"
    others = read_json(stored_claims) if params.profile != "full" and stored_claims.is_file() else []
    values["claims"] |= claim_texts(judged)
    verdicts = verdict_table(judged, found["claims"].link("verdicts.csv"), others)
    write_text(temporary / "claims" / "verdicts.html", verdicts + origins.details(found["claims"], ["verdicts.csv"]))
    write_text(temporary / "claims" / "ledger.md.txt", ledger(judged, others))
    stored_at = Path(book) / "committed"
    values |= committed.gather(Path(results) / "full", stored_at, temporary / "full", commands, (provenance, stored))
    values |= committed.gather(Path(results) / PUBLIC, stored_at / PUBLIC, temporary / PUBLIC, commands, (provenance, stored),
                               PUBLIC)
    bench_page.gather(Path(results) / "bench", temporary / "bench")
    values["public"] = public_page.gather(Path(results) / "use", stored_at / "use", temporary / "public")
    scale_page.gather(results, temporary / "scale")
    values["card"] = _data_card(params, temporary)
    write_text(temporary / "cite.md.txt", citation_text(yaml.safe_load(Path(citation).read_text(encoding="utf-8"))))
    values["use"] = card_page.write(temporary / "use", detector)
    values["demo"] = demo.write(temporary / "demo", params, detector, book, cache)
    values["sources"] = source_tables.write(temporary / "sources")
    values["book"] = {"profile": f"`{params.profile}`", "banner": banner(params), "seeds": str(len(params.runs.seeds)),
                      **setting_texts(params)}
    write_json(temporary / "values.json", values)
    _check_references(Path(book), temporary, commands)
    shutil.rmtree(target, ignore_errors=True)
    temporary.rename(target)
    return target


def _origin(name, source, sidecars, command, params):
    """Where one notebook's results come from. Raises UserError if it did not end well."""
    notebook, mend = source / f"{name}.ipynb", f"make it with `{command}`"
    if not notebook.is_file():
        raise UserError(f"the book needs {notebook}, which is missing; {mend}")
    if (failed := failing_cell(notebook)) is not None:
        raise UserError(f"{notebook}: cell {failed} ended in an error; {mend}")
    return Origin(name, command, name, params.profile, tuple(params.runs.seeds), f"generated/notebooks/{name}.html",
                  origins.sidecar_of(notebook, *sidecars))


def _gather(name, source, target, origin, params):
    """Copy one notebook's figures, tables and executed form; returns its values as {key: text}."""
    copy_results(source, target / name, {"metric": "AP", "view": params.evaluation.headline}, origin)
    plots.write(source, target / name, params.evaluation.headline)
    gallery_page.write(source, target / name, name)
    (target / "notebooks").mkdir(exist_ok=True)
    shutil.copyfile(source / f"{name}.ipynb", target / "notebooks" / f"{name}.ipynb")
    write_text(target / name / "provenance.md.txt", origins.line(origin))
    mend = f"make it with `{origin.command}`"
    path = source / "values.json"
    if not path.is_file():
        if name == "claims":  # its numbers are the verdicts, added by the caller
            return {}
        raise UserError(f"the book needs {path}, which is missing; {mend}")
    return value_texts(path, mend)


def _check_references(book, generated, commands):
    """Raise UserError if a page shows a figure or a table that no notebook wrote."""
    for page in sorted(book.glob("*.md")):
        for name in re.findall(r"\bgenerated/([\w./]+\.(?:png|html))", page.read_text(encoding="utf-8")):
            if not (generated / name).is_file():
                notebook, file = name.split("/", 1)
                written = f"results/.../{notebook}/{file.replace('.html', '.csv')}"
                raise UserError(f"{page} shows {written}, which notebook {notebook} did not write; make it with "
                                f"`{commands.get(notebook, f'anl notebook {notebook}')}`")


def failing_cell(path):
    """Number (from 1) of the first cell of an executed notebook that holds an error, or None."""
    for number, cell in enumerate(json.loads(Path(path).read_text(encoding="utf-8"))["cells"], 1):
        if any(output["output_type"] == "error" for output in cell.get("outputs", [])):
            return number
    return None


def banner(params):
    """One line of HTML for the top of every page."""
    seeds = len(params.runs.seeds)
    what = f"Numbers of profile <b>{html.escape(params.profile)}</b>, {seeds} seed{'' if seeds == 1 else 's'}."
    if params.profile in NUMBERLESS:
        return f"{what} It tests the machinery: <b>its numbers mean nothing</b>. Run <code>make book</code> for real ones."
    return f"{what} Results on the embedded benchmark speak of the mechanism, not of the paper's tables."


def citation_text(entry):
    """Markdown: what CITATION.cff says, as BibTeX."""
    authors = " and ".join(f"{{{author['name']}}}" for author in entry["authors"])  # braces: a name of its own, no surname
    return (f"```bibtex\n@software{{anl,\n  author = \"{authors}\",\n  title = {{{entry['title']}}},\n"
            f"  version = {{{entry['version']}}},\n  note = {{Licence: {entry['license']}}}\n}}\n```\n")


def setting_texts(params):
    """The settings that the prose mentions, as texts."""
    def code(names):  # backticks belong to the text: MyST substitutes nothing inside a code span
        return ", ".join(f"`{name}`" for name in names)

    def span(bounds):
        return " to ".join(f"{bound:g}" for bound in bounds)

    families = [name for name in params.families if name != params.benchmark.seen]
    steps = sorted({params.method.step, *params.runs.steps})
    return {"augment_share": f"{100 * params.training.augment_probability:g} %",
            "augment_jpeg": span(params.training.jpeg_quality), "augment_resize": span(params.training.resize_scale),
            "augment_blur": span(params.training.blur_radius),
            "seen": code([params.benchmark.seen]), "unseen": code(families), "unseen_count": str(len(families)),
            **_further_texts(params, code, span),
            "size": str(params.benchmark.size), "double_size": str(2 * params.benchmark.size),
            "least_factor": f"{params.data.least_factor:g}", "steps": ", ".join(map(str, steps)),
            "step": str(params.method.step), "method_attention": code([params.method.attention]),
            "loss_weight": f"{params.method.loss_weight:g}", "target_fpr": f"{100 * params.evaluation.target_fpr:g} %",
            "bootstrap": f"{params.evaluation.bootstrap:,}", "training_steps": str(params.training.steps),
            "batch_size": str(params.training.batch_size), "backbone": code([params.detector.backbone]),
            "stride": str(params.detector.stride), "patch": str(params.detector.patch),
            "attention_dim": str(params.detector.attention_dim),
            "grid": str(params.benchmark.size // params.detector.stride),
            "stem_width": str(params.detector.stem_width), "headline": code([params.evaluation.headline]),
            "headline_words": VIEW_WORDS[params.evaluation.headline],
            "controls": code(params.evaluation.controls),
            "targets": code(params.runs.targets), "attentions": code([*params.runs.attentions, params.method.attention]),
            "use_train": f"{params.use.train:,}", "use_val": f"{params.use.val:,}", "use_test": f"{params.use.test:,}",
            **{f"split_{name}": f"{100 * share:g} %" for name, share in dataclasses.asdict(params.data.split).items()}}


def _further_texts(params, code, span):
    """What the prose says of the further families."""
    paired = [name for name, family in params.more_families.items() if family.paired]
    regions = [family.region for family in params.more_families.values() if family.region]
    scales = [model.scale for model in params.more_models.values() if model.scale]
    return {"further": code(params.more_families), "further_paired": code(paired),
            "family_count": str(len(params.families) + len(params.more_families)),
            "benchmark_count": str(len(params.families)), "further_count": str(len(params.more_families)),
            "inpaint_region": f"{span([100 * share for share in regions[0]])} %" if regions else "",
            "superres_scale": f"{scales[0]}" if scales else ""}


def claim_texts(judged):
    """{id_verdict, id_answer, id_effect, id_stands: text} for the prose."""
    texts = {}
    for claim in judged:
        effect = "; ".join(f"{measure['name']}: {measure['text']}" for measure in claim["measures"])
        texts |= {f"{claim['id']}_verdict": claim["verdict"], f"{claim['id']}_answer": claim["answer"],
                  f"{claim['id']}_effect": prose(effect), f"{claim['id']}_stands": claim["stands"],
                  f"{claim['id']}_value": prose(claim["measures"][0]["text"])}
    return texts


def verdict_table(judged, download="", stored=()):
    """HTML: one row a claim, what was measured and its rule under the title, a column a profile. Fits a phone.

    judged, stored: claims as anl.claims gives them, of the active profile and, if it is another, of `full` as the repository
    holds it. download: where the page finds the numbers as CSV.
    """
    others = {claim["id"]: claim for claim in stored}
    rows = []
    for claim in judged:
        link = f'<a href="claims.html#{claim["id"].replace("_", "-")}">{html.escape(claim["title"])}</a>'
        names = "".join(f"<br><small>{html.escape(measure['name'])}; holds {_rule(measure)}</small>" for measure in claim["measures"])
        rows.append([link + names, *(_verdict_cell(found) for found in (claim, *([others.get(claim["id"])] if stored else [])))])
    return html_table(["Claim, and what was measured", *(_column(claims) for claims in (judged, stored) if claims)], rows,
                      "verdicts cards", download)


def _verdict_cell(claim):
    if claim is None:
        return "&ndash;"
    numbers = (f"<br><b>{html.escape(prose(measure['text']))}</b>" + ("" if measure["n"] is None else f" <small>n\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}{measure['n']}</small>")
               for measure in claim["measures"] if measure["value"] is not None)
    return badge(claim["verdict"]) + "".join(numbers)


def _column(judged):
    seeds = {measure["seeds"] for claim in judged for measure in claim["measures"]} - {None}
    return f"Profile {html.escape(judged[0]['profile'])}, {max(seeds, default=0)} seeds [{INTERVAL}]"


def _rule(measure):
    """The rule of a measure, in the unit of its text."""
    if not (limit := re.fullmatch("at most ([0-9.]+)", measure["rule"])):
        return f"if its {measure['rule'].replace('interval above', 'interval lies above')}"
    if "%" in str(measure["text"]):
        return f"up to {100 * float(limit[1]):g} %"
    return "if not" if float(limit[1]) == 0 else f"up to {limit[1]}"


def ledger(judged, stored=()):
    """Markdown: a section per claim with the sentence, the numbers, the deviations and the command. stored: as in verdict_table."""
    others, parts = {claim["id"]: claim for claim in stored}, []
    for claim in judged:
        quote = f"“{claim['sentence'].strip()}”" if claim["quote"] else claim["sentence"].strip()
        numbers = [f"- {m['name']}: **{prose(m['text'])}** (holds {_rule(m)})" for m in claim["measures"]]
        numbers += [f"- {m['name']}: {prose(m['text'])}" for m in claim["also"]]
        if claim["verdict"] == claims.NOT_RUN:  # each number would say that again
            numbers = [f"- Measured would be: {m['name']} (holds {_rule(m)})" for m in claim["measures"]]
        if claim["id"] in others:
            numbers.append(_stored_line(others[claim["id"]]))
        parts.append(f"({claim['id'].replace('_', '-')})=\n## {claim['title']}\n\n> {quote}\n>\n"
                     f"> Stands in: {claim['stands']}.\n\n**Verdict: {claim['verdict']}.** {claim['answer']}\n\n"
                     + "\n".join(numbers) + "\n\nWhat else could explain this outcome:\n\n"
                     + "\n".join(f"- {line}" for line in claim["deviations"])
                     + f"\n\nLook at {{numref}}`{claim['figure']}` on [](./{claim['notebook']}.md). Run it again:\n\n"
                       f"```bash\n{claim['command']}\n```\n")
    return "\n".join(parts)


def _stored_line(claim):
    """Markdown: what the stored results of another profile say of a claim, re-encoded too."""
    seeds = max((m["seeds"] for m in claim["measures"] if m["seeds"]), default=None)
    numbers = "; ".join(prose(m["text"]) + ("" if m["n"] is None else f" (n = {m['n']})") for m in claim["measures"])
    again = claim["views"].get("jpeg96")
    return (f"- In profile `{claim['profile']}`{f', {seeds} seeds' if seeds else ''}, as stored: **{claim['verdict']}**, {numbers}"
            + (f"; in view `jpeg96` **{again['verdict']}**, {prose(again['text'])}" if again else ""))


def _data_card(params, target):
    """Write the data card's two tables; returns the texts that its page mentions."""
    from anl.data.patches import split_photos  # imports torch, which the command line's other parts do without

    photos = read_card(params.data.card)
    splits = split_photos(photos, dataclasses.asdict(params.data.split), params.seed)
    write_text(target / "card" / "photos.html", card_table(photos, splits, f"{origins.FILES}/card/photos.csv"))
    licences = Counter((photo.licence, splits[photo.id]) for photo in photos)
    rows = [[html.escape(licence), *(str(licences[licence, split]) for split in SPLIT_WORDS),
             str(sum(licences[licence, split] for split in SPLIT_WORDS))]
            for licence in sorted({photo.licence for photo in photos})]
    sums = Counter(splits.values())
    rows.append(["<b>all</b>", *(f"<b>{sums[split]}</b>" for split in SPLIT_WORDS), f"<b>{len(photos)}</b>"])
    write_text(target / "card" / "licences.html", html_table(["Licence", *SPLIT_WORDS.values(), "all"], rows))
    shutil.copyfile(params.data.card, target / "card" / "photos.csv")
    return {"photos": str(len(photos)), "authors": str(len({photo.author for photo in photos})),
            "packages": str(len({photo.package for photo in photos})),
            "clusters": str(len({photo.cluster for photo in photos})),
            **{split: str(sums[split]) for split in SPLIT_WORDS}}
