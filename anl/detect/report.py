"""What `anl detect` writes: a table to read, CSV or JSON lines for programs, and a file that a killed run goes on from."""

import csv
import json
import os

from anl.errors import UserError, printable

FIELDS = ("path", "verdict", "probability", "logit", "crops", "width", "height", "error", "detector")
NOT_READ = "not read"


def row(path, score=None, error=None, detector=""):
    """One picture's line: every key of FIELDS, None where it has no value. detector: the card's identity."""
    values = {} if score is None else {**score._asdict(), "probability": round(score.probability, 4),
                                       "logit": round(score.logit, 4)}
    return {**dict.fromkeys(FIELDS), "path": path, **values, "error": error, "detector": detector}


class Table:
    """Aligned lines for a terminal; long paths keep their end. The probability is that the picture is generated, in two
    digits: some dozen validation photographs give no more."""

    def __init__(self, stream, width=100):
        self.stream, self.room, self.begun = stream, max(24, width - 26), False

    def add(self, line):
        if not self.begun:  # not before: a mistake in the arguments gets no heading
            self.stream.write(f"{'verdict':<10} {'P(generated)':>13}  picture\n")
            self.begun = True
        name = printable(line["path"])
        name = name if len(name) <= self.room else f"...{name[3 - self.room:]}"
        if line["error"]:
            self.stream.write(f"{NOT_READ:<10} {'':>13}  {name}: {printable(line['error'])}\n")
        else:
            self.stream.write(f"{line['verdict']:<10} {two_digits(line['probability']):>13}  {name}\n")
        self.stream.flush()


def two_digits(probability):
    """A probability as text; never 0 or 1, which no detector can know."""
    return "under 0.01" if probability < 0.01 else "over 0.99" if probability > 0.99 else f"{probability:.2f}"


def counted(counts, earlier, out=None):
    """One line of how many pictures got which verdict. counts: {verdict or NOT_READ: number}; earlier: how many of them were
    in the file `out` before."""
    if not counts:
        return "no files in what was named"
    read = ", ".join(f"{number} {verdict}" for verdict, number in sorted(counts.items()) if verdict != NOT_READ and number)
    unread = f"{counts[NOT_READ]} could not be read" if counts.get(NOT_READ) else ""
    before = f" ({earlier} of them were in {printable(str(out))} already)" if earlier else ""
    number = sum(counts.values())
    return f"{number} file{'s' if number > 1 else ''}: " + "; ".join(filter(None, (read, unread))) + before


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


def resume(path, detector):
    """({path: verdict, or NOT_READ} of the JSON-lines file `path`, the file opened to go on). A last line cut short is taken out.

    Raises UserError if the file holds something else, or scores of another detector than `detector`, a card's identity.
    """
    done = {}
    try:
        with open(path, "rb") as file:
            whole = 0
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    break
                try:
                    value = json.loads(line)
                    value = {key: value[key] for key in FIELDS}
                except (ValueError, KeyError, TypeError):
                    raise UserError(f"{path}, line {number}, is no line of `anl detect --json`; name another file, or move "
                                    "this one away") from None
                if value["detector"] != detector:
                    raise UserError(f"{path}, line {number}, holds a score of another detector, or of another card of this one; "
                                    "name another file")
                done[value["path"]] = value["verdict"] or NOT_READ
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
