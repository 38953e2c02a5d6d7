"""Results stored in the repository and shown beside the reader's own, whatever profile is active: of `full`, of `cifake`.

A page of book/ includes generated/full/NAME.md.txt. It is book/committed/NAME.md.txt where results/full/NAME is there, and
empty where it is not: a stored result may be missing, a page must not claim one. The same for another PROFILE, whose
sections lie in book/committed/PROFILE.
"""

from pathlib import Path

from anl.files import write_text
from anl.params import EXPERIMENTS
from anl.tables import copy_results, value_texts

SHOWN = {"metric": "AP", "view": "matched"}


def gather(results, sections, target, profile="full"):
    """Fill `target` for every section in `sections`; returns {PROFILE_NAME: {key: text}} for the prose, or {NAME: ...} where
    both are the same word.

    results: results/PROFILE. A figure or table goes to target/NAME, the section to target/NAME.md.txt.
    """
    values = {}
    for section in sorted(Path(sections).glob("*.md.txt")):
        name = section.name.removesuffix(".md.txt")
        source = Path(results) / name
        if not (source / "values.json").is_file():
            write_text(target / section.name, "\n")
            continue
        again = remake(name, profile)
        values[name if name == profile else f"{profile}_{name}"] = value_texts(source / "values.json", again)
        copy_results(source, target / name, SHOWN)
        tables = ", ".join(f"{{download}}`{path.name} <generated/{profile}/{name}/{path.name}>`"
                           for path in sorted((target / name).glob("*.csv")))
        write_text(target / name / "provenance.md.txt",
                   ":::{div} provenance\n**Where this comes from:** "
                   f"profile `{profile}`, results as stored in `results/{profile}/{name}`, with the executed notebook; tables "
                   f"{tables}. Rerun it with {again}.\n:::\n")
        write_text(target / section.name, section.read_text(encoding="utf-8"))
    return values


def remake(name, profile):
    """The commands that make a stored result again, in words."""
    if profile != "full":
        return f"`anl fetch {profile} --accept-licence`, then `dvc repro {profile}/dvc.yaml`"
    return f"`anl profile full`, then `{f'anl notebook {name}' if name in EXPERIMENTS else f'dvc repro {name}'}`"
