import hashlib

import numpy as np
import pandas as pd
import pytest
import torch

from anl.data import images
from anl.io import UserError
from tests.conftest import photograph
from tests.data.trees import encode

RGB = photograph(3, 40, 60)


# ---- crops and tensors ---------------------------------------------------------------------------------------------------
def test_crops_are_cut_and_never_resized():
    assert np.array_equal(images.crop(RGB, 20), RGB[10:30, 20:40])
    assert images.crop(RGB, 20).flags.c_contiguous


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
    pixels = [photograph(seed, 40, 60) for seed in range(6)]
    data = [encode(image) for image in pixels]
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


def test_missing_altered_and_misfit_images_are_named(benchmark):
    rows, folder, _ = benchmark
    cases = [(rows.assign(sha256="0"), "SHA-256 differs"), 
             (rows.assign(path="none.png"), "none.png' is refused: cannot be opened"),
             (rows.assign(path="none.parquet#3"), "cannot be opened"), (rows.assign(path="pack.parquet#9"), "has only 3 rows"),
             (rows.assign(path="pack.parquet#other:1"), "has no image column 'other'")]
    for changed, words in cases:
        with pytest.raises(UserError, match=words):
            images.load_pixels(changed, folder)
    (folder / "pack.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(UserError, match="not a complete Parquet file"):
        images.load_pixels(rows, folder)


def test_sizes_that_differ_need_a_crop(benchmark):
    rows, folder, _ = benchmark
    (folder / "odd.png").write_bytes(encode(photograph(9, 30, 30)))
    odd = pd.DataFrame({"path": ["odd.png"], "sha256": [hashlib.sha256((folder / "odd.png").read_bytes()).hexdigest()]})
    both = pd.concat([rows, odd], ignore_index=True)
    with pytest.raises(UserError, match="state a crop size"):
        images.load_pixels(both, folder)
    assert images.load_pixels(both, folder, 24).shape == (7, 24, 24, 3)
