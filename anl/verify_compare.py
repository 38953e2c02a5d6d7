"""Two outputs of one stage, side by side: the same bytes, equal within a stated tolerance, or different, and by how much.

Everything that decides this verdict stands here: the tolerance, and what is expected to vary from run to run.
"""

import csv
import dataclasses
import fnmatch
import hashlib
import io
import json
import math
import re
from dataclasses import dataclass
from pathlib import Path

from anl.errors import UserError

IDENTICAL, WITHIN, DIFFERENT = "identical", "equal within tolerance", "different"
ORDER = (IDENTICAL, WITHIN, DIFFERENT)
# What two equal runs may differ in, and nothing else: time, threads, memory, versions, device, and the commit they ran at.
VARIES = {
    "run.json": ("wall_seconds", "cpu_seconds", "threads", "peak_memory_mb", "device", "versions"),  # these keys of these files
    "provenance.md.txt": None,  # the whole file: the sidecar of a notebook's run, as the book shows it
}
NUMBER = re.compile(r"(?<![\w.])[-+\u2212]?\d+(?:,\d{3})*(?:\.\d+)?(?:[eE][-+]?\d+)?")
TEXTS = (".md", ".txt", ".html", ".tsv", ".svg", ".yaml", ".yml")


@dataclass(frozen=True)
class Tolerance:
    """|new - old| <= absolute + relative * |old| for numbers; a picture may differ by more than `levels` grey levels (of
    255) in at most `share` of its pixels."""

    relative: float = 1e-3
    absolute: float = 1e-4
    levels: int = 8
    share: float = 1e-3

    def __str__(self):
        return (f"numbers {self.absolute:g} + {self.relative:g} of the committed one; pictures: {100 * self.share:g} % of "
                f"pixels by more than {self.levels} of 255 levels")


TOLERANCE = Tolerance()


@dataclass(frozen=True)
class Comparison:
    """verdict: one of ORDER. worst: how many tolerances the largest difference is. largest: that difference in words."""

    verdict: str
    worst: float = 0.0
    largest: str = ""


def varying():
    """What is left out of every comparison, in words."""
    return "; ".join(f"{name}: {', '.join(keys) if keys else 'all of it'}" for name, keys in VARIES.items())


def digest(path):
    """Hex SHA-256 of a file or folder without what varies, so that equal runs have equal digests; None if it is missing."""
    path = Path(path)
    if not path.exists():
        return None
    total = hashlib.sha256()
    for name, file in files_of(path).items():
        total.update(name.encode() + b"\0" + hashlib.sha256(_constant_bytes(file)).digest())
    return total.hexdigest()


def files_of(path):
    """{relative name: Path} of a folder's files (a file's own name is "") but for those that vary as a whole."""
    path = Path(path)
    if path.is_file():
        return {"": path}
    return {file.relative_to(path).as_posix(): file for file in sorted(path.rglob("*"))
            if file.is_file() and not any(keys is None and fnmatch.fnmatch(file.name, name) for name, keys in VARIES.items())}


def compare(old, new, tolerance=TOLERANCE):
    """Comparison of two files or folders; a file that only one of them holds is a difference."""
    olds, news = files_of(old), files_of(new)
    if one_sided := sorted(olds.keys() ^ news.keys()):
        where = "only committed" if one_sided[0] in olds else "only in the new run"
        return Comparison(DIFFERENT, math.inf, f"{one_sided[0] or Path(old).name} is {where}")
    found = [_named(name, compare_files(file, news[name], tolerance)) for name, file in olds.items()]
    worst = max(found, key=lambda item: (ORDER.index(item.verdict), item.worst), default=Comparison(IDENTICAL))
    return worst


def compare_files(old, new, tolerance=TOLERANCE):
    """Comparison of two files by what they hold: numbers cell by cell, pictures by pixels, notebooks by source and output,
    anything else by bytes."""
    first, second = _constant_bytes(old), _constant_bytes(new)
    if first == second:
        return Comparison(IDENTICAL)
    gauge = _Gauge(tolerance)
    try:
        READERS.get(Path(old).suffix, _by_text if Path(old).suffix in TEXTS else _by_bytes)(first, second, gauge)
    except (ValueError, KeyError, OSError, UserError) as problem:
        return Comparison(DIFFERENT, math.inf, f"cannot be compared ({' '.join(str(problem).split())[:80]})")
    return Comparison(DIFFERENT if gauge.worst > 1 else WITHIN, gauge.worst, gauge.largest or "other bytes, the same content")


def _named(name, comparison):
    if not comparison.largest or not name:
        return comparison
    return dataclasses.replace(comparison, largest=f"{name}: {comparison.largest}")


def _constant_bytes(path):
    """A file's bytes, without the keys that vary."""
    data = Path(path).read_bytes()
    keys = VARIES.get(Path(path).name)
    if not keys:
        return data
    value = json.loads(data)
    return json.dumps({key: item for key, item in value.items() if key not in keys}, sort_keys=True).encode()


class _Gauge:
    """Keeps the largest difference it is shown, counted in tolerances: above 1 is different."""

    def __init__(self, tolerance):
        self.tolerance, self.worst, self.largest = tolerance, 0.0, ""

    def note(self, size, words):
        if size > self.worst or not self.largest:
            self.worst, self.largest = max(size, self.worst), words

    def number(self, old, new, place):
        if old == new or (math.isnan(old) and math.isnan(new)):
            return
        allowed = self.tolerance.absolute + self.tolerance.relative * abs(old)
        size = abs(new - old) / allowed if math.isfinite(new - old) else math.inf
        self.note(size, f"{place}: {old:.6g} -> {new:.6g}")

    def unequal(self, old, new, place):
        self.note(math.inf, f"{place}: {_short(old)} -> {_short(new)}")


def _short(value):
    text = " ".join(str(value).split())
    return text if len(text) <= 40 else text[:37] + "..."


def _by_bytes(old, new, gauge):
    gauge.note(math.inf, f"other bytes ({len(old)} -> {len(new)})")


def _by_text(old, new, gauge, place="text"):
    """Text with its numbers within tolerance and everything between them equal."""
    first, second = (data.decode("utf-8") if isinstance(data, bytes) else data for data in (old, new))
    if NUMBER.split(first) != NUMBER.split(second):
        return gauge.unequal(*_first_unequal(NUMBER.split(first), NUMBER.split(second)), place)
    for before, after in zip(NUMBER.findall(first), NUMBER.findall(second), strict=True):
        gauge.number(_number(before), _number(after), place)


def _first_unequal(first, second):
    return next(((a, b) for a, b in zip(first, second) if a != b), ("", "more text"))


def _number(text):
    """The float of a number as people write it; None where it is none."""
    try:
        return float(text.replace(",", "").replace("\u2212", "-"))
    except ValueError:
        return None


def _by_json(old, new, gauge):
    _values(json.loads(old), json.loads(new), gauge, "")


def _values(old, new, gauge, place):
    if isinstance(old, dict) and isinstance(new, dict) and old.keys() == new.keys():
        for key in old:
            _values(old[key], new[key], gauge, f"{place}.{key}".lstrip("."))
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, (before, after) in enumerate(zip(old, new)):
            _values(before, after, gauge, f"{place}[{index}]")
    elif _is_number(old) and _is_number(new):
        gauge.number(old, new, place)
    elif isinstance(old, str) and isinstance(new, str):
        if old != new:
            _by_text(old, new, gauge, place)
    elif old != new or type(old) is not type(new):
        gauge.unequal(old, new, place)


def _is_number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _by_csv(old, new, gauge):
    first, second = (list(csv.reader(io.StringIO(data.decode("utf-8")))) for data in (old, new))
    if len(first) != len(second) or (first and first[0] != second[0]):
        return gauge.unequal(f"{len(first)} rows", f"{len(second)} rows, or other columns", "table")
    for line, (before, after) in enumerate(zip(first[1:], second[1:]), 2):
        if len(before) != len(after):
            gauge.unequal(len(before), len(after), f"cells of line {line}")
            continue
        for column, a, b in zip(first[0], before, after):
            numbers = _number(a), _number(b)
            if None not in numbers:
                gauge.number(*numbers, f"line {line}, {column}")
            elif a != b:
                gauge.unequal(a, b, f"line {line}, {column}")


def _by_pixels(old, new, gauge):
    import numpy as np
    from PIL import Image

    first, second = (np.asarray(Image.open(io.BytesIO(data)).convert("RGBA"), np.int16) for data in (old, new))
    if first.shape != second.shape:
        return gauge.unequal(f"{first.shape[1]} x {first.shape[0]}", f"{second.shape[1]} x {second.shape[0]} pixels", "picture")
    gap = np.abs(first - second).max(-1)
    share = float((gap > gauge.tolerance.levels).mean())
    gauge.note(share / gauge.tolerance.share, f"{100 * share:.3g} % of pixels by more than {gauge.tolerance.levels} levels, "
               f"at most by {int(gap.max())}")


def _by_cells(old, new, gauge):
    """Notebooks: sources equal; outputs compared as text, or as pictures; metadata, which holds the times, left out."""
    import base64

    first, second = (json.loads(data)["cells"] for data in (old, new))
    if len(first) != len(second):
        return gauge.unequal(f"{len(first)} cells", f"{len(second)} cells", "notebook")
    for number, (before, after) in enumerate(zip(first, second), 1):
        place = f"cell {number}"
        if "".join(before["source"]) != "".join(after["source"]):
            gauge.unequal("".join(before["source"]), "".join(after["source"]), f"{place}, source")
        shown = [[_shown(output) for output in cell.get("outputs", [])] for cell in (before, after)]
        if [sorted(item) for item in shown[0]] != [sorted(item) for item in shown[1]]:
            gauge.unequal(f"{len(shown[0])} outputs", f"{len(shown[1])} outputs, or of other kinds", place)
            continue
        for one, other in zip(*shown):
            for kind in one:
                if one[kind] != other[kind] and kind == "image/png":
                    _by_pixels(*(base64.b64decode(item[kind]) for item in (one, other)), gauge)
                elif one[kind] != other[kind]:
                    _by_text(one[kind], other[kind], gauge, place)


def _shown(output):
    """{kind: text} of a notebook's output."""
    data = {"text": output["text"]} if "text" in output else output.get("data", {})
    return {kind: "".join(item) if isinstance(item, (list, str)) else json.dumps(item, sort_keys=True)
            for kind, item in data.items()}


def _by_columns(old, new, gauge):
    import pandas as pd

    first, second = (pd.read_parquet(io.BytesIO(data)) for data in (old, new))
    if list(first) != list(second) or len(first) != len(second):
        return gauge.unequal(f"{len(first)} rows", f"{len(second)} rows, or other columns", "table")
    for column in first:
        if pd.api.types.is_numeric_dtype(first[column]) and not pd.api.types.is_bool_dtype(first[column]):
            _arrays(first[column].to_numpy(float), second[column].to_numpy(float), gauge, column)
        elif not first[column].equals(second[column]):
            gauge.note(math.inf, f"column {column}")


def _by_tensors(old, new, gauge):
    from safetensors.torch import load

    first, second = load(old), load(new)
    if first.keys() != second.keys() or any(first[key].shape != second[key].shape for key in first):
        return gauge.unequal(f"{len(first)} tensors", f"{len(second)} tensors, or of other shapes", "weights")
    for key in first:
        _arrays(first[key].double().numpy().ravel(), second[key].double().numpy().ravel(), gauge, key)


def _arrays(old, new, gauge, place):
    import numpy as np

    gap = np.abs(new - old) / (gauge.tolerance.absolute + gauge.tolerance.relative * np.abs(old))
    gap[np.isnan(old) & np.isnan(new)] = 0
    if len(gap) and (np.isnan(gap).any() or gap.max() > 0):
        at = int(np.argmax(np.where(np.isnan(gap), np.inf, gap)))
        gauge.number(float(old[at]), float(new[at]), f"{place}[{at}]")


READERS = {".json": _by_json, ".csv": _by_csv, ".png": _by_pixels, ".ipynb": _by_cells, ".parquet": _by_columns,
           ".safetensors": _by_tensors}
