"""Write what the book's demo loads: the packaged detector as ONNX, its card, and sample patches.

They are written as scripts, because a page opened from a file may load scripts and nothing else. The demo's own code
(book/_static/demo) holds no number of the detector: it reads them from these scripts.
"""

import base64
import contextlib
import json
import tempfile
from pathlib import Path

import numpy as np

from anl.data import REAL
from anl.data.decode import MAX_BYTES, MAX_PIXELS, decode
from anl.data.images import to_tensor
from anl.data.processing import encode
from anl.detect import maps
from anl.detect.card import FILES
from anl.detect.onnx_file import INPUT, export_onnx, open_session
from anl.detect.tiles import MAX_CROPS
from anl.io import UserError, write_text

RUNTIME = Path("vendor") / "onnxruntime-web"  # next to the demo's folder


def write_demo(folder, *, config, detector):
    """Write model.js (the ONNX file) and samples.js (card and patches) into the demo's folder.

    Parameters
    ----------
    folder : path-like
        The book's `_static/demo`, next to `vendor/onnxruntime-web`.
    config : Config
        The patches come from its benchmark.
    detector : ImageDetector

    Returns
    -------
    list of str
        Lines that say what was written.

    Raises
    ------
    UserError
        If the runtime or the benchmark is missing.
    """
    folder = Path(folder)
    scripts = [folder.parent / RUNTIME / name for name in ("ort.wasm.min.js", "ort-wasm.js")]
    for path in scripts:
        if not path.is_file():
            raise UserError(f"{path} is missing; get it again with `git checkout {path}`")
    with tempfile.TemporaryDirectory() as temporary:
        onnx = Path(temporary) / "detector.onnx"
        export_onnx(detector, onnx, int8=True)
        write_script(folder / "model.js", "onnx", base64.b64encode(onnx.read_bytes()).decode())
        chosen = samples(detector.card, config)
        rounding = _rounding(detector, onnx, [decode(base64.b64decode(sample["png"])) for sample in chosen])
    size = sum(path.stat().st_size for path in [*scripts, folder / "model.js"])
    write_script(folder / "samples.js", "built", {"card": page_card(detector.card), "samples": chosen,
                                                  "words": words(detector.card, size, len(chosen)) | {"rounding": f"{rounding:.3f}"}})
    return [f"{folder}: model.js and samples.js with {len(chosen)} patches; the page loads {size / 1e6:.1f} MB"]


def _rounding(detector, onnx, patches):
    """The largest change of a patch's probability caused by int8 weights; 0 without patches."""
    if not patches:
        return 0.0
    crops = np.stack(patches)
    logit, *_ = open_session(onnx).run(None, {INPUT: to_tensor(crops).numpy()})
    probability = detector.card.probability
    return max(abs(probability(small) - probability(full)) for small, full in zip(logit, detector.logits(crops), strict=True))


def write_script(path, name, value):
    """Write a script that assigns `value`, which must be JSON-serialisable, to `window.anlDemo.<name>`."""
    text = json.dumps(value, sort_keys=True, allow_nan=False).replace("</", "<\\/")
    write_text(path, f"(window.anlDemo ??= {{}}).{name} = {text};\n")


def page_card(card):
    """Everything that the page needs to score, judge and draw as Python does."""
    return {"size": card.size, "most": MAX_CROPS, "midpoint": card.midpoint, "temperature": card.temperature,
            "threshold": card.threshold, "lower": card.lower, "input": INPUT,
            "limits": {"bytes": MAX_BYTES, "pixels": MAX_PIXELS},
            "draw": {"dim": maps.DIM, "blend": maps.BLEND, "clip": maps.CLIP, "generated": maps.GENERATED, "real": maps.REAL}}


def words(card, size, samples):
    """Texts that the page inserts into its prose, by name, so that no number is typed there."""
    rows = {(row.generator, row.condition): row for row in card.measured}
    real = rows.get((REAL, FILES)) or rows.get((REAL, "raw"))
    seen = rows.get((card.training.seen[0], "raw"))
    return {"download": f"{size / 1e6:.1f} MB", "samples": str(samples), "most": str(MAX_CROPS), "size": str(card.size),
            "pixels": f"{MAX_PIXELS / 1e6:.0f} million", "bytes": f"{MAX_BYTES // 2**20} MiB",
            "weights": card.weights_sha256[:10], "seen": ", ".join(card.training.seen), "data": card.training.data,
            "n_real": str(real.n) if real else "no", "real_undecided": f"{real.undecided:.0%}" if real else "none",
            "real_generated": f"{real.generated:.0%}" if real else "none",
            "seen_generated": f"{seen.generated:.0%}" if seen else "none"}


def samples(card, config):
    """Patches to try, [{name, generator, of, credit, png}].

    They are chosen by a rule, not by hand. Real patches alternate with those of one generator after the other, those trained
    on first. Each patch is the first by name from the first test group that was not used before. The list is ordered by the
    hash of their bytes, so that the position reveals nothing.
    """
    generators = [name for name in dict.fromkeys([*card.training.seen, *card.training.held_out, *card.training.unseen]) if name in config.families]
    with _benchmark(card, config, generators) as benchmark:
        return _chosen(card, config, benchmark, generators)


@contextlib.contextmanager
def _benchmark(card, config, generators):
    """The profile's benchmark or, for a detector of another crop size, a small one that is made here from the same photographs.

    In the small one, crops are not halved, and the generators regenerate them in the detector's size.
    """
    from anl.training.benchmark import make_benchmark
    from anl.training.runs import open_benchmark

    if config.benchmark.size == card.size or not generators:
        yield open_benchmark(config)
        return
    with tempfile.TemporaryDirectory() as folder:
        most = 2 * len(generators)
        config = config.override(
            benchmark={"folder": f"{folder}/samples", "size": card.size, "halve": False, "seen": generators[:1], "held_out": [],
                       "patches": {"train": 1, "val": 1, "test": 1}, "use": {"train": 1, "val": 1, "test": most}},
            families={name: None for name in config.families if name not in generators},
            experiments=dict.fromkeys(config.experiments), run={"cache": f"{folder}/cache"})
        make_benchmark(config)
        yield open_benchmark(config)


def _chosen(card, config, benchmark, generators):
    test = benchmark.rows[benchmark.rows["split"] == "test"]
    generators = [name for name in generators if name in set(test["generator"])]
    turns, found, used = [name for generator in generators for name in (REAL, generator)], [], set()
    for generator in turns:
        part = test[(test["generator"] == generator) & ~test["group"].isin(used)]
        if len(part):
            row = part.sort_values(["group", "image_id"]).head(1)
            used.add(row["group"].iloc[0])
            found.append(row)
    credits, patches = _credits(config), []
    for row in sorted(found, key=lambda row: row["sha256"].iloc[0]):
        generator, group = row["generator"].iloc[0], str(row["group"].iloc[0])
        photo = row["image_id"].iloc[0].partition("/")[2].rpartition("@")[0]
        seen = "trained on" if generator in card.training.seen else "not trained on"
        patches.append({"name": row["image_id"].iloc[0], "generator": generator,
                        "of": "a real photograph" if generator == REAL else f"made by {generator}, {seen}",
                        "credit": credits.get(photo, group),
                        "png": base64.b64encode(encode(benchmark.pixels(row)[0])).decode()})
    return patches


def _credits(config):
    """dict photo id -> file, author and licence; empty unless the benchmark is made from the photographs of data.card."""
    from anl.data.photos import read_card

    if config.benchmark.kind != "embedded" or config.benchmark.manifest:
        return {}
    return {photo.id: f"{photo.file}, {photo.author}, {photo.licence}" for photo in read_card(config.data.card)}
