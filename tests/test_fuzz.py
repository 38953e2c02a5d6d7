"""Random damage to files for the decoders of images and videos, the manifest reader and the reader of detector cards.

Each input must give pixels, a table or a card, or a UserError: no other exception, no hang, no memory over the limit.
`ANL_FUZZ=100000 pytest -n 0 tests/test_fuzz.py` (`make fuzz`) tries that many of each. Hypothesis shrinks a failing input
and prints how to repeat it; an input that hangs ends the process and stays, with the stack, in two files of the temporary folder.
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

from anl.data import decode, manifest, video
from anl.detect import card
from anl.io import UserError
from tests.conftest import ROOT
from tests.data.test_video import write_video

COUNT = int(os.environ.get("ANL_FUZZ", "40"))
SECONDS = 10  # for one input, on a busy machine
HANGS = 60  # seconds after which an input counts as a hang, and the process is ended
LIMIT = 2**29  # bytes of address space beyond those in use; threads take some of it
OUT_OF_MEMORY = ("memory", "malloc", "allocat")  # words of a message that means LIMIT was reached: users have no such limit
MAX_PIXELS = 1_000_000
FUZZ = settings(max_examples=COUNT, deadline=SECONDS * 1000, derandomize="ANL_FUZZ" not in os.environ, database=None,
                suppress_health_check=list(HealthCheck))


def whole_images():
    """Small intact files of every format that is read, including unusual modes."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (9, 13, 4), dtype=np.uint8)
    rgb = Image.fromarray(pixels[..., :3])
    pictures = [(rgb, "JPEG", {}), (rgb, "JPEG", {"progressive": True}), (rgb, "PNG", {}), (rgb, "WEBP", {}), (rgb, "WEBP", {"lossless": True}),
                (rgb, "BMP", {}), (rgb, "TIFF", {}), (rgb, "TIFF", {"compression": "tiff_lzw"}), (rgb, "GIF", {}), (rgb, "PPM", {}),
                (rgb, "AVIF", {}), (rgb.convert("CMYK"), "JPEG", {}), (Image.fromarray(pixels, "RGBA"), "PNG", {}),
                (Image.fromarray(pixels[..., 0]), "PNG", {}), (rgb.quantize(16), "PNG", {}),
                (Image.fromarray(pixels[..., 0].astype(np.uint16) * 257), "PNG", {})]
    found = []
    for image, kind, options in pictures:
        stream = io.BytesIO()
        image.save(stream, kind, **options)
        found.append(stream.getvalue())
    return [*found, b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"<html><img src=x></html>", b""]


IMAGES = whole_images()
CURRENT = Path(tempfile.gettempdir()) / f"anl-fuzz-{os.getpid()}"  # the input being tried


@st.composite
def damaged(draw, wholes):
    """Bytes of one of `wholes`, with some changed, cut off, doubled, or taken from another."""
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
    """call() with limited memory, and with an alarm that ends the process if it does not return (a loop in C)."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    CURRENT.write_bytes(data)
    signal.alarm(seconds)
    resource.setrlimit(resource.RLIMIT_AS, (used + LIMIT, before[1]))
    try:
        return call()
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
        signal.alarm(0)


def is_message(problem):
    """Whether an error is one readable line, and not caused by the memory limit."""
    text = str(problem)
    return text.isprintable() and not any(word in text for word in OUT_OF_MEMORY)


@contextlib.contextmanager
def watched():
    """Write the stack to a file before the alarm ends the process."""
    stack = CURRENT.with_suffix(".txt")
    with open(stack, "w") as file:
        faulthandler.register(signal.SIGALRM, file, chain=True)
        yield
        faulthandler.unregister(signal.SIGALRM)
    stack.unlink()
    CURRENT.unlink(missing_ok=True)


@pytest.fixture(scope="module", autouse=True)
def _watched():
    with watched():
        yield


def test_hangs_and_excessive_memory_are_ended():
    with pytest.raises(MemoryError):
        limited(lambda: bytearray(2 * LIMIT))
    hang = ("from tests.test_fuzz import CURRENT, limited, watched\nprint(CURRENT, flush=True)\n"
            "with watched(): limited(lambda: sum(iter(int, 1)), b'input', 1)")
    done = subprocess.run([sys.executable, "-c", hang], check=False, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == -signal.SIGALRM
    current = Path(done.stdout.strip())
    stack = current.with_suffix(".txt")
    assert current.read_bytes() == b"input" and "in limited" in stack.read_text()
    current.unlink()
    stack.unlink()


@FUZZ
@given(damaged(IMAGES))
def test_images_are_decoded_or_refused(data):
    try:
        pixels = limited(lambda: decode.decode(data, MAX_PIXELS), data)
    except UserError as problem:
        assert "is refused: " in str(problem) and is_message(problem)
        return
    assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3
    assert 0 < pixels.shape[0] * pixels.shape[1] <= MAX_PIXELS
    header = decode.read_header(data, MAX_PIXELS)
    assert (header.height, header.width) == pixels.shape[:2] and header.format in decode.FORMATS


@FUZZ
@given(damaged(IMAGES))
def test_headers_are_read_or_refused(data):
    try:
        header = limited(lambda: decode.read_header(data, MAX_PIXELS), data)
    except decode.Refused as problem:
        assert is_message(problem)
        return
    assert 0 < header.height * header.width <= MAX_PIXELS


def whole_videos(folder):
    return [write_video(Path(folder) / name, frames=6, codec=codec, gop=3).read_bytes()
            for name, codec in (("a.mp4", "mpeg4"), ("a.webm", "libvpx"))]


with tempfile.TemporaryDirectory() as place:
    VIDEOS = whole_videos(place)


@FUZZ
@given(damaged(VIDEOS))
def test_videos_are_decoded_or_refused(data):
    CURRENT.write_bytes(data)
    try:
        frames = limited(lambda: list(video.read_frames(CURRENT, 3, MAX_PIXELS)), data)
    except decode.Refused as problem:
        assert is_message(problem)
        return
    assert 1 <= len(frames) <= 3
    assert all(frame.pixels.dtype == np.uint8 and frame.pixels.ndim == 3 and frame.pixels.size <= 3 * MAX_PIXELS for frame in frames)


def whole_manifest():
    """The bytes of a manifest of three rows."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.parquet"
        rows = {field.name: ["real", "gan", "real"] if pa.types.is_string(field.type) else [0, 1, 0] for field in manifest.SCHEMA}
        with manifest.writer(path, folder) as write:
            write(pa.table(rows, schema=manifest.SCHEMA))
        return path.read_bytes()


@FUZZ
@given(damaged([whole_manifest()] * 6 + [b"PAR1PAR1", b""]))
def test_manifests_are_read_or_refused(data):
    with tempfile.NamedTemporaryFile(suffix=".parquet") as file:
        file.write(data)
        file.flush()
        try:
            table = limited(lambda: manifest.read(file.name), data)
        except UserError as problem:
            assert is_message(str(problem).replace(file.name, ""))
            return
    assert isinstance(table, pd.DataFrame)


def whole_card():
    """A detector's card, as JSON values."""
    rows = [{"generator": name, "condition": "raw", "seen": name == "ddim", "n": 33, "auroc": None if name == "real" else 0.9,
             "generated": 0.1, "undecided": 0.5, "real": 0.4} for name in ("real", "ddim")]
    return {"version": 4, "weights_sha256": "0" * 64, "settings": {"kind": "detector"}, "size": 64, "midpoint": 0.2, "temperature": 0.5,
            "threshold": 1.0, "lower": -0.5, "measured": rows, "limits": ["A demonstration."], "licence": "MIT",
            "calibration": {"n_real": 31, "n_generated": 31, "target_fpr": 0.05, "target_miss": 0.05,
                            "fpr_by_condition": {"raw": 0.0, "files": 0.05}},
            "training": {"profile": "small", "seen": ["ddim"], "unseen": ["vae"], "data": "data/photos.csv", "run": {"seed": 0}}}


VALUES = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just(-(10**400)),
                      lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2), max_leaves=4)


@st.composite
def altered(draw):
    """A card with some values, at any depth, replaced or removed."""
    value = whole_card()
    for _ in range(draw(st.integers(1, 3))):
        place = value
        while True:
            key = draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
            if not (isinstance(place[key], (dict, list)) and place[key] and draw(st.booleans())):
                break
            place = place[key]
        if draw(st.booleans()):
            place[key] = draw(VALUES)
        elif len(place) > 1:
            del place[key]
    return value


@FUZZ
@given(altered() | damaged([json.dumps(whole_card()).encode()]))
def test_cards_are_read_or_refused(value):
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / card.CARD).write_bytes(data)
        try:
            read = limited(lambda: card.read(folder), data)
        except UserError as problem:
            assert is_message(str(problem).replace(folder, ""))
            return
    assert 0 <= read.probability(0.3) <= 1 and read.verdict(0.3) in card.VERDICTS
    assert all(line.isprintable() for line in card.explain(read).split("\n"))
