"""The data card of the real photographs, and the check of their folder."""

from dataclasses import dataclass, fields
from pathlib import Path

import pandas as pd

from anl.data.manifest import file_path
from anl.io import UserError, sha256_of


@dataclass(frozen=True)
class Photo:
    """A row of the data card. Near-duplicates share a `group` and stay in one split."""

    file: str
    sha256: str
    bytes: int
    width: int
    height: int
    format: str
    licence: str
    author: str
    source: str
    package: str
    path_in_package: str
    group: str

    @property
    def id(self):
        return Path(self.file).stem

    @property
    def cluster(self):
        return self.group or self.id


CARD_COLUMNS = tuple(field.name for field in fields(Photo))


def read_card(path):
    """The photographs of a data card, sorted by file. Raises UserError if the card or one of its columns is missing."""
    try:
        card = pd.read_csv(path, dtype={field.name: field.type for field in fields(Photo)}, keep_default_na=False)
    except FileNotFoundError:
        raise UserError(f"{path} is missing; restore it with `git checkout`") from None
    if missing := set(CARD_COLUMNS) - set(card):
        raise UserError(f"{path} lacks the column(s) {', '.join(sorted(missing))}; restore it with `git checkout`")
    return [Photo(**row) for row in card[list(CARD_COLUMNS)].sort_values("file").to_dict("records")]


def check_folder(photos, folder, fix="get it with `dvc pull data.dvc`, or rebuild it with `python data/rebuild_photos.py`"):
    """Raise UserError if a photograph is missing from `folder` or has another SHA-256; `fix` ends the message."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder} is missing; {fix}")
    missing = [photo.file for photo in photos if not (folder / file_path(photo.file)).is_file()]
    if missing:
        raise UserError(f"{folder} lacks {len(missing)} of {len(photos)} photographs, the first {missing[0]}; {fix}")
    for photo in photos:
        if sha256_of(folder / file_path(photo.file)) != photo.sha256:
            raise UserError(f"{folder / file_path(photo.file)} is not the listed file (its SHA-256 differs); delete it, {fix}")
