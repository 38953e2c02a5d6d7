import csv
import hashlib

import numpy as np
import pytest
from PIL import Image

from anl.data import photos
from anl.errors import UserError
from tests.conftest import ROOT, photograph

RGB = photograph(3, 40, 60)


def save(path, image, **options):
    image.save(path, **options)
    return path


def test_rgb_comes_back_as_it_is(tmp_path):
    assert np.array_equal(photos.decode(save(tmp_path / "a.png", Image.fromarray(RGB))), RGB)


def test_zero_bytes(tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"a\.png is empty \(0 bytes\); replace or remove it"):
        photos.decode(tmp_path / "a.png")


@pytest.mark.parametrize("kind", ["png", "jpg", "webp"])
def test_cut_short_is_refused_not_padded(tmp_path, kind):
    path = save(tmp_path / f"a.{kind}", Image.fromarray(RGB))
    path.write_bytes(path.read_bytes()[:-len(path.read_bytes()) // 3])
    with pytest.raises(UserError, match="cannot be decoded .*replace or remove it") as problem:
        photos.decode(path)
    assert "\n" not in str(problem.value)


def test_no_image_at_all(tmp_path):
    (tmp_path / "a.jpg").write_text("hello")
    with pytest.raises(UserError, match=r"a\.jpg cannot be decoded"):
        photos.decode(tmp_path / "a.jpg")


def test_absent(tmp_path):
    with pytest.raises(UserError, match=r"a\.jpg does not exist"):
        photos.decode(tmp_path / "a.jpg")


def test_a_single_pixel(tmp_path):
    path = save(tmp_path / "a.png", Image.new("RGB", (1, 1), "red"))
    assert photos.decode(path).tolist() == [[[255, 0, 0]]]
    with pytest.raises(UserError, match="1 x 1 pixels, smaller than the 16 needed"):
        photos.decode(path, 16)


def test_cmyk(tmp_path):
    path = save(tmp_path / "a.jpg", Image.fromarray(RGB).convert("CMYK"), quality=98)
    assert np.abs(photos.decode(path).astype(float) - RGB).mean() < 4


def test_palette_and_grey(tmp_path):
    palette = Image.fromarray(RGB).convert("P")
    assert np.array_equal(photos.decode(save(tmp_path / "a.png", palette)), np.asarray(palette.convert("RGB")))
    grey = Image.fromarray(RGB).convert("L")
    assert np.array_equal(photos.decode(save(tmp_path / "b.png", grey)), np.stack([np.asarray(grey)] * 3, -1))


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    values = np.array([[0, 257, 32896, 65535]], np.uint16)
    path = save(tmp_path / "a.png", Image.fromarray(values))
    assert photos.decode(path)[0, :, 0].tolist() == [0, 1, 128, 255]


def test_transparency_lies_on_white(tmp_path):
    image = Image.new("RGBA", (2, 1), (10, 20, 30, 0))
    image.putpixel((1, 0), (10, 20, 30, 255))
    assert photos.decode(save(tmp_path / "a.png", image)).tolist() == [[[255] * 3, [10, 20, 30]]]


def test_exif_rotation_is_honoured(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    path = save(tmp_path / "a.jpg", Image.fromarray(RGB), exif=exif)
    assert photos.decode(path).shape == (60, 40, 3)


def test_a_decompression_bomb(tmp_path, monkeypatch):
    path = save(tmp_path / "a.png", Image.fromarray(RGB))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(UserError, match="too many pixels"):
        photos.decode(path)


@pytest.fixture
def folder(tmp_path):
    """A folder of two photographs and their card; returns (photos, folder)."""
    (tmp_path / "photos").mkdir()
    rows = []
    for name in ("b.png", "a.png"):
        data = save(tmp_path / "photos" / name, Image.fromarray(RGB)).read_bytes() + name.encode()
        (tmp_path / "photos" / name).write_bytes(data)
        rows.append(dict.fromkeys(photos.CARD_COLUMNS, "") | {
            "file": name, "sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data), "width": 60, "height": 40})
    with open(tmp_path / "card.csv", "w", newline="") as stream:
        writer = csv.DictWriter(stream, photos.CARD_COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    return photos.read_card(tmp_path / "card.csv"), tmp_path / "photos"


def test_a_whole_folder_passes(folder):
    assert [photo.id for photo in folder[0]] == ["a", "b"]
    photos.check_folder(*folder)


def test_a_missing_folder(folder):
    with pytest.raises(UserError, match="nowhere is missing; get it with `dvc pull data.dvc`"):
        photos.check_folder(folder[0], folder[1].parent / "nowhere")


def test_a_half_pulled_folder(folder):
    (folder[1] / "b.png").unlink()
    with pytest.raises(UserError, match=r"lacks 1 of 2 photographs \(b\.png is the first\); get it with `dvc pull"):
        photos.check_folder(*folder)


@pytest.mark.parametrize("content, words", [(b"", r"b\.png is empty; delete it and get it"),
                                            (b"other", r"b\.png is not the file of the data card")])
def test_a_changed_photograph(folder, content, words):
    (folder[1] / "b.png").write_bytes(content)
    with pytest.raises(UserError, match=words):
        photos.check_folder(*folder)


def test_a_card_that_is_missing_or_lacks_a_column(tmp_path):
    with pytest.raises(UserError, match="card.csv is missing; restore it"):
        photos.read_card(tmp_path / "card.csv")
    (tmp_path / "card.csv").write_text("file,bytes\na,1\n")
    with pytest.raises(UserError, match=r"lacks the column\(s\) author, "):
        photos.read_card(tmp_path / "card.csv")


def test_the_projects_own_card():
    card = photos.read_card(ROOT / "data/photos.csv")
    assert len(card) >= 150 and len({photo.id for photo in card}) == len(card)
    assert all(len(photo.sha256) == 64 and photo.licence and photo.author and photo.package for photo in card)


def test_the_projects_own_photographs():
    assert (ROOT / "data/photos").is_dir(), "run `make data`, as `make test` does"
    photos.check_folder(photos.read_card(ROOT / "data/photos.csv"), ROOT / "data/photos")
