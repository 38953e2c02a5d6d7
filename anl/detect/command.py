"""`anl detect`: find pictures and videos, read them ahead in threads, score them, report them as a table, CSV or JSON lines."""

import collections
import contextlib
import csv
import glob
import itertools
import json
import os
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor

from anl.data import video
from anl.data.decode import Refused, decode_bytes, read_bytes
from anl.data.walk import walk
from anl.io import UserError, printable

FIELDS = ("path", "verdict", "probability", "logit", "crops", "width", "height", "frames", "generated_share", "problem", "detector")
FORMATS = ("table", "json", "csv")
NOT_READ = "not read"
BEGIN = b'{"path": "'  # of a line of --format json


def run_detect(paths, *, detector=None, revision=None, device=None, form="table", resume=None, maps=None,
               recursive=True, explain=False, batch_size=32, workers=2):
    """Score pictures and videos and print a row for each, in a fixed order; files that cannot be read have a row with a problem.

    Parameters
    ----------
    paths : list of str
        Files, folders, patterns; `-` reads paths from standard input, one a line.
    detector, revision
        See `anl.load_detector`.
    device : str, optional
        Default: the GPU if there is one.
    form : str
        One of FORMATS, on standard output; `json` is an object a line.
    resume : path-like, optional
        JSON lines are appended to this file, and pictures already in it are left out.
    maps : path-like, optional
        Folder that gets an evidence map of each picture; videos have none.
    recursive : bool
        Whether folders below a folder are searched too.
    explain : bool
        Print what the detector is, how often it errs, and its limits.
    batch_size, workers : int
        Crops per batch; threads that decode.

    Returns
    -------
    int
        Exit status: 0 all pictures were scored, 1 some could not be read, 130 interrupted.

    Raises
    ------
    UserError
        On a mistake in the arguments, before anything is scored.
    """
    paths = [os.fspath(path) for path in paths]
    if not paths and not explain:
        raise UserError("no pictures are named; give files or folders, or - for a list on standard input")
    if form not in FORMATS:
        raise UserError(f"--format {printable(str(form))} is unknown; choose one of {', '.join(FORMATS)}")
    if batch_size < 1 or workers < 1:
        raise UserError("--batch-size and --workers must be at least 1; raise them")
    check_outputs(paths, resume, maps)
    found = find(paths, sys.stdin.buffer if "-" in paths else (), recursive)
    from anl.detect import card as cards  # not above: --help and mistakes need not wait for torch
    from anl.detect.detector import load_detector

    loaded = load_detector(detector, device, revision)
    if explain:
        print(cards.explain(loaded.card), file=sys.stderr if paths else sys.stdout)
    if not paths:
        return 0
    counts, earlier = collections.Counter(), 0
    with contextlib.ExitStack() as stack:
        done, writers = {}, []
        if resume:
            done, file = read_resumed(resume, loaded.card.identity)
            writers.append(JsonLines(stack.enter_context(file)))
        writers.append({"json": JsonLines, "csv": Csv, "table": Table}[form](sys.stdout))

        def wanted():
            nonlocal earlier
            for item in without(found, resume, maps):
                if item[0] in done:
                    earlier += 1
                    counts[done[item[0]]] += 1
                else:
                    yield item

        try:
            for row in _with_bar(score_files(loaded, wanted(), batch_size, workers, maps)):
                for writer in writers:
                    writer.add(row)
                counts[row["verdict"] or NOT_READ] += 1
        except KeyboardInterrupt:
            print("anl detect: interrupted; " + ("run the same command to go on" if resume else
                                                 "with --resume FILE a run can go on where it stopped"), file=sys.stderr)
            return 130
    print(f"anl detect: {describe_counts(counts, earlier, resume)}", file=sys.stderr)
    if counts and form == "table" and not explain:
        print(cards.summary(loaded.card), file=sys.stderr)
    return int(counts[NOT_READ] > 0)


def check_outputs(paths, resume=None, maps=None):
    """Raise UserError if the file to resume or the folder of maps cannot be one, or if that folder is an input, too."""
    for option, value in (("--resume", resume), ("--map", maps)):
        if value is not None and not os.fspath(value):
            raise UserError(f"{option} is empty; name a {'file' if option == '--resume' else 'folder'}, or leave it out")
    if maps is not None and os.path.lexists(maps) and not os.path.isdir(maps):
        raise UserError(f"--map {printable(os.fspath(maps))} is a file; name a folder")
    inputs = {os.path.realpath(path if os.path.isdir(path) else os.path.dirname(path) or ".") for path in paths if path != "-"}
    if maps is not None and os.path.realpath(maps) in inputs:
        raise UserError(f"--map {printable(os.fspath(maps))} is a folder of the pictures to score; name another one")


def score_files(detector, wanted, batch_size, workers, maps=None):
    """Yield a row (a dict with the keys FIELDS) for each (path, None or why it is not read) of `wanted`, in its order.

    Memory holds a few pictures and a batch of crops, whatever the number of files.
    """
    if maps:
        from anl.data.images import pad
        from anl.detect import maps as drawing

    def read(item):
        path, problem = item
        try:
            if problem is not None:
                raise Refused(problem)
            if video.starts_like_video(path):
                return (path, None), detector.tile_video(path), None
            pixels = decode_bytes(read_bytes(path))
        except Refused as refused:
            return (path, str(refused)), None, None
        return (path, None), detector.tile(pixels), drawing.overview(pad(pixels, detector.card.size)) if maps else None

    def pictures():
        # as many ahead as a batch may take, so that the next batch is read while this one is scored
        for key, tiled, small in read_ahead(wanted, read, workers, batch_size):
            if small is not None:
                drawing.save(maps, key[0], drawing.draw(detector, tiled, small))
            yield key, tiled

    for (path, problem), score in detector.stream(pictures(), batch_size):
        values = {} if score is None else {**score._asdict(), **rounded(score), "frames": None, "generated_share": None}
        if score is not None and score.frames:
            values |= {"frames": [{"time": round(frame.time, 3), **rounded(frame)} for frame in score.frames],
                       "generated_share": round(score.generated_share, 4)}
        yield {**dict.fromkeys(FIELDS), "path": path, **values, "problem": problem, "detector": detector.card.identity}


def rounded(score):
    """Probability and logit of a score, to four digits."""
    return {"probability": round(score.probability, 4), "logit": round(score.logit, 4)}


def read_ahead(items, read, workers, ahead):
    """Yield read(item) in the order of `items`, computed in threads at most max(3 * workers, ahead) items ahead."""
    with ThreadPoolExecutor(workers) as pool:
        items = iter(items)
        waiting = collections.deque(pool.submit(read, item) for item in itertools.islice(items, max(3 * workers, ahead)))
        try:
            while waiting:
                result = waiting.popleft().result()
                waiting.extend(pool.submit(read, item) for item in itertools.islice(items, 1))
                yield result
        finally:
            for future in waiting:
                future.cancel()


def _with_bar(rows):
    """A progress bar on standard error, unless the table itself shows the progress."""
    from tqdm import tqdm

    return tqdm(rows, unit=" pictures", file=sys.stderr, mininterval=1, disable=True if sys.stdout.isatty() else None)


# ---- which files -------------------------------------------------------------------------------------------------------
def find(names, listed=(), recursive=True):
    """Yield (path, None or why it is not read) for every file that the arguments name, each path once.

    Raises UserError, before anything is read, if a name is no file, folder or pattern with a match.
    """
    for name in names:
        if name != "-" and not os.path.lexists(name) and not glob.glob(name):
            raise UserError(f"there is no file, folder or match '{printable(name)}'; check the path")
    return _once(itertools.chain.from_iterable(_named(name, listed, recursive) for name in names))


def _once(found):
    seen = set()
    for path, problem in found:
        if path not in seen:
            seen.add(path)
            yield path, problem


def _named(name, listed, recursive):
    if name == "-":
        yield from ((os.fsdecode(line.rstrip(b"\r\n")), None) for line in listed if line.strip())
    elif os.path.isdir(name):
        for entries in walk(name) if recursive else itertools.islice(walk(name), 1):
            folder = os.path.join(name, entries.path) if entries.path else name
            yield from ((os.path.join(name, inner), problem) for inner, problem in entries.problems)
            yield from ((os.path.join(folder, file), None) for file in entries.files)
    elif os.path.lexists(name):
        yield name, None
    else:
        yield from ((path, None) for path in sorted(glob.glob(name)) if not os.path.isdir(path))


def without(found, file=None, folder=None):
    """The items of `find` without what the command itself writes: `file`, and the files in `folder`."""
    file, folder = (os.path.realpath(path) if path else None for path in (file, folder))
    for path, problem in found:
        real = os.path.realpath(path) if file or folder else None
        if real is None or (real != file and os.path.dirname(real) != folder):
            yield path, problem


# ---- reports -----------------------------------------------------------------------------------------------------------
class Table:
    """Aligned lines for a terminal; long paths keep their end. A few dozen validation images justify two digits only."""

    def __init__(self, stream):
        self.stream, self.room, self.begun = stream, max(24, shutil.get_terminal_size().columns - 26), False

    def add(self, row):
        if not self.begun:
            self.stream.write(f"{'verdict':<10} {'P(generated)':>13}  picture\n")
            self.begun = True
        name = printable(row["path"])
        name = name if len(name) <= self.room else f"...{name[3 - self.room:]}"
        first = f"{row['verdict'] or NOT_READ:<10} {two_digits(row['probability']):>13}  {name}"
        more = f": {printable(row['problem'])}" if row["problem"] else ""
        if row["frames"]:
            more = f": {row['generated_share']:.0%} of {len(row['frames'])} frames above 0.5"
        self.stream.write(f"{first}{more}\n")
        self.stream.flush()


def two_digits(probability):
    """A probability as text; never 0 or 1, which no detector can know."""
    if probability is None:
        return ""
    return "under 0.01" if probability < 0.01 else "over 0.99" if probability > 0.99 else f"{probability:.2f}"


class Csv:
    """A header, and a line per picture or video, of which `frames` is the number of frames."""

    def __init__(self, stream):
        self.stream, self.writer = stream, csv.DictWriter(stream, FIELDS, lineterminator="\n")
        self.writer.writeheader()

    def add(self, row):
        row = row | {"frames": row["frames"] and len(row["frames"])}
        self.writer.writerow({key: printable(value) if isinstance(value, str) else value for key, value in row.items()})
        self.stream.flush()


class JsonLines:
    """A JSON object per picture, in ASCII: names that are not UTF-8 are restored by os.fsencode."""

    def __init__(self, stream):
        self.stream = stream

    def add(self, row):
        self.stream.write(json.dumps(row) + "\n")
        self.stream.flush()


def describe_counts(counts, earlier=0, out=None):
    """One line: how many pictures got which verdict; `earlier` of them were in the file `out` before."""
    if not counts:
        return "no files in the given folders"
    read = ", ".join(f"{number} {verdict}" for verdict, number in sorted(counts.items()) if verdict != NOT_READ and number)
    unread = f"{counts[NOT_READ]} could not be read" if counts.get(NOT_READ) else ""
    before = f" ({earlier} of them were in {printable(str(out))} already)" if earlier else ""
    number = sum(counts.values())
    return f"{number} file{'s' if number > 1 else ''}: " + "; ".join(filter(None, (read, unread))) + before


def read_resumed(path, detector):
    """({path: verdict or NOT_READ}, file opened to append) of JSON lines; a last line that was cut short is removed.

    Raises UserError if the file holds anything else, or scores of another detector than the card identity `detector`.
    """
    done, whole = {}, 0
    try:
        if os.path.exists(path):
            with open(path, "rb") as file:
                for number, line in enumerate(file, 1):
                    cut = not line.endswith(b"\n")
                    try:
                        row = json.loads(line)
                    except ValueError:
                        if cut and (line.startswith(BEGIN) or BEGIN.startswith(line)):
                            break
                        row = None
                    if not isinstance(row, dict) or not row.keys() >= set(FIELDS):
                        raise UserError(f"{path}, line {number}, is not a line of `anl detect --format json`; name another file, or "
                                        "move this one away")
                    if cut:
                        break
                    if row["detector"] != detector:
                        raise UserError(f"{path}, line {number}, is a score of another detector, or of another card of this "
                                        "one; name another file")
                    done[row["path"]] = row["verdict"] or NOT_READ
                    whole += len(line)
            os.truncate(path, whole)
        return done, open(path, "a", encoding="ascii")  # the caller closes it
    except OSError as problem:
        raise UserError(f"{path} cannot be read and written ({problem.strerror}); name another file") from None
