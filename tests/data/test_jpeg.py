import io

import numpy as np
import pytest
from PIL import Image

from anl.data import jpeg
from tests.conftest import photograph

RGB = Image.fromarray(photograph(1, 40, 56))


def tables(image, **options):
    stream = io.BytesIO()
    image.save(stream, format="JPEG", **options)
    return Image.open(stream).quantization


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_what_was_written_is_read_back(mode):
    image = RGB.convert(mode)
    assert {q: jpeg.estimate_quality(tables(image, quality=q)) for q in range(50, 101)} == {q: q for q in range(50, 101)}


def test_low_qualities_too():
    assert [jpeg.estimate_quality(tables(RGB, quality=q)) for q in (5, 10, 25, 40)] == [5, 10, 25, 40]


def test_chroma_subsampling_does_not_matter():
    assert jpeg.estimate_quality(tables(RGB, quality=83, subsampling="4:4:4")) == 83


def test_foreign_tables_give_the_nearest():
    near = {key: [min(value + key % 2 + 1, 255) for value in table] for key, table in tables(RGB, quality=70).items()}
    assert abs(jpeg.estimate_quality(near) - 70) <= 4
    assert jpeg.estimate_quality({0: [1] * 64}) == 100


def test_no_tables_no_quality():
    assert jpeg.estimate_quality(None) is None and jpeg.estimate_quality({}) is None


def test_the_standard_tables_are_pillows():
    for quality in (50, 75, 92):
        written = tables(RGB, quality=quality)
        assert np.array_equal(jpeg.standard_tables()[quality - 1], [written[0], written[1]])
