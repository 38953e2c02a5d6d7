"""Damaged files by the thousand for the decoder and the manifest reader: `make fuzz` runs 100,000 of each kind.

Each must end in pixels or a table, or in the one error that says what is wrong: no other exception, no hang, no memory
beyond the limit. Hypothesis shrinks what fails and prints how to repeat it.
"""

import io
import os
import resource
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from anl.data import decode, manifest
from anl.errors import UserError

COUNT = int(os.environ.get("ANL_FUZZ", "100"))
SECONDS = 10  # one input; the machine may be busy
LIMIT = 3 * 2**30  # bytes of address space beyond what is in use
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


def limited(call):
    """call() with the process's memory limited, so that an input that asks for too much fails here and not the machine."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + LIMIT, before[1]))
    try:
        return call()
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@FUZZ
@given(damaged(IMAGES))
def test_image_bytes_become_pixels_or_a_reason(data):
    try:
        pixels = limited(lambda: decode.decode(data, MAX_PIXELS))
    except UserError as problem:
        assert "is refused: " in str(problem) and "\n" not in str(problem)
        return
    assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3
    assert 0 < pixels.shape[0] * pixels.shape[1] <= MAX_PIXELS


@FUZZ
@given(damaged(IMAGES))
def test_a_header_agrees_with_the_pixels(data):
    try:
        header = limited(lambda: decode.read_header(data, MAX_PIXELS))
        pixels = decode.decode_bytes(data, MAX_PIXELS)
    except decode.Refused as problem:
        assert str(problem)
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


MANIFESTS = [whole_manifest(), b"PAR1PAR1", b""]


@FUZZ
@given(damaged(MANIFESTS))
def test_manifest_bytes_become_a_table_or_a_reason(data):
    with tempfile.NamedTemporaryFile(suffix=".parquet") as file:
        file.write(data)
        file.flush()
        try:
            table = limited(lambda: manifest.read(file.name))
        except UserError as problem:
            assert "\n" not in str(problem)
            return
    assert isinstance(table, pd.DataFrame)
