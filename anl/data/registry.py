"""The field's public data sets: where each lives, what it allows, how large it is, and the trap in its file formats.

The facts stand in registry.yaml beside this module; this module checks them and gives them types. What is not known is
None, and is shown as "unknown".
"""

import re
from dataclasses import MISSING, dataclass, fields
from pathlib import Path, PurePosixPath

import yaml

from anl.errors import UserError

PATH = Path(__file__).with_name("registry.yaml")
ACCESS = {"direct": "download", "hub": "download from the hub", "manual": "by hand", "agreement": "by agreement only"}
LAYOUTS = ("binary", "genimage", "coco-pairs", "shared-reals", "list", "parquet", "frames")
SLUG = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
HEX = {"sha256": 64, "md5": 32, "revision": 40}
UNKNOWN = "unknown"


@dataclass(frozen=True)
class File:
    """One archive. url: None where only a person can get it; bytes, sha256, md5: None where not known to us.

    into: folder of the data set that it is unpacked into, "" for the data set's own.
    """

    name: str
    url: str | None = None
    bytes: int | None = None
    sha256: str | None = None
    md5: str | None = None
    into: str = ""


@dataclass(frozen=True)
class Hub:
    """A data set of the hub. revision: full commit, None where none is known to us; columns: image, label, generator."""

    repo: str
    revision: str | None = None
    patterns: tuple[str, ...] = ("*.parquet",)
    columns: dict | None = None
    splits: tuple[str, ...] = ()


@dataclass(frozen=True)
class Count:
    """How many images to expect; None in split, generator or label means all of them together. label: 1 is generated."""

    images: int
    split: str | None = None
    generator: str | None = None
    label: int | None = None


@dataclass(frozen=True)
class Source:
    """One data set; see registry.yaml.

    bytes: of the download (about, unless bytes_exact); unpacked_bytes: of its files. counts_complete: whether `counts`
    add up to the whole set. verified: whether we have opened the data ourselves; evidence: where the other facts come from.
    """

    id: str
    title: str
    contents: str
    home: str
    host: str
    access: str
    licence: str
    terms: str
    layout: str
    tree: str
    trap: str
    citation: str
    evidence: str
    verified: bool
    bytes: int | None = None
    bytes_exact: bool = True
    unpacked_bytes: int | None = None
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
        """Size of the download in words, or of the unpacked files where only that is known."""
        if self.bytes is not None:
            return ("" if self.bytes_exact else "about ") + size_text(self.bytes)
        return UNKNOWN if self.unpacked_bytes is None else f"{size_text(self.unpacked_bytes)} unpacked"


def load(path=PATH):
    """{id: Source} in the file's order. Raises UserError naming the file, the data set and the field that is wrong."""
    try:
        entries = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as problem:
        raise UserError(f"{path} cannot be read as YAML ({problem}); restore it with `git checkout`") from None
    if not isinstance(entries, dict) or not entries:
        raise UserError(f"{path} holds no data sets; restore it with `git checkout`")
    return {name: _source(name, entry, f"{path}: {name}") for name, entry in entries.items()}


def get(name, path=PATH):
    """The Source called `name`. Raises UserError naming those there are."""
    sources = load(path)
    if name not in sources:
        raise UserError(f"there is no data set '{name}'; choose one of {', '.join(sources)}")
    return sources[name]


def table(path=PATH):
    """All data sets, a row each: id, title, access, size, images, licence, host, layout, trap, citation, verified, ..."""
    import pandas as pd  # not above: the command line does without it

    rows = [{"id": source.id, "title": source.title, "contents": source.contents, "access": ACCESS[source.access],
             "size": source.size, "images": source.images, "licence": source.licence, "host": source.host,
             "home": source.home, "layout": source.layout, "trap": source.trap, "citation": source.citation,
             "verified": source.verified} for source in load(path).values()]
    return pd.DataFrame(rows).astype({"images": "Int64"})


def size_text(count):
    """Bytes in words, three digits, decimal units: 8360000000 -> '8.36 GB'."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{float(f'{count:.3g}'):g} {unit}"
        count /= 1000
    return f"{float(f'{count:.3g}'):g} TB"


def _source(name, entry, where):
    if not isinstance(name, str) or not SLUG.fullmatch(name):
        raise UserError(f"{where}: an id holds lower-case letters, digits and hyphens")
    entry = _typed(Source, {"id": name, **_mapping(entry, where)}, where)
    for key, kind in (("files", File), ("counts", Count)):
        if key in entry:
            entry[key] = tuple(kind(**_typed(kind, _mapping(item, f"{where}.{key}"), f"{where}.{key}[{number}]"))
                               for number, item in enumerate(entry[key]))
    if "hub" in entry:
        entry["hub"] = Hub(**_typed(Hub, _mapping(entry["hub"], f"{where}.hub"), f"{where}.hub"))
    source = Source(**entry)
    _check(source, where)
    return source


def _mapping(value, where):
    if not isinstance(value, dict):
        raise UserError(f"{where} is not a mapping of field to value")
    return value


def _typed(kind, entry, where):
    """`entry` with its keys and the types of its values checked against the dataclass; lists become tuples."""
    known = {field.name: field for field in fields(kind)}
    if unknown := sorted(set(entry) - set(known)):
        raise UserError(f"{where}: unknown field '{unknown[0]}'; known are {', '.join(known)}")
    needed = [name for name, field in known.items() if field.default is MISSING]
    if missing := [name for name in needed if name not in entry]:
        raise UserError(f"{where}: '{missing[0]}' is missing")
    result = {}
    for key, value in entry.items():
        problem = _problem(key, value)
        if problem:
            raise UserError(f"{where}.{key}: {problem}, not {value!r}")
        result[key] = tuple(value) if isinstance(value, list) else value
    return result


def _problem(key, value):
    """What is wrong with a field, or None."""
    if key in ("bytes", "unpacked_bytes", "images"):
        return None if type(value) is int and value > 0 else "a whole number above 0 is needed (leave out what is unknown)"
    if key in ("verified", "bytes_exact", "counts_complete"):
        return None if isinstance(value, bool) else "true or false is needed"
    if key == "label":
        return None if value in (0, 1) and type(value) is int else "0 (real) or 1 (generated) is needed"
    if key in HEX:
        return None if re.fullmatch(f"[0-9a-f]{{{HEX[key]}}}", str(value)) else f"{HEX[key]} lower-case hex digits are needed"
    if key in ("patterns", "splits", "steps"):
        return None if isinstance(value, list) and all(isinstance(item, str) for item in value) else "a list of texts is needed"
    if key in ("files", "counts"):
        return None if isinstance(value, list) and value else "a list is needed"
    if key in ("hub", "columns"):
        return None if isinstance(value, dict) else "a mapping is needed"
    return None if isinstance(value, str) and value.strip() else "a text is needed"


def _check(source, where):
    """What no single field tells: whether the fields of a Source fit together."""
    for key, allowed in (("access", ACCESS), ("layout", LAYOUTS)):
        if getattr(source, key) not in allowed:
            raise UserError(f"{where}.{key} is '{getattr(source, key)}'; choose one of {', '.join(allowed)}")
    if source.access == "direct" and not (source.files and all(file.url for file in source.files)):
        raise UserError(f"{where}: access is direct, so `files` with a `url` each are needed")
    if source.access != "direct" and any(file.url for file in source.files):
        raise UserError(f"{where}: a file with a `url` would be downloaded; access has to be direct, not {source.access}")
    if (source.access == "hub") != (source.hub is not None):
        raise UserError(f"{where}: `hub` goes with access hub, and only with it")
    if source.access in ("manual", "agreement") and not source.steps:
        raise UserError(f"{where}: access is {source.access}, so `steps` for a person are needed")
    if source.layout == "parquet" and source.hub and set(source.hub.columns or ()) != {"image", "label", "generator"}:
        raise UserError(f"{where}.hub.columns: the names of the image, label and generator columns are needed")
    for file in source.files:
        if PurePosixPath(file.name).name != file.name or file.name.startswith("."):
            raise UserError(f"{where}: '{file.name}' is no plain file name")
        if PurePosixPath(file.into).is_absolute() or ".." in PurePosixPath(file.into).parts:
            raise UserError(f"{where}: '{file.into}' leaves the data set's folder")
        if file.url and not file.url.startswith("https://"):
            raise UserError(f"{where}: {file.url} is no https address")
    if len({file.name for file in source.files}) < len(source.files):
        raise UserError(f"{where}: two files have one name")
    if source.counts_complete and not source.counts:
        raise UserError(f"{where}: counts_complete without counts")
