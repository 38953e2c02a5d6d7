import hashlib
import io
import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image, ImageFile

from anl.data import images
from anl.io import UserError


def photograph(seed, height=40, width=60):
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)).resize((width, height), Image.BICUBIC)
    return np.clip(np.asarray(coarse, float) + rng.normal(0, 8, (height, width, 3)), 0, 255).astype(np.uint8)


RGB = photograph(3)


def encoded(image, kind="PNG", **options):
    stream = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(stream, format=kind, **options)
    return stream.getvalue()


def refused(data, **limits):
    with pytest.raises(UserError) as problem:
        images.decode(data, **limits)
    assert "\n" not in str(problem.value)
    return str(problem.value)


# ---- the decoder -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_formats_are_exact_whatever_the_ending(tmp_path, kind):
    (tmp_path / "x.jpg").write_bytes(encoded(RGB, kind))
    for source in (tmp_path / "x.jpg", str(tmp_path / "x.jpg"), encoded(RGB, kind)):
        pixels = images.decode(source)
        assert np.array_equal(pixels, RGB) and pixels.dtype == np.uint8 and pixels.flags.writeable


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "AVIF", "GIF"])
def test_lossy_formats(kind):
    pixels = images.decode(encoded(RGB, kind))
    assert pixels.shape == RGB.shape and np.abs(pixels.astype(float) - RGB).mean() < 12
    assert images.read_header(encoded(RGB, kind)) == (60, 40, kind, 75 if kind == "JPEG" else None)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("keep", [0.3, 0.7, 0.97])
def test_truncated_files_are_refused_by_header_and_by_decoding(kind, keep, monkeypatch):
    data = encoded(photograph(5, 200, 200), kind)
    data = data[:int(len(data) * keep)]
    with pytest.raises(images.Refused, match="truncated|cannot be decoded"):
        images.read_header(data)
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)  # as other libraries set it
    assert "truncated" in refused(data) or "cannot be decoded" in refused(data)


def test_damage_inside_is_found_by_decoding():
    data = bytearray(encoded(RGB, "PNG"))
    start = data.index(b"IDAT") + 200
    data[start:start + 40] = bytes(40)
    assert images.read_header(bytes(data)).width == 60
    assert "cannot be decoded" in refused(bytes(data))


@pytest.mark.parametrize("data, words", [
    (b"", "empty (0 bytes)"), (b"hello, world", "no image of a known format"), (b"%!PS-Adobe-3.0 EPSF-3.0\n", "no image"),
    (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "(HEIC: save it as JPEG or PNG)"), (b"\0\0\0\x18ftypmp42" + bytes(9), "(a video)"),
    (b"<?xml version='1.0'?>\n<svg/>", "(SVG, a drawing without pixels)"), (b"\n<!DOCTYPE html><p>", "(a web page)"),
    (b"%PDF-1.7\n", "(PDF)")])
def test_other_files_are_named(data, words):
    assert words in refused(data)


def test_decompression_bombs_are_refused_before_decoding(monkeypatch):
    heads = [encoded(Image.new("1", size), "PNG") for size in ((30000, 30000), (10000, 9000))]  # of the second Pillow only warns
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    for head in heads:
        assert "over the limit" in refused(head)
        with pytest.raises(images.Refused, match="over the limit"):
            images.read_header(head)


def test_long_and_narrow_is_no_bomb():
    assert images.decode(encoded(Image.new("RGB", (30000, 2), "red"))).shape == (2, 30000, 3)


def test_limits_can_be_set(tmp_path):
    assert "60 x 40 pixels, over the limit of 100" in refused(encoded(RGB), max_pixels=100)
    (tmp_path / "a.png").write_bytes(encoded(RGB))
    for source in (tmp_path / "a.png", encoded(RGB)):
        assert "bytes, over the limit of 99" in refused(source, max_bytes=99)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_animations_and_pages_are_refused(kind):
    frames = [Image.fromarray(photograph(seed, 20, 20)) for seed in range(3)]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    assert "animated or of several pages (3 frames)" in refused(data)


def test_the_first_image_of_a_multi_picture_jpeg_is_read():
    data = encoded(Image.fromarray(RGB), "MPO", save_all=True, append_images=[Image.fromarray(RGB[:, ::-1].copy())], quality=95)
    assert images.read_header(data).format == "JPEG"
    assert np.abs(images.decode(data).astype(float) - RGB).mean() < 10


def test_exif_rotation_is_applied():
    exif = Image.Exif()
    exif[images.ORIENTATION] = 6
    for kind in ("PNG", "TIFF", "JPEG"):
        data = encoded(RGB, kind, exif=exif)
        assert images.read_header(data)[:2] == (40, 60) and images.decode(data).shape == (60, 40, 3)
    assert np.array_equal(images.decode(encoded(RGB, "PNG", exif=exif)), np.rot90(RGB, -1))


def test_other_modes_become_rgb():
    cmyk = images.decode(encoded(Image.fromarray(RGB).convert("CMYK"), "JPEG", quality=98))
    assert np.abs(cmyk.astype(float) - RGB).mean() < 4
    for mode in ("P", "L", "1"):
        image = Image.fromarray(RGB).convert(mode)
        assert np.array_equal(images.decode(encoded(image)), np.asarray(image.convert("RGB")))
    values = np.array([[0, 257, 32896, 65535]], np.uint16)
    assert images.decode(encoded(values))[0].tolist() == [[0] * 3, [1] * 3, [128] * 3, [255] * 3]
    assert "floating-point" in refused(encoded(np.zeros((3, 3), np.float32), "TIFF"))


def test_transparency_is_laid_over_white():
    image = Image.new("RGBA", (2, 1), (10, 20, 30, 0))
    image.putpixel((1, 0), (10, 20, 30, 255))
    assert images.decode(encoded(image)).tolist() == [[[255] * 3, [10, 20, 30]]]
    palette = Image.new("P", (2, 1), 0)
    palette.putpalette([9, 9, 9, 200, 0, 0])
    palette.putpixel((1, 0), 1)
    assert images.decode(encoded(palette, transparency=0)).tolist() == [[[255] * 3, [200, 0, 0]]]


def test_missing_files_folders_and_odd_names(tmp_path):
    assert "cannot be opened (No such file" in refused(tmp_path / "none.png")
    assert "not a regular file" in refused(tmp_path)
    (tmp_path / "new\nline.png").write_bytes(b"x")
    assert "new\\nline.png' is refused" in refused(tmp_path / "new\nline.png")


def test_a_message_of_many_lines_becomes_one(monkeypatch):
    def fail(image):
        raise SyntaxError("two\nlines")

    monkeypatch.setattr(images, "to_rgb", fail)
    assert "two lines" in refused(encoded(RGB))


@pytest.mark.parametrize("options", [{}, {"subsampling": "4:4:4"}])
def test_jpeg_quality_is_read_from_the_tables(options):
    qualities = [5, 10, 25, 40, *range(50, 101)]
    assert [images.read_header(encoded(RGB, "JPEG", quality=q, **options)).jpeg_quality for q in qualities] == qualities


def test_jpeg_quality_of_other_tables():
    tables = Image.open(io.BytesIO(encoded(RGB, "JPEG", quality=70))).quantization
    assert np.array_equal(images.standard_tables()[69], [tables[0], tables[1]])
    assert abs(images.jpeg_quality({key: [min(value + 1, 255) for value in table] for key, table in tables.items()}) - 70) <= 4
    assert images.jpeg_quality({0: [1] * 64}) == 100 and images.jpeg_quality(None) is None and images.jpeg_quality({}) is None


def test_the_perceptual_hash_survives_compression_and_resizing():
    def resized(pixels, factor):
        return np.asarray(Image.fromarray(pixels).resize([int(side * factor) for side in pixels.shape[1::-1]], Image.BICUBIC))

    photos = [resized(photograph(seed, 20, 24), 8) for seed in range(20)]
    hashes = [images.perceptual_hash(photo) for photo in photos]
    for change in (lambda p: images.decode(encoded(p, "JPEG")), lambda p: resized(p, 0.5)):
        kept = [(h ^ images.perceptual_hash(change(photo))).bit_count() for h, photo in zip(hashes, photos)]
        assert np.mean(np.array(kept) <= 3) > 0.9
    assert min((hashes[i] ^ hashes[j]).bit_count() for i in range(20) for j in range(i)) > 8
    assert 0 <= images.perceptual_hash(np.full((5, 9, 3), 128, np.uint8)) < 2**64


# ---- crops and tensors ---------------------------------------------------------------------------------------------------
def test_crops_are_cut_and_never_resized():
    assert np.array_equal(images.crop(RGB, 20), RGB[10:30, 20:40])
    assert np.array_equal(images.crop(RGB, 20, (0, 40)), RGB[:20, 40:]) and images.crop(RGB, 20).flags.c_contiguous
    with pytest.raises(ValueError, match="leaves the image of 60 x 40"):
        images.crop(RGB, 20, (21, 0))


def test_small_images_are_padded_by_mirroring():
    padded = images.crop(RGB, 60)
    assert padded.shape == (60, 60, 3) and np.array_equal(padded[10:50], RGB)
    assert np.array_equal(padded[9], RGB[0]) and np.array_equal(padded[8], RGB[1]) and np.array_equal(padded[50], RGB[-1])
    assert (images.crop(np.full((1, 1, 3), 7, np.uint8), 16) == 7).all()


def test_pixels_survive_a_round_trip_through_a_tensor():
    pixels = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)
    tensor = images.to_tensor(pixels)
    assert tensor.shape == (1, 3, 16, 16) and tensor.min() == -1 and tensor.max() == 1
    assert np.array_equal(images.to_pixels(tensor), pixels)
    outside = torch.tensor([-3.0, 3.0]).reshape(1, 1, 2).expand(3, 1, 2)
    assert images.to_pixels(outside).tolist() == [[[0] * 3, [255] * 3]]


# ---- images of a manifest ------------------------------------------------------------------------------------------------
@pytest.fixture
def benchmark(tmp_path):
    """(rows, folder, pixels): three files and three rows of a Parquet file, shuffled."""
    pixels = [photograph(seed) for seed in range(6)]
    data = [encoded(image) for image in pixels]
    (tmp_path / "sub").mkdir()
    for index in range(3):
        (tmp_path / "sub" / f"{index}.png").write_bytes(data[index])
    pd.DataFrame({"image_id": list("abc"), "image": data[3:]}).to_parquet(tmp_path / "pack.parquet", row_group_size=2)
    paths = [f"sub/{i}.png" for i in range(3)] + [f"pack.parquet#{i}" for i in range(3)]
    rows = pd.DataFrame({"path": paths, "sha256": [hashlib.sha256(item).hexdigest() for item in data],
                         "label": [0, 0, 0, 1, 1, 1], "image_id": paths})
    order = [4, 0, 5, 2, 3, 1]
    return rows.iloc[order].reset_index(drop=True), tmp_path, np.stack([pixels[i] for i in order])


def test_pixels_come_in_the_order_of_the_rows(benchmark):
    rows, folder, pixels = benchmark
    assert np.array_equal(images.load_pixels(rows, folder), pixels)
    assert np.array_equal(images.load_pixels(rows, folder, 20), pixels[:, 10:30, 20:40])
    assert images.load_pixels(rows.head(0), folder, 20).shape == (0, 20, 20, 3)


def test_rows_and_images_of_the_hub_are_read(tmp_path):
    table = pd.DataFrame({"label": [0], "picture": [{"bytes": encoded(RGB), "path": "x.png"}]})
    table.to_parquet(tmp_path / "hub.parquet")
    files = images.ImageFiles(tmp_path)
    assert np.array_equal(images.decode_bytes(files.read("hub.parquet#0")), RGB)
    assert files.read("hub.parquet#picture:0") == encoded(RGB)


def test_missing_altered_and_misfit_images_are_named(benchmark):
    rows, folder, _ = benchmark
    cases = [(rows.assign(sha256="0"), "SHA-256 differs"), (rows.assign(path="none.png"), "none.png' is refused: cannot be opened"),
             (rows.assign(path="none.parquet#3"), "cannot be opened"), (rows.assign(path="pack.parquet#9"), "has 3 rows only"),
             (rows.assign(path="pack.parquet#other:1"), "cannot be read")]
    for changed, words in cases:
        with pytest.raises(UserError, match=words):
            images.load_pixels(changed, folder)
    (folder / "pack.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(UserError, match="Parquet file cannot be read"):
        images.load_pixels(rows, folder)


def test_sizes_that_differ_need_a_crop(benchmark):
    rows, folder, _ = benchmark
    (folder / "odd.png").write_bytes(encoded(photograph(9, 30, 30)))
    odd = pd.DataFrame({"path": ["odd.png"], "sha256": [hashlib.sha256((folder / "odd.png").read_bytes()).hexdigest()]})
    both = pd.concat([rows, odd], ignore_index=True)
    with pytest.raises(UserError, match="state a crop size"):
        images.load_pixels(both, folder)
    assert images.load_pixels(both, folder, 24).shape == (7, 24, 24, 3)


def test_the_cache_of_parquet_rows_is_bounded(benchmark):
    rows, folder, pixels = benchmark
    files = images.ImageFiles(folder, cache_bytes=1)
    for _ in range(2):
        for path, image in zip(rows["path"], pixels):
            assert np.array_equal(images.decode_bytes(files.read(path)), image)
    assert len(files._groups) == 1 and len(pickle.loads(pickle.dumps(files))._groups) == 0


def test_items_of_a_dataset(benchmark):
    rows, folder, pixels = benchmark
    dataset = images.ImageDataset(rows, folder, 16)
    item = dataset[1]
    assert item["image"].dtype == torch.uint8 and item["label"] == rows["label"][1] and item["index"] == 1
    assert np.array_equal(item["image"].numpy(), images.crop(pixels[1], 16))
    floats = images.ImageDataset(rows, folder, 16, as_float=True)[1]["image"]
    assert torch.equal(floats, images.to_tensor(images.crop(pixels[1], 16)))
    names = ["raw", "blur_1", *["noise_4"] * 4]
    treated = images.ImageDataset(rows, folder, 16, processing=names, seed=3)
    assert np.array_equal(treated[1]["image"], images.processing.blur(images.crop(pixels[1], 16), 1))
    noisy = images.processing.apply("noise_4", images.crop(pixels[2], 16), 3, rows["image_id"][2])
    assert np.array_equal(treated[2]["image"], noisy)
    with pytest.raises(ValueError, match="1 names of processings for 6 rows"):
        images.ImageDataset(rows, folder, 16, processing=["raw"])


def test_a_draw_crops_flips_and_augments(benchmark):
    rows, folder, pixels = benchmark
    dataset = images.ImageDataset(rows, folder, 16)
    drawn = dataset[images.Draw(2, (0.0, 1.0), True, ("jpeg", 50.0))]
    expected = images.processing.jpeg(np.ascontiguousarray(pixels[2][:16, 44:][:, ::-1]), 50)
    assert np.array_equal(drawn["image"], expected) and drawn["index"] == 2
    assert torch.equal(dataset[images.Draw(2)]["image"], dataset[2]["image"])
    assert images.ImageDataset(rows, folder, 100)[images.Draw(0, (1.0, 1.0))]["image"].shape == (100, 100, 3)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_do_not_depend_on_workers(benchmark, workers):
    rows, folder, pixels = benchmark
    dataset = images.ImageDataset(rows, folder, 16)
    found = list(images.image_batches(dataset, [[3, 1], [images.Draw(5), images.Draw(0)]], workers))
    assert [batch["index"].tolist() for batch in found] == [[3, 1], [5, 0]]
    assert np.array_equal(found[1]["image"][0], images.crop(pixels[5], 16)) and found[0]["label"].shape == (2,)
    (folder / "sub" / "0.png").write_bytes(b"")
    with pytest.raises(UserError) as problem:
        list(images.image_batches(dataset, [[0, 1, 2, 3, 4, 5]], workers))
    assert str(problem.value).endswith("0.png' is refused: empty (0 bytes); replace or remove it") or "SHA-256" in str(problem.value)
    assert "Traceback" not in str(problem.value)
