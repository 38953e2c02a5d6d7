import numpy as np
import pytest

from anl.data import perturb, views
from anl.errors import UserError
from anl.params import PERTURBATIONS
from tests.conftest import photograph

IMAGE = photograph(3, 64, 64)
MILD_TO_STRONG = {"jpeg": [95, 70, 50], "webp": [90, 65, 50], "blur": [0.5, 1, 2], "resize": [0.75, 0.5], "crop": [0.9, 0.75],
                  "noise": [2, 5, 10]}


def error(kind, strength):
    changed = perturb.apply(kind, strength, IMAGE, 0, "real/a")
    assert changed.dtype == np.uint8 and changed.shape == IMAGE.shape
    return np.abs(changed.astype(int) - IMAGE).mean()


def test_every_kind_is_covered():
    assert set(MILD_TO_STRONG) == set(PERTURBATIONS) == {*perturb.PERTURB, "noise"}


@pytest.mark.parametrize("kind", MILD_TO_STRONG)
def test_stronger_means_further_from_the_original(kind):
    errors = [error(kind, strength) for strength in MILD_TO_STRONG[kind]]
    assert errors == sorted(errors) and errors[0] > 0.05


def test_the_same_processing_as_the_controls_where_they_overlap():
    for kind, strength, control in (("resize", 0.75, "resize75"), ("blur", 0.5, "blur"), ("jpeg", 96, "jpeg96")):
        assert np.array_equal(perturb.apply(kind, strength, IMAGE, 0, "a"), views.apply(control, IMAGE))


def test_upsampling_and_back_is_milder_than_downsampling():
    assert 0 < error("resize", 2) < error("resize", 0.5)


def test_a_crop_keeps_its_middle_to_the_bit_and_mirrors_the_rim():
    image = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)
    cropped = perturb.crop(image, 0.5)
    assert np.array_equal(cropped[2:6, 2:6], image[2:6, 2:6])
    assert np.array_equal(cropped[1], cropped[3]) and np.array_equal(cropped[:, 6], cropped[:, 4])
    assert np.array_equal(perturb.crop(image, 1.0), image)


def test_noise_depends_on_seed_and_sample_and_has_the_asked_deviation():
    grey = np.full((200, 200, 3), 128, np.uint8)
    noisy = {key: perturb.apply("noise", 5, grey, *key) for key in ((0, "a"), (0, "b"), (1, "a"))}
    assert np.array_equal(noisy[0, "a"], perturb.apply("noise", 5, grey, 0, "a"))
    assert (noisy[0, "a"] != noisy[0, "b"]).any() and (noisy[0, "a"] != noisy[1, "a"]).any()
    assert noisy[0, "a"].astype(float).std() == pytest.approx(5, rel=0.02)
    assert noisy[0, "a"].mean() == pytest.approx(128, abs=0.1)
    assert perturb.noise(np.full((4, 4, 3), 254, np.uint8), 60, np.random.default_rng(0)).max() == 255  # no wrap-around


def test_an_unknown_kind_is_named():
    with pytest.raises(UserError, match="no perturbation 'rotate'; choose one of jpeg, webp"):
        perturb.apply("rotate", 1, IMAGE, 0, "a")


def test_a_name_is_short():
    assert perturb.name("jpeg", 90.0) == "jpeg_90" and perturb.name("blur", 0.5) == "blur_0.5"
