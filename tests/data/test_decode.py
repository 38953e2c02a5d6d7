import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile

from anl.data import decode
from anl.io import UserError
from tests.conftest import photograph
from tests.data.trees import encode

RGB = photograph(3, 40, 60)


def refused(data, **limits):
    with pytest.raises(UserError) as problem:
        decode.decode(data, **limits)
    return str(problem.value)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_formats_are_exact(tmp_path, kind):
    (tmp_path / "x.jpg").write_bytes(encode(RGB, kind))  # the name's suffix does not matter
    for source in (tmp_path / "x.jpg", str(tmp_path / "x.jpg"), encode(RGB, kind)):
        pixels = decode.decode(source)
        assert np.array_equal(pixels, RGB) and pixels.dtype == np.uint8 and pixels.flags.writeable


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "AVIF", "GIF"])
def test_lossy_formats(kind):
    pixels = decode.decode(encode(RGB, kind))
    assert pixels.shape == RGB.shape and np.abs(pixels.astype(float) - RGB).mean() < 12
    assert decode.read_header(encode(RGB, kind)) == (60, 40, kind, 75 if kind == "JPEG" else None)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("keep", [0.3, 0.97])
def test_truncated_files_are_refused(kind, keep, monkeypatch):
    data = encode(photograph(5, 200, 200), kind)
    data = data[:int(len(data) * keep)]
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)  # set by another library
    with pytest.raises(decode.Refused, match="truncated|cannot be decoded"):
        decode.read_header(data)
    assert "truncated" in refused(data) or "cannot be decoded" in refused(data)


def test_damage_inside_is_found_by_decoding():
    data = bytearray(encode(RGB, "PNG"))
    start = data.index(b"IDAT") + 200
    data[start:start + 40] = bytes(40)
    assert decode.read_header(bytes(data)).width == 60
    assert "cannot be decoded" in refused(bytes(data))


@pytest.mark.parametrize("data, words", [
    (b"", "empty (0 bytes)"), (b"hello, world", "not an image of a known format"),
    (b"%!PS-Adobe-3.0 EPSF-3.0\n", "not an image"),  # a format that runs a program
    (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "(HEIC: save it as JPEG or PNG)"), (b"\0\0\0\x18ftypmp42" + bytes(9), "(a video)"),
    (b"<?xml version='1.0'?>\n<svg/>", "(SVG, a vector drawing)"), (b"\n<!DOCTYPE html><p>", "(a web page)"),
    (b"%PDF-1.7\n", "(PDF)"), (encode(np.zeros((3, 3), np.float32), "TIFF"), "floating-point")])
def test_other_files_are_refused_with_what_they_are(data, words):
    assert words in refused(data)


def test_limits_are_checked_before_decoding(tmp_path, monkeypatch):
    whole = encode(RGB)
    (tmp_path / "a.png").write_bytes(whole)
    heads = []
    for size in ((30000, 30000), (10000, 9000)):  # Pillow only warns of the second
        header = b"IHDR" + struct.pack(">II", *size) + whole[24:29]
        heads.append(whole[:12] + header + struct.pack(">I", zlib.crc32(header)) + whole[33:])
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    for head in heads:
        assert "over the limit of" in refused(head)
        with pytest.raises(decode.Refused, match="over the limit"):
            decode.read_header(head)
    assert "60 x 40 pixels, over the limit of 100" in refused(whole, max_pixels=100)
    for source in (tmp_path / "a.png", whole):
        assert "bytes, over the limit of 99" in refused(source, max_bytes=99)


def test_long_and_narrow_images_are_read():
    assert decode.decode(encode(Image.new("RGB", (30000, 2), "red"))).shape == (2, 30000, 3)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_several_frames_are_refused(kind):
    frames = [Image.fromarray(photograph(seed, 20, 20)) for seed in range(3)]
    assert "(3 frames)" in refused(encode(frames[0], kind, save_all=True, append_images=frames[1:]))


def test_the_first_of_a_multi_picture_jpeg_is_read():
    first, second = Image.fromarray(RGB), Image.fromarray(RGB[:, ::-1].copy())
    data = encode(first, "MPO", save_all=True, append_images=[second], quality=95)
    assert decode.read_header(data).format == "JPEG"
    assert np.abs(decode.decode(data).astype(float) - RGB).mean() < 10


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "JPEG"])
def test_exif_rotation_is_applied(kind):
    exif = Image.Exif()
    exif[decode.ORIENTATION] = 6
    data = encode(RGB, kind, exif=exif)
    assert decode.read_header(data)[:2] == (40, 60) and decode.decode(data).shape == (60, 40, 3)
    assert kind == "JPEG" or np.array_equal(decode.decode(data), np.rot90(RGB, -1))


def test_other_modes_become_rgb():
    cmyk = encode(Image.fromarray(RGB).convert("CMYK"), "JPEG", quality=98)
    assert np.abs(decode.decode(cmyk).astype(float) - RGB).mean() < 4
    for mode in ("P", "L", "1"):
        image = Image.fromarray(RGB).convert(mode)
        assert np.array_equal(decode.decode(encode(image)), np.asarray(image.convert("RGB")))
    sixteen = np.array([[0, 257, 32896, 65535]], np.uint16)
    assert decode.decode(encode(sixteen))[0].tolist() == [[0] * 3, [1] * 3, [128] * 3, [255] * 3]
    image = Image.new("RGBA", (2, 1), (10, 20, 30, 0))
    image.putpixel((1, 0), (10, 20, 30, 255))
    assert decode.decode(encode(image)).tolist() == [[[255] * 3, [10, 20, 30]]]
    palette = Image.new("P", (2, 1), 0)
    palette.putpalette([9, 9, 9, 200, 0, 0])
    palette.putpixel((1, 0), 1)
    assert decode.decode(encode(palette, transparency=0)).tolist() == [[[255] * 3, [200, 0, 0]]]


def test_messages_are_one_line(tmp_path, monkeypatch):
    assert "cannot be opened (No such file" in refused(tmp_path / "none.png")
    assert "not a regular file" in refused(tmp_path)
    (tmp_path / "new\nline.png").write_bytes(b"x")
    message = refused(tmp_path / "new\nline.png")
    assert "\n" not in message and "new\\nline.png' is refused" in message

    def fail(image):
        raise SyntaxError("two\nlines")

    monkeypatch.setattr(decode, "to_rgb", fail)
    assert "two lines" in refused(encode(RGB))


# ---- JPEG quality --------------------------------------------------------------------------------------------------------
def tables(mode="RGB", **options):
    return Image.open(io.BytesIO(encode(Image.fromarray(RGB).convert(mode), "JPEG", **options))).quantization


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_the_quality_of_libjpeg_is_recovered(mode):
    qualities = [5, 10, 25, 40, *range(50, 101)]
    assert [decode.estimate_quality(tables(mode, quality=quality)) for quality in qualities] == qualities
    assert decode.estimate_quality(tables(quality=83, subsampling="4:4:4")) == 83
    written = tables(quality=75)
    assert np.array_equal(decode.standard_tables()[74], [written[0], written[1]])


def test_other_tables_give_the_nearest_quality():
    near = {key: [min(value + key % 2 + 1, 255) for value in table] for key, table in tables(quality=70).items()}
    assert abs(decode.estimate_quality(near) - 70) <= 4 and decode.estimate_quality({0: [1] * 64}) == 100
    assert decode.estimate_quality(None) is None and decode.estimate_quality({}) is None
