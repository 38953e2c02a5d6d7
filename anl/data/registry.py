"""Registry of the field's public data sets: source, licence and size of each, and its known pitfall (`trap`).

The entries are in registry.yaml; this module validates them. An unknown value is None, and is shown as "unknown".
"""

import json
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

import yaml
from pydantic import AfterValidator, ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError, model_validator
from pydantic.dataclasses import dataclass

from anl.data import layouts
from anl.data.generator_names import canonical
from anl.io import UserError, reason

PATH = Path(__file__).with_name("registry.yaml")
ACCESS = {"direct": "download", "hub": "download from the hub", "manual": "by hand", "agreement": "by agreement only"}
UNKNOWN = "unknown"
LAYOUTS = (*layouts.LAYOUTS, "parquet")


def _require(holds, problem):
    if not holds:
        raise ValueError(problem)


def _inside(path):
    _require(not path.startswith("/") and ".." not in PurePosixPath(path).parts, f"'{path}' leaves the data set's folder")
    return path


def _layout(name):
    _require(name in LAYOUTS, f"choose one of {', '.join(LAYOUTS)}")
    return name


Text = Annotated[str, StringConstraints(pattern=r"\S")]
Positive = Annotated[int, Field(ge=1)]
validated = dataclass(frozen=True, config=ConfigDict(extra="forbid", strict=True))


@validated
class File:
    """An archive. `url` is None if only a person can download it; `into` is the subfolder that it is unpacked into."""

    name: Annotated[str, StringConstraints(pattern=r"^[^./\\][^/\\]*$")]
    url: Annotated[str, StringConstraints(pattern="^https?://")] | None = None
    bytes: Positive | None = None
    sha256: Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")] | None = None
    md5: Annotated[str, StringConstraints(pattern="^[0-9a-f]{32}$")] | None = None
    into: Annotated[str, AfterValidator(_inside)] = ""


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
        Size of the download (approximate unless `bytes_exact`), and of the unpacked files.
    counts_complete : bool
        Whether `counts` add up to the whole set.
    tree, trap : str
        The folder tree, and a property of the files that can mislead a detector or its user.
    verified, evidence : bool, str
        Whether we have opened the data ourselves, and where the other facts come from.
    """

    id: Annotated[str, StringConstraints(pattern="^[a-z0-9]+(-[a-z0-9]+)*$")]
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

    @model_validator(mode="after")
    def _consistent(self):
        direct = [file.url for file in self.files]
        if self.access == "direct":
            _require(direct and all(file.url and (file.sha256 or file.md5) for file in self.files),
                     "access is direct, so `files` need a `url` and a `sha256` or `md5` each")
        else:
            _require(not any(direct), f"a file has a `url`, so access must be direct, not {self.access}")
        _require((self.access == "hub") == (self.hub is not None), "`hub` is needed with access hub, and only there")
        _require(self.steps or self.access in ("direct", "hub"), f"access is {self.access}, so `steps` are needed")
        _require(self.layout != "parquet" or not self.hub or set(self.hub.columns or ()) == {"image", "label", "generator"},
                 "hub.columns: state the image, label and generator columns")
        _require(len({file.name for file in self.files}) == len(self.files), "two files have the same name")
        _require(self.counts or not self.counts_complete, "counts_complete needs `counts`")
        return self

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
    """The registry, a dict of str to Source. Raises UserError that names the file, the data set and the wrong field."""
    try:
        entries = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        # strict pydantic types accept lists as tuples in JSON mode only
        texts = {name: json.dumps({"id": name, **entry}) for name, entry in entries.items()}
    except (OSError, ValueError, TypeError, AttributeError, yaml.YAMLError) as problem:
        raise UserError(f"{path} is no registry in YAML ({reason(problem)}); restore it with `git checkout`") from None
    sources = {}
    for name, text in texts.items():
        try:
            sources[name] = TypeAdapter(Source).validate_json(text)
        except ValidationError as problem:
            first = problem.errors()[0]
            where = ".".join(map(str, (name, *first["loc"])))
            raise UserError(f"{path}: {where}: {reason(first['msg'].removeprefix('Value error, '))}") from None
    return sources


def expected_counts(dataset):
    """Expected numbers of images, {(split, generator, label): images}, with the names of manifests; None means all."""
    source = load().get(dataset.lower().replace("_", "-"))
    return {(layouts.SPLITS.get(count.split, count.split), count.generator and canonical(count.generator), count.label):
            count.images for count in (source.counts if source else ())}


def size_text(count):
    """Bytes as text with three digits and decimal units: 8360000000 -> '8.36 GB'."""
    power = min(len(str(count)) - 1, 12) // 3
    return f"{float(f'{count / 1000**power:.3g}'):g} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"
