"""Damaged files by the thousand for the decoder, the manifest reader and the reader of cards: `make fuzz` runs 100,000 of each.

Each must end in pixels, a table or a card, or in the one error that says what is wrong: no other exception, no hang, no
memory beyond the limit. Hypothesis shrinks what fails and prints how to repeat it; what hangs ends the process, and leaves the
input, and where it hung, in two files of the system's temporary folder.
"""

import contextlib
import faulthandler
import io
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from anl.data import decode, manifest
from anl.detect import card, explain
from anl.errors import UserError

COUNT = int(os.environ.get("ANL_FUZZ", "100"))
SECONDS = 10  # one input; the machine may be busy
HANGS = 60  # seconds after which one input counts as a hang, and the process is ended
LIMIT = 2**29  # bytes of address space beyond what is in use; threads and their arenas take some of it
OUT_OF_MEMORY = ("memory", "malloc", "allocat")  # words of a reason that means LIMIT was reached: nothing else guards a user
MAX_PIXELS = 1_000_000
FUZZ = settings(max_examples=COUNT, deadline=SECONDS * 1000, derandomize="ANL_FUZZ" not in os.environ, database=None,
                suppress_health_check=list(HealthCheck))


def seeds_of_images():
    """Small whole files of every format that is read, odd modes included."""
    rng, found = np.random.default_rng(0), []
    pixels = rng.integers(0, 256, (9, 13, 4), dtype=np.uint8)
    for kind, options in (("JPEG", {}), ("JPEG", {"progressive": True}), ("PNG", {}), ("WEBP", {}), ("WEBP", {"lossless": True}),
                          ("BMP", {}), ("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"}), ("GIF", {}), ("PPM", {}), ("AVIF", {})):
        stream = io.BytesIO()
        Image.fromarray(pixels[..., :3]).save(stream, kind, **options)
        found.append(stream.getvalue())
    for image in (Image.fromarray(pixels, "RGBA"), Image.fromarray(pixels[..., 0]), Image.fromarray(pixels[..., :3]).quantize(16),
                  Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)):
        stream = io.BytesIO()
        image.save(stream, "PNG")
        found.append(stream.getvalue())
    stream = io.BytesIO()
    Image.fromarray(pixels[..., :3]).convert("CMYK").save(stream, "JPEG")
    return [*found, stream.getvalue(), b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"<html><img src=x></html>", b""]


IMAGES = seeds_of_images()
HAND = Path(tempfile.gettempdir()) / f"anl-fuzz-{os.getpid()}"  # the input at hand


@st.composite
def damaged(draw, wholes):
    """Bytes of one of `wholes`, some of them changed, cut off, doubled, or taken from another."""
    data = bytearray(draw(st.sampled_from(wholes)))
    for _ in range(draw(st.integers(0, 6))):
        how = draw(st.sampled_from(("byte", "word", "cut", "double", "splice", "insert")))
        place = draw(st.integers(0, max(0, len(data) - 1)))
        if how == "byte" and data:
            data[place] = draw(st.integers(0, 255))
        elif how == "word":  # lengths and sizes: the largest, the smallest, the sign bit
            data[place:place + 4] = draw(st.sampled_from((b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff", b"\0\0\0\x80")))
        elif how == "cut":
            del data[place:]
        elif how == "double":
            data[place:place] = data[place:place + 64]
        elif how == "splice":
            data[place:] = draw(st.sampled_from(wholes))[place:]
        else:
            data[place:place] = draw(st.binary(max_size=16))
    return bytes(data)


def limited(call, data=b"", seconds=HANGS):
    """call() with the process's memory limited, so that an input that asks for too much fails here and not the machine, and
    with an alarm that ends the process if the call never returns: nothing else ends a loop in C."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    HAND.write_bytes(data)
    signal.alarm(seconds)
    resource.setrlimit(resource.RLIMIT_AS, (used + LIMIT, before[1]))
    try:
        return call()
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
        signal.alarm(0)


def is_reason(problem):
    """Whether an error is one readable line, and not the memory's limit."""
    text = str(problem)
    return text.isprintable() and not any(word in text for word in OUT_OF_MEMORY)


@pytest.fixture(scope="module", autouse=True)
def _watch():
    """Whoever is ended by the alarm says where it was."""
    with watched():
        yield


@contextlib.contextmanager
def watched():
    where = HAND.with_suffix(".txt")
    with open(where, "w") as file:
        faulthandler.register(signal.SIGALRM, file, chain=True)  # then what the signal does by itself: end the process
        yield
        faulthandler.unregister(signal.SIGALRM)
    where.unlink()
    HAND.unlink(missing_ok=True)


def test_what_hangs_or_asks_for_too_much_memory_is_ended():
    with pytest.raises(MemoryError):
        limited(lambda: bytearray(2 * LIMIT))
    hang = ("from tests.test_fuzz import HAND, limited, watched\nprint(HAND, flush=True)\n"
            "with watched(): limited(lambda: sum(iter(int, 1)), b'at hand', 1)")
    done = subprocess.run([sys.executable, "-c", hang], check=False, cwd=Path(__file__).parents[1], capture_output=True, text=True,
                          timeout=120)
    assert done.returncode == -signal.SIGALRM
    hand = Path(done.stdout.strip())
    where = hand.with_suffix(".txt")
    assert hand.read_bytes() == b"at hand" and "in limited" in where.read_text()
    hand.unlink()
    where.unlink()


@FUZZ
@given(damaged(IMAGES))
def test_image_bytes_become_pixels_or_a_reason(data):
    try:
        pixels = limited(lambda: decode.decode(data, MAX_PIXELS), data)
    except UserError as problem:
        assert "is refused: " in str(problem) and is_reason(problem)
        return
    assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3
    assert 0 < pixels.shape[0] * pixels.shape[1] <= MAX_PIXELS


@FUZZ
@given(damaged(IMAGES))
def test_a_header_agrees_with_the_pixels(data):
    try:
        header, pixels = limited(lambda: (decode.read_header(data, MAX_PIXELS), decode.decode_bytes(data, MAX_PIXELS)), data)
    except decode.Refused as problem:
        assert is_reason(problem)
        return
    assert (header.height, header.width) == pixels.shape[:2] and header.format in decode.FORMATS


def whole_manifest():
    """The bytes of a manifest of three rows."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.parquet"
        rows = {field.name: ["real", "gan", "real"] if pa.types.is_string(field.type) else [0, 1, 0] for field in manifest.SCHEMA}
        with manifest.writer(path, folder) as write:
            write(pa.table(rows, schema=manifest.SCHEMA))
        return path.read_bytes()


MANIFESTS = [whole_manifest()] * 6 + [b"PAR1PAR1", b""]


@FUZZ
@given(damaged(MANIFESTS))
def test_manifest_bytes_become_a_table_or_a_reason(data):
    with tempfile.NamedTemporaryFile(suffix=".parquet") as file:
        file.write(data)
        file.flush()
        try:
            table = limited(lambda: manifest.read(file.name), data)
        except UserError as problem:
            assert is_reason(str(problem).replace(file.name, ""))
            return
    assert isinstance(table, pd.DataFrame)


def whole_card():
    """A card as `anl card` writes it, of a detector of two generators."""
    rows = [{"of": name, "condition": "raw", "seen": name == "ddim", "n": 33, "AP": None if name == "real" else 0.9,
             "called_generated": 0.1, "called_undecided": 0.5, "called_real": 0.4} for name in ("real", "ddim")]
    return {"version": card.VERSION, "weights_sha256": "0" * 64, "size": 64, "rule": "mean", "midpoint": 0.2, "temperature": 0.5,
            "threshold": 1.0, "lower": -0.5, "measured": rows, "limits": ["A demonstration."], "licence": "MIT",
            "chosen_on": {"split": "validation", "n_real": 31, "n_fake": 31, "target_fpr": 0.05, "target_miss": 0.05,
                          "rules": [{"rule": "mean", "AP": 0.8}], "threshold_by_condition": {"raw": 0.0, "files": 1.0},
                          "files_above_untouched_threshold": 0.8},
            "trained_on": {"profile": "small", "spec": {"seed": 0}, "identity": "0", "generator": "ddim", "unseen": ["vae"],
                           "data": "data/photos.csv", "versions": {"anl": "1"}}}


ANYTHING = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just(-(10**400)),
                        lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
                        max_leaves=4)


@st.composite
def misstated(draw):
    """A card, some of its values at any depth something else, gone, or joined by another."""
    value = whole_card()
    for _ in range(draw(st.integers(1, 3))):
        place = value
        while True:
            key = draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
            if not (isinstance(place[key], (dict, list)) and place[key] and draw(st.booleans())):
                break
            place = place[key]
        if draw(st.booleans()):
            place[key] = draw(ANYTHING)
        elif len(place) > 1:
            del place[key]
    return value


@FUZZ
@given(misstated() | damaged([json.dumps(whole_card()).encode()]))
def test_a_card_is_sound_or_has_a_reason(value):
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / card.CARD).write_bytes(data)
        try:
            read = limited(lambda: card.read(folder), data)
        except UserError as problem:
            assert is_reason(str(problem).replace(folder, ""))
            return
    assert 0 <= read.probability(0.3) <= 1 and read.verdict(0.3) in (card.GENERATED, card.UNDECIDED, card.REAL_WORD)
    assert all(line.isprintable() for line in explain.text(read).split("\n"))  # whatever is believed can be read
