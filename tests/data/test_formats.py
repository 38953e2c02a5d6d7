import numpy as np
import pytest

from anl.data import formats, views
from anl.errors import UserError


def images():
    return np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8), np.array([0, 1, 0, 1])


def test_a_lossless_set_is_left_alone_in_every_view():
    pixels, label = images()
    assert formats.as_published(pixels, label, "lossless") is pixels
    assert formats.matched(pixels, label, "lossless") is pixels


def test_leaky_reals_have_been_through_jpeg_and_matching_does_the_same_to_the_fakes():
    pixels, label = images()
    published = formats.as_published(pixels, label, "leaky")
    assert all(np.array_equal(published[i], views.apply("jpeg96", pixels[i])) for i in (0, 2))
    assert all(np.array_equal(published[i], pixels[i]) for i in (1, 3))
    alike = formats.matched(published, label, "leaky")
    assert all(np.array_equal(alike[i], views.apply("jpeg96", pixels[i])) for i in range(4))


def test_an_unknown_set_is_named():
    with pytest.raises(UserError, match="no set of formats 'jpeg'; choose one of lossless, leaky"):
        formats.as_published(*images(), "jpeg")
