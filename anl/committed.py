"""Results of profile `full`, stored in the repository and shown beside the reader's own, whatever profile is active.

A page of book/ includes generated/full/NAME.md.txt. It is book/committed/NAME.md.txt where results/full/NAME is there, and
empty where it is not: a stored result may be missing, a page must not claim one.
"""

from pathlib import Path

from anl.files import write_text
from anl.params import EXPERIMENTS
from anl.tables import copy_results, value_texts

SHOWN = {"metric": "AP", "view": "matched"}


def gather(results, sections, target):
    """Fill `target` for every section in `sections`; returns {full_NAME: {key: text}} for the prose.

    results: results/full. A figure or table goes to target/NAME, the section to target/NAME.md.txt.
    """
    values = {}
    for section in sorted(Path(sections).glob("*.md.txt")):
        name = section.name.removesuffix(".md.txt")
        source = Path(results) / name
        if not (source / "values.json").is_file():
            write_text(target / section.name, "\n")
            continue
        values[f"full_{name}"] = value_texts(source / "values.json", f"`anl profile full`, then `dvc repro {name}`")
        copy_results(source, target / name, SHOWN)
        tables = ", ".join(f"{{download}}`{path.name} <generated/full/{name}/{path.name}>`"
                           for path in sorted((target / name).glob("*.csv")))
        command = f"anl notebook {name}" if name in EXPERIMENTS else f"dvc repro {name}"
        write_text(target / name / "provenance.md.txt",
                   ":::{div} provenance\n**Where this comes from:** profile `full`, results as stored in "
                   f"`results/full/{name}`, with the executed notebook; tables {tables}. Rerun it with `anl profile full`, "
                   f"then `{command}`.\n:::\n")
        write_text(target / section.name, section.read_text(encoding="utf-8"))
    return values
