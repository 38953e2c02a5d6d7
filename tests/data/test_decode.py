import io

import numpy as np
import pytest
from PIL import Image

from anl.data import decode, photos
from anl.errors import UserError
from tests.conftest import photograph

RGB = photograph(3, 40, 60)


def encoded(image, kind="PNG", **options):
    stream = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(stream, format=kind, **options)
    return stream.getvalue()


def refused(data, **limits):
    with pytest.raises(UserError) as problem:
        decode.decode(data, **limits)
    return str(problem.value)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_formats_come_back_as_they_are(tmp_path, kind):
    (tmp_path / "x.jpg").write_bytes(encoded(RGB, kind))  # the name's ending does not matter
    for source in (tmp_path / "x.jpg", str(tmp_path / "x.jpg"), encoded(RGB, kind)):
        pixels = decode.decode(source)
        assert np.array_equal(pixels, RGB) and pixels.dtype == np.uint8 and pixels.flags.writeable


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "AVIF", "GIF"])
def test_lossy_formats(kind):
    pixels = decode.decode(encoded(RGB, kind))
    assert pixels.shape == RGB.shape and np.abs(pixels.astype(float) - RGB).mean() < 12
    header = decode.read_header(encoded(RGB, kind))
    assert header == (60, 40, kind, 75 if kind == "JPEG" else None)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("keep", [0.3, 0.7, 0.97])
def test_cut_short_is_refused_by_header_and_by_decoding(kind, keep):
    data = encoded(photograph(5, 200, 200), kind)
    data = data[:int(len(data) * keep)]
    with pytest.raises(decode.Refused, match="cut short|cannot be decoded"):
        decode.read_header(data)
    assert "cut short" in refused(data) or "cannot be decoded" in refused(data)


def test_padding_of_cut_images_switched_on_elsewhere_changes_nothing(monkeypatch):
    from PIL import ImageFile

    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    data = encoded(RGB, "JPEG")
    assert "cut short" in refused(data[:-len(data) // 3])


def test_damage_inside_is_found_by_decoding():
    data = bytearray(encoded(RGB, "PNG"))
    start = data.index(b"IDAT") + 200
    data[start:start + 40] = bytes(40)
    assert decode.read_header(bytes(data)).width == 60
    assert "cannot be decoded" in refused(bytes(data))


def test_empty_and_no_image():
    assert "empty (0 bytes)" in refused(b"")
    assert "no image of a known format" in refused(b"hello, world")
    assert "no image of a known format" in refused(b"%!PS-Adobe-3.0 EPSF-3.0\n")  # a format that runs a program


@pytest.mark.parametrize("data, words", [
    (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "(HEIC: save it as JPEG or PNG)"), (b"\0\0\0\x18ftypmp42" + bytes(9), "(a film)"),
    (b"<?xml version='1.0'?>\n<svg/>", "(SVG, a drawing without pixels)"), (b"\n<!DOCTYPE html><p>", "(a web page)"),
    (b"%PDF-1.7\n", "(PDF)")])
def test_what_people_take_for_pictures_is_named(data, words):
    assert words in refused(data)


def test_too_many_pixels_are_refused_before_they_are_decoded(monkeypatch):
    head = encoded(Image.new("1", (30000, 30000)), "PNG")
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    assert "30000 x 30000 pixels" in refused(head) or "too many pixels" in refused(head)
    with pytest.raises(decode.Refused, match="over the limit"):
        decode.read_header(head)


def test_long_and_narrow_is_no_bomb():
    assert decode.decode(encoded(Image.new("RGB", (30000, 2), "red"))).shape == (2, 30000, 3)


def test_pillows_limit_is_an_error_where_pillow_only_warns():
    head = encoded(Image.new("1", (10000, 9000)), "PNG")  # 90 million: Pillow warns, and decodes
    assert "over the limit" in refused(head)


def test_limits_can_be_set(tmp_path):
    assert "60 x 40 pixels, over the limit of 100" in refused(encoded(RGB), max_pixels=100)
    (tmp_path / "a.png").write_bytes(encoded(RGB))
    for source in (tmp_path / "a.png", encoded(RGB)):
        assert "bytes, over the limit of 99" in refused(source, max_bytes=99)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_animated_is_refused(kind):
    frames = [Image.fromarray(photograph(seed, 20, 20)) for seed in range(3)]
    assert "animated or of several pages (3 frames)" in refused(encoded(frames[0], kind, save_all=True,
                                                                        append_images=frames[1:]))


def test_pages_of_a_tiff_are_refused_and_the_first_of_a_multi_picture_jpeg_is_read():
    first, second = Image.fromarray(RGB), Image.fromarray(RGB[:, ::-1].copy())
    assert "(2 frames)" in refused(encoded(first, "TIFF", save_all=True, append_images=[second]))
    data = encoded(first, "MPO", save_all=True, append_images=[second], quality=95)
    assert decode.read_header(data).format == "JPEG"
    assert np.abs(decode.decode(data).astype(float) - RGB).mean() < 10
    assert np.abs(decode.decode(data).astype(float) - RGB[:, ::-1]).mean() > 20


def test_exif_rotation_is_applied_and_counted():
    exif = Image.Exif()
    exif[decode.ORIENTATION] = 6  # the camera lay on its side
    for kind in ("PNG", "TIFF"):
        data = encoded(RGB, kind, exif=exif)
        assert np.array_equal(decode.decode(data), np.rot90(RGB, -1))
        assert decode.read_header(data)[:2] == (40, 60)
    assert decode.read_header(encoded(RGB, "JPEG", exif=exif))[:2] == (40, 60)
    assert decode.decode(encoded(RGB, "JPEG", exif=exif)).shape == (60, 40, 3)


def test_cmyk_palette_grey_and_one_bit_become_rgb():
    assert np.abs(decode.decode(encoded(Image.fromarray(RGB).convert("CMYK"), "JPEG", quality=98)).astype(float)
                  - RGB).mean() < 4
    for mode in ("P", "L", "1"):
        image = Image.fromarray(RGB).convert(mode)
        assert np.array_equal(decode.decode(encoded(image)), np.asarray(image.convert("RGB")))


def test_sixteen_bits_are_scaled():
    values = np.array([[0, 257, 32896, 65535]], np.uint16)
    assert decode.decode(encoded(values))[0].tolist() == [[0] * 3, [1] * 3, [128] * 3, [255] * 3]


def test_floating_point_is_refused():
    assert "floating-point" in refused(encoded(np.zeros((3, 3), np.float32), "TIFF"))


def test_transparency_lies_on_white():
    image = Image.new("RGBA", (2, 1), (10, 20, 30, 0))
    image.putpixel((1, 0), (10, 20, 30, 255))
    assert decode.decode(encoded(image)).tolist() == [[[255] * 3, [10, 20, 30]]]
    palette = Image.new("P", (2, 1), 0)
    palette.putpalette([9, 9, 9, 200, 0, 0])
    palette.putpixel((1, 0), 1)
    assert decode.decode(encoded(palette, transparency=0)).tolist() == [[[255] * 3, [200, 0, 0]]]


def test_files_that_are_none(tmp_path):
    assert "cannot be opened (No such file" in refused(tmp_path / "none.png")
    assert "not a regular file" in refused(tmp_path)
    name = tmp_path / "new\nline.png"
    name.write_bytes(b"x")
    assert "\n" not in refused(name) and "new\\nline.png' is refused" in refused(name)


def test_a_message_of_many_lines_stays_one(monkeypatch):
    def fail(image):
        raise SyntaxError("two\nlines")

    monkeypatch.setattr(decode, "to_rgb", fail)
    assert "\n" not in refused(encoded(RGB)) and "two lines" in refused(encoded(RGB))


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "LA", "I;16", "1"])
def test_it_agrees_with_the_decoder_of_the_photographs(tmp_path, mode):
    image = (Image.fromarray(RGB[..., 0].astype(np.uint16) * 200) if mode == "I;16"
             else Image.fromarray(RGB).convert(mode))
    (tmp_path / "a.png").write_bytes(encoded(image))
    assert np.array_equal(decode.decode(tmp_path / "a.png"), photos.decode(tmp_path / "a.png"))
