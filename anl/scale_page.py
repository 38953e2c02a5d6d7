"""The table of `anl budget`, as stored under results/scale, for the book's page on scale."""

import csv
import html
import shutil
from pathlib import Path

from anl.files import read_json, write_text
from anl.tables import html_table

HEADS = {"stage": "Stage", "what": "Of", "times": "Runs", "images": "Images, each", "PFLOP": "PFLOP, all", "hours": "Hours, {here}",
         "hours_on_gpu": "Hours, {gpu}", "disk_GB": "Disk, GB", "memory_GB": "Memory, GB", "known_from": "Known from"}
WORDS = ("stage", "what", "known_from")


def gather(results, target):
    """Write target/budget.html, a copy of budget.csv, and target/budget.md.txt with the notes (empty where none is stored)."""
    source = Path(results) / "scale"
    if not (source / "budget.csv").is_file():
        write_text(target / "budget.md.txt", "\n")
        return
    about = read_json(source / "budget.json")
    with open(source / "budget.csv", newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    heads = [head.format(here="the machines measured", gpu=about["gpu"]) for head in HEADS.values()]
    cells = [[html.escape(row[key]) if key in WORDS else number(row[key]) for key in HEADS] for row in rows]
    write_text(target / "budget.html", html_table(heads, cells))
    shutil.copyfile(source / "budget.csv", target / "budget.csv")
    notes = "\n".join(f"- {note}" for note in about["notes"])
    write_text(target / "budget.md.txt", f"```{{raw}} html\n:file: generated/scale/budget.html\n```\n\n{{download}}`budget.csv "
               f"<generated/scale/budget.csv>`\n\n{notes}\n")


def number(text):
    """A cell for people: thousands parted, three digits of what is small, a dash for what is not known."""
    if text == "":
        return "&ndash;"
    value = float(text)
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"
