import numpy as np
import pytest

from anl.data import views
from anl.errors import UserError
from tests.conftest import photograph


@pytest.mark.parametrize("name", list(views.PROCESSING))
def test_every_view_keeps_size_and_type_and_changes_little(name):
    pixels = photograph(3, 64, 64)
    out = views.apply(name, pixels)
    assert out.shape == pixels.shape and out.dtype == np.uint8
    error = np.sqrt(((out.astype(float) - pixels) ** 2).mean())
    assert error == 0 if name == "raw" else 0 < error < 10


def test_denoise_spares_a_flat_image():
    flat = np.full((32, 32, 3), 90, np.uint8)
    assert np.array_equal(views.apply("denoise", flat), flat)


def test_unknown_view():
    with pytest.raises(UserError, match="no view or control 'jpg'"):
        views.apply("jpg", photograph(1, 32, 32))
