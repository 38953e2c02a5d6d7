"""What `anl detect` writes: a table to read, CSV or JSON lines for programs, and a file that a killed run goes on from."""

import csv
import json
import os

from anl.errors import UserError, printable

FIELDS = ("path", "verdict", "probability", "logit", "crops", "width", "height", "error")


def row(path, score=None, error=None):
    """One picture's line: every key of FIELDS, None where it has no value."""
    values = {} if score is None else {**score._asdict(), "probability": round(score.probability, 4),
                                       "logit": round(score.logit, 4)}
    return {**dict.fromkeys(FIELDS), "path": path, **values, "error": error}


class Table:
    """Aligned lines for a terminal; long paths keep their end."""

    def __init__(self, stream, width=100):
        self.stream, self.room = stream, max(24, width - 26)
        self.stream.write(f"{'verdict':<10} {'probability':>11}  picture\n")

    def add(self, line):
        name = printable(line["path"])
        name = name if len(name) <= self.room else f"...{name[3 - self.room:]}"
        if line["error"]:
            self.stream.write(f"{'not read':<10} {'':>11}  {name}: {line['error']}\n")
        else:
            self.stream.write(f"{line['verdict']:<10} {line['probability']:>11.3f}  {name}\n")
        self.stream.flush()


class Csv:
    """A header and a line a picture."""

    def __init__(self, stream):
        self.stream, self.writer = stream, csv.DictWriter(stream, FIELDS, lineterminator="\n")
        self.writer.writeheader()

    def add(self, line):
        self.writer.writerow({key: printable(value) if isinstance(value, str) else value for key, value in line.items()})
        self.stream.flush()


class JsonLines:
    """A JSON object a picture, in ASCII: names that are not UTF-8 come back with Python's os.fsencode."""

    def __init__(self, stream):
        self.stream = stream

    def add(self, line):
        self.stream.write(json.dumps(line) + "\n")
        self.stream.flush()


def resume(path):
    """(lines already in the JSON-lines file `path`, the file opened to go on). A last line cut short is taken out.

    Raises UserError if the file holds something else.
    """
    done = []
    try:
        with open(path, "rb") as file:
            whole = 0
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    break
                try:
                    value = json.loads(line)
                    done.append({key: value[key] for key in FIELDS})
                except (ValueError, KeyError, TypeError):
                    raise UserError(f"{path}, line {number}, is no line of `anl detect --json`; name another file, or move "
                                    "this one away") from None
                whole += len(line)
        os.truncate(path, whole)
    except FileNotFoundError:
        pass
    except OSError as problem:
        raise UserError(f"{path} cannot be read ({problem.strerror}); name another file") from None
    try:
        return done, open(path, "a", encoding="ascii")  # the caller's to close
    except OSError as problem:
        raise UserError(f"{path} cannot be written ({problem.strerror}); name another file") from None
