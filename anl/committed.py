"""Results stored in the repository and shown beside the reader's own, whatever profile is active: of `full`, of `cifake`.

A page of book/ includes generated/full/NAME.md.txt. It is book/committed/NAME.md.txt where results/full/NAME is there, and
empty where it is not: a stored result may be missing, a page must not claim one. The same for another PROFILE, whose
sections lie in book/committed/PROFILE.
"""

import dataclasses
import shutil
from pathlib import Path

from anl import plots
from anl.files import write_text
from anl.origins import Origin, line, sidecar_of
from anl.params import EXPERIMENTS
from anl.tables import copy_results, value_texts

SHOWN = {"metric": "AP", "view": "matched"}


def gather(results, sections, target, commands, sidecars, profile="full"):
    """Fill `target` for every section in `sections`; returns {PROFILE_NAME: {key: text}} for the prose, or {NAME: ...} where
    both are the same word.

    results: results/PROFILE. A figure or table goes to target/NAME, the section to target/NAME.md.txt. commands: of
    anl.origins; sidecars: folders to look for the runs' provenance in.
    """
    values = {}
    for section in sorted(Path(sections).glob("*.md.txt")):
        name = section.name.removesuffix(".md.txt")
        source = Path(results) / name
        notebook = source / f"{name}.ipynb"
        if not notebook.is_file() or not (source / "values.json").is_file():
            write_text(target / section.name, "\n")
            continue
        first, command = remake(name, profile, commands)
        key = name if name == profile else f"{profile}_{name}"
        values[key] = value_texts(source / "values.json", f"`{first}`, then `{command}`")
        sidecar = sidecar_of(notebook, *sidecars)
        origin = Origin(f"{profile}/{name}", command, name, profile, tuple((sidecar or {}).get("seeds", ())), sidecar=sidecar,
                        first=first)
        origin = dataclasses.replace(origin, executed=origin.link(notebook.name))
        copy_results(source, target / name, SHOWN, origin)
        plots.write(source, target / name, SHOWN["view"])
        shutil.copyfile(notebook, target / name / notebook.name)
        write_text(target / name / "provenance.md.txt", line(origin))
        write_text(target / section.name, section.read_text(encoding="utf-8"))
    return values


def remake(name, profile, commands):
    """The two commands that make a stored result again: what comes first, and what makes it."""
    if profile != "full":
        stage = "" if name == profile else f":{name}"
        return f"anl fetch {profile} --accept-licence", f"dvc repro {profile}/dvc.yaml{stage}"
    return "anl profile full", f"anl notebook {name}" if name in EXPERIMENTS else commands[name]
