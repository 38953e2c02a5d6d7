"""The field's public data sets: where each lives, its licence and size, and the trap in its file formats.

The facts stand in registry.yaml; this module gives them types. What is not known is None, and is shown as "unknown".
"""

import json
import re
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

import yaml
from pydantic import AfterValidator, ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from anl.data import layouts
from anl.data.generator_names import canonical
from anl.io import UserError, reason

PATH = Path(__file__).with_name("registry.yaml")
ACCESS = {"direct": "download", "hub": "download from the hub", "manual": "by hand", "agreement": "by agreement only"}
UNKNOWN = "unknown"


def _file_name(name):
    if PurePosixPath(name).name != name or name.startswith("."):
        raise ValueError(f"'{name}' is not a plain file name")
    return name


def _inner_folder(path):
    if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
        raise ValueError(f"'{path}' leaves the data set's folder")
    return path


def _layout(name):
    if name not in (*layouts.LAYOUTS, "parquet"):
        raise ValueError(f"choose one of {', '.join(layouts.LAYOUTS)}, parquet")
    return name


Text = Annotated[str, StringConstraints(pattern=r"\S")]
Positive = Annotated[int, Field(ge=1)]
validated = dataclass(frozen=True, config=ConfigDict(extra="forbid", strict=True))


@validated
class File:
    """An archive. `url` is None if only a person can download it; `into` is the subfolder that it is unpacked into."""

    name: Annotated[str, AfterValidator(_file_name)]
    url: Annotated[str, StringConstraints(pattern="^https?://")] | None = None
    bytes: Positive | None = None
    sha256: Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")] | None = None
    md5: Annotated[str, StringConstraints(pattern="^[0-9a-f]{32}$")] | None = None
    into: Annotated[str, AfterValidator(_inner_folder)] = ""


@validated
class Hub:
    """A repository of the hub. `revision` is a full commit; `columns` maps image, label and generator to column names."""

    repo: Text
    revision: Annotated[str, StringConstraints(pattern="^[0-9a-f]{40}$")] | None = None
    patterns: tuple[str, ...] = ("*.parquet",)
    columns: dict[str, str | None] | None = None


@validated
class Count:
    """Number of images to expect; None in split, generator or label means all of them. Label 1 is generated."""

    images: Positive
    split: Text | None = None
    generator: Text | None = None
    label: Literal[0, 1] | None = None


@validated
class Source:
    """A data set, as registry.yaml describes it.

    Parameters
    ----------
    bytes, unpacked_bytes : int or None
        Size of the download (approximate unless `bytes_exact`), and of its files.
    counts_complete : bool
        Whether `counts` add up to the whole set.
    verified, evidence : bool, str
        Whether we have opened the data ourselves, and where the other facts come from.
    """

    id: str
    title: Text
    contents: Text
    home: Text
    host: Text
    access: Literal["direct", "hub", "manual", "agreement"]
    licence: Text
    terms: Text
    tree: Text
    trap: Text
    citation: Text
    evidence: Text
    verified: bool
    layout: Annotated[str, AfterValidator(_layout)] | None = None
    bytes: Positive | None = None
    bytes_exact: bool = True
    unpacked_bytes: Positive | None = None
    files: tuple[File, ...] = ()
    hub: Hub | None = None
    counts: tuple[Count, ...] = ()
    counts_complete: bool = False
    steps: tuple[str, ...] = ()

    @property
    def images(self):
        """Number of images in the whole set, or None if it is not known."""
        return sum(count.images for count in self.counts) if self.counts_complete else None

    @property
    def size(self):
        """Size of the download as text, or of the unpacked files if only that is known."""
        if self.bytes is not None:
            return ("" if self.bytes_exact else "about ") + size_text(self.bytes)
        return UNKNOWN if self.unpacked_bytes is None else f"{size_text(self.unpacked_bytes)} unpacked"


def load(path=PATH):
    """Read the registry.

    Returns
    -------
    dict of str to Source
        By id, in the order of the file.

    Raises
    ------
    UserError
        Naming the file, the data set and the field that is wrong.
    """
    try:
        entries = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as problem:
        raise UserError(f"{path} cannot be read as YAML ({reason(problem)}); restore it with `git checkout`") from None
    if not isinstance(entries, dict) or not all(isinstance(entry, dict) for entry in entries.values()) or not entries:
        raise UserError(f"{path} is not a mapping of data sets; restore it with `git checkout`")
    return {name: _source(name, entry, f"{path}: {name}") for name, entry in entries.items()}


def get(name, path=PATH):
    """The Source called `name`. Raises UserError if there is none."""
    sources = load(path)
    if name not in sources:
        raise UserError(f"unknown data set '{name}'; choose one of {', '.join(sources)}")
    return sources[name]


def expected_counts(dataset):
    """Numbers of images that the registry states for a data set's manifest.

    Returns
    -------
    dict of (split, generator, label) to int
        With the names of manifests; None stands for all. Empty if the data set is unknown.
    """
    source = load().get(dataset.lower().replace("_", "-"))
    return {(layouts.SPLITS.get(count.split, count.split), count.generator and canonical(count.generator), count.label):
            count.images for count in (source.counts if source else ())}


def size_text(count):
    """Bytes as text with three digits and decimal units: 8360000000 -> '8.36 GB'."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{float(f'{count:.3g}'):g} {unit}"
        count /= 1000
    return f"{float(f'{count:.3g}'):g} TB"


def _source(name, entry, where):
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", str(name)):
        raise UserError(f"{where}: an id has lower-case letters, digits and hyphens only")
    try:  # in JSON mode, strict types take lists for tuples
        source = TypeAdapter(Source).validate_json(json.dumps({"id": name, **entry}))
    except (ValidationError, TypeError) as problem:
        first = problem.errors()[0] if isinstance(problem, ValidationError) else {"loc": (), "msg": problem}
        raise UserError(f"{where}.{'.'.join(map(str, first['loc']))}: {reason(first['msg'])}") from None
    _check(source, where)
    return source


def _check(source, where):
    """Raise UserError if the fields of a Source contradict one another."""
    addresses = [file.url for file in source.files]
    if source.access == "direct" and not (addresses and all(addresses)):
        raise UserError(f"{where}: access is direct, so `files` need a `url` each")
    if source.access != "direct" and any(addresses):
        raise UserError(f"{where}: a file has a `url`, so access must be direct, not {source.access}")
    if any(not (url or "https://").startswith("https://") for url in addresses):
        raise UserError(f"{where}: a `url` must start with https://")
    if (source.access == "hub") != (source.hub is not None):
        raise UserError(f"{where}: `hub` is needed with access hub, and only there")
    if source.access in ("manual", "agreement") and not source.steps:
        raise UserError(f"{where}: access is {source.access}, so `steps` are needed")
    if source.layout == "parquet" and source.hub and set(source.hub.columns or ()) != {"image", "label", "generator"}:
        raise UserError(f"{where}.hub.columns: state the image, label and generator columns")
    if len({file.name for file in source.files}) < len(source.files):
        raise UserError(f"{where}: two files have the same name")
    if source.counts_complete and not source.counts:
        raise UserError(f"{where}: counts_complete needs `counts`")
