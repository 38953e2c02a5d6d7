"""What the book's page "Try it" is fed: the detector in use as ONNX with its card's rule, and patches to try it on, as scripts.

Scripts, because a page opened from a file may load those and nothing else. The page's own code (book/_static/demo) holds no
number of the detector: it reads them here.
"""

import base64
import json
from pathlib import Path

from matplotlib import colormaps

from anl.benchmark import REAL, encode, read_images, read_manifest
from anl.data.decode import MAX_BYTES, MAX_PIXELS
from anl.data.photos import read_card
from anl.detect import card as cards
from anl.detect import crops, export, maps, scorer
from anl.errors import UserError
from anl.files import identity, sha256_of, write_text

RUNTIME = Path("_static") / "vendor" / "onnxruntime-web"  # in the book's folder
CODE = ("detector.py", "attention.py", "detect/export.py")  # what decides the exported bytes, beside weights and card


def write(folder, params, detector, book, cache=".cache/anl"):
    """Write model.js and samples.js into `folder`; returns {key: text} for the prose.

    detector: its folder. book: the book's, which holds the runtime. cache: keeps the exported file, which takes a minute to
    make. Raises UserError if the detector, the benchmark or the runtime is missing.
    """
    folder, runtime = Path(folder), Path(book) / RUNTIME
    scripts = [runtime / "ort.wasm.min.js", runtime / "ort-wasm.js"]
    if missing := [path for path in scripts if not path.is_file()]:
        raise UserError(f"{missing[0]} is missing; get it again with `git checkout {missing[0]}`")
    card = cards.read(detector)
    onnx = exported(detector, card, cache).read_bytes()
    write_script(folder / "model.js", "model", {"card": rule(card), "onnx": base64.b64encode(onnx).decode()})
    chosen = samples(card, params)
    write_script(folder / "samples.js", "samples", chosen)
    size = sum(path.stat().st_size for path in [*scripts, folder / "model.js"])
    return {"download": f"{size / 1e6:.1f} MB", "samples": str(len(chosen)), "most": str(crops.MOST),
            "max_pixels": f"{MAX_PIXELS / 1e6:.0f} million", "max_bytes": f"{MAX_BYTES // 2**20} MiB",
            "weights": card.weights_sha256[:10]}


def write_script(path, name, value):
    """Write a script that leaves `value` (of JSON) in anlDemo.<name>; keys are sorted."""
    text = json.dumps(value, sort_keys=True, allow_nan=False).replace("</", "<\\/")
    write_text(path, f"(window.anlDemo ??= {{}}).{name} = {text};\n")


def exported(detector, card, cache):
    """The detector in use as ONNX: a path in `cache`, made if it is not there yet."""
    import onnx
    import torch

    here = Path(__file__).parent
    key = identity({"weights": card.weights_sha256, "card": card.whole, "torch": torch.__version__, "onnx": onnx.__version__,
                    "code": [sha256_of(here / name) for name in CODE]})
    path = Path(cache) / "onnx" / f"{key}.onnx"
    if not path.is_file():
        export.export(scorer.ImageDetector.load(detector), path)
    return path


def rule(card):
    """All that the page must know to score, judge and draw as Python does."""
    return {"size": card.size, "most": crops.MOST, "rule": card.rule, "midpoint": card.midpoint,
            "temperature": card.temperature, "threshold": card.threshold, "lower": card.lower, "input": export.INPUT,
            "words": {"generated": cards.GENERATED, "real": cards.REAL_WORD, "undecided": cards.UNDECIDED},
            "limits": {"bytes": MAX_BYTES, "pixels": MAX_PIXELS},
            "draw": {"dim": maps.DIM, "blend": maps.BLEND, "clip": maps.CLIP, "levels": maps.LEVELS,
                     "colours": base64.b64encode((colormaps["magma"](range(256))[:, :3] * 255).astype("uint8").tobytes()).decode()}}


def samples(card, params):
    """The patches to try, [{name, maker, of, credit, png}], in the order of their bytes' hashes, so that the place tells nothing.

    By rule, unseen: the k-th takes the first patch of the k-th test photograph by name, in turn as it is and as the next
    generator made it, first the one that the detector was trained on, until each generator had its turn.
    """
    trained = card.whole["trained_on"]
    makers = [trained["generator"], *trained["unseen"]]
    turns = [maker for generator in makers for maker in (REAL, generator)]
    manifest = read_manifest(params.benchmark.folder)
    test = manifest[manifest["split"] == "test"]
    photos = {photo.id: photo for photo in read_card(params.data.card)}
    rows = []
    for generator, photo in zip(turns, sorted(test["photo"].unique()), strict=False):
        mine = test[(test["generator"] == generator) & (test["photo"] == photo)].sort_values(["top", "left"])
        rows.append(mine.head(1))
    found = []
    for row in sorted((row for row in rows if len(row)), key=lambda row: row["sha256"].iloc[0]):
        generator, photo = row["generator"].iloc[0], photos[row["photo"].iloc[0]]
        seen = "seen in training" if generator == trained["generator"] else "not seen in training"
        found.append({"name": row["sample_id"].iloc[0], "maker": generator,
                      "of": "a real photograph" if generator == REAL else f"regenerated by {generator}, {seen}",
                      "credit": f"{photo.file}, {photo.author}, {photo.licence}",
                      "png": base64.b64encode(encode(read_images(params.benchmark.folder, row)[0])).decode()})
    return found
