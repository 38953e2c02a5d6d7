"""The book's gallery: the notebook's sheets of pictures, and the description that book/_static/gallery.js draws them from."""

import json
import shutil

from anl.errors import UserError
from anl.files import read_json, rounded, write_text
from anl.origins import FILES
from anl.tables import photo_anchor

SHEETS = "sheets"
DIGITS = 3  # of a score; the page shows two


def write(source, target, place):
    """Copy the sheets from `source`, a notebook's results, to `target` and write gallery.plot.json beside them, if it drew any.

    place: where a page finds `target` below anl.origins.FILES. Raises UserError on a sheet that is missing.
    """
    if not (source / "gallery.json").is_file():
        return
    value = read_json(source / "gallery.json")
    (target / SHEETS).mkdir(parents=True, exist_ok=True)
    for name in sheet_files(value):
        path = source / SHEETS / name
        if not path.is_file():
            raise UserError(f"{path} is missing, which the gallery shows; make it with `anl notebook {source.name}`")
        shutil.copyfile(path, target / SHEETS / name)
    patches = [{**patch, "card": f"data_card.html#{photo_anchor(patch['sha256'])}"} for patch in value["patches"]]
    value |= {"patches": patches, "folder": f"{FILES}/{place}/{SHEETS}"}
    text = json.dumps(rounded(value, DIGITS), separators=(",", ":"), allow_nan=False)
    write_text(target / "gallery.plot.json", text.replace("</", "<\\/"))


def sheet_files(value):
    """The names of all sheets in a description of anl.gallery.description."""
    names = []
    for entry in value["sheets"].values():
        names += entry.values() if isinstance(entry, dict) else [entry]
    return names
