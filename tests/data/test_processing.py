import io
from typing import get_args

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageFilter

from anl.config import PERTURBATIONS, EvaluationConfig
from anl.data import processing
from anl.io import UserError
from tests.conftest import photograph


class Training:
    augment_probability, jpeg_quality, resize_scale, blur_radius = 0.5, [80, 90], [0.5, 0.9], [0.2, 0.7]
    augmentations, augment_most = ["jpeg", "jpeg", "resize", "blur"], 1


class Wild(Training):
    augmentations, augment_most = ["jpeg", "webp", "scale", "sharpen", "noise"], 3
    webp_quality, scale_factor, sharpen_amount, noise_deviation = [50, 60], [0.5, 1.5], [0.2, 1], [1, 4]


IMAGE = photograph(3, 64, 64)
MILD_TO_STRONG = {"jpeg": [95, 70, 50], "webp": [90, 65, 50], "blur": [0.5, 1, 2], "resize": [0.75, 0.5],
                  "crop": [0.9, 0.75], "noise": [2, 5, 10]}


def error(name):
    changed = processing.apply(name, IMAGE, 0, "real/a")
    assert changed.dtype == np.uint8 and changed.shape == IMAGE.shape
    return np.abs(changed.astype(int) - IMAGE).mean()


def test_every_kind_and_name_of_the_configuration_is_known():
    assert set(MILD_TO_STRONG) == set(PERTURBATIONS)
    for kind, strengths in PERTURBATIONS.items():
        assert processing.parse(processing.name_of(kind, strengths[1])) == (kind, strengths[1])
    controls = get_args(get_args(EvaluationConfig.model_fields["controls"].annotation)[0])
    assert set(controls) == set(processing.FIXED)


@pytest.mark.parametrize("kind", MILD_TO_STRONG)
def test_stronger_is_further_from_the_original(kind):
    errors = [error(processing.name_of(kind, strength)) for strength in MILD_TO_STRONG[kind]]
    assert errors == sorted(errors) and errors[0] > 0.05


def test_operations_equal_pillow_and_raw_copies_nothing():
    assert processing.apply("raw", IMAGE) is IMAGE
    blurred = np.asarray(Image.fromarray(IMAGE).filter(ImageFilter.GaussianBlur(0.6)))
    assert np.array_equal(processing.apply("blur_0.6", IMAGE), blurred)
    stream = io.BytesIO()
    Image.fromarray(IMAGE).save(stream, format="JPEG", quality=80, subsampling=2)
    assert np.array_equal(processing.apply("jpeg_80", IMAGE), np.asarray(Image.open(stream).convert("RGB")))
    assert np.array_equal(processing.apply("jpeg96", IMAGE), processing.apply("jpeg_96", IMAGE)) and 0 < error("denoise") < 10
    assert np.array_equal(processing.resize(IMAGE, 1.0), IMAGE) and np.array_equal(processing.blur(IMAGE, 0.0), IMAGE)
    assert processing.resize(IMAGE[:1, :2], 0.1).shape == (1, 2, 3)
    flat = np.full((32, 32, 3), 90, np.uint8)
    assert np.array_equal(processing.apply("denoise", flat), flat)


def test_a_crop_keeps_its_centre_and_mirrors_the_border():
    image = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)
    cropped = processing.crop(image, 0.5)
    assert np.array_equal(cropped[2:6, 2:6], image[2:6, 2:6])
    assert np.array_equal(cropped[1], cropped[3]) and np.array_equal(cropped[:, 6], cropped[:, 4])


def test_noise_depends_on_seed_and_image_only():
    grey = np.full((200, 200, 3), 128, np.uint8)
    noisy = {key: processing.apply("noise_5", grey, *key) for key in ((0, "a"), (0, "b"), (1, "a"))}
    assert np.array_equal(noisy[0, "a"], processing.apply("noise_5", grey, 0, "a"))
    assert (noisy[0, "a"] != noisy[0, "b"]).any() and (noisy[0, "a"] != noisy[1, "a"]).any()
    assert noisy[0, "a"].astype(float).std() == pytest.approx(5, rel=0.02)
    assert processing.noise(np.full((4, 4, 3), 254, np.uint8), 60, np.random.default_rng(0)).max() == 255  # no overflow


@pytest.mark.parametrize("name, words", [
    ("rotate_1", "unknown processing 'rotate_1'; choose one of raw"), ("jpeg", "positive strength"), ("", "unknown"),
    ("jpeg_x", "positive strength"), ("blur_nan", "positive strength"), ("matched", "unknown processing 'matched'")])
def test_bad_names_are_explained(name, words):
    with pytest.raises(UserError, match=words):
        processing.apply(name, IMAGE)


def test_chains_and_lists_of_names():
    assert np.array_equal(processing.apply("jpeg96+blur_1", IMAGE), processing.blur(processing.jpeg(IMAGE, 96), 1))
    images = np.stack([IMAGE, photograph(4, 64, 64)])
    assert processing.apply_all("raw", images) is images
    out = processing.apply_all(["raw", "noise_3"], images, 0, ["a", "b"])
    assert np.array_equal(out[0], IMAGE) and np.array_equal(out[1], processing.apply("noise_3", images[1], 0, "b"))


# ---- views -------------------------------------------------------------------------------------------------------------
JPEG75, JPEG90, PNG = ("JPEG", 75), ("JPEG", 90), ("PNG", None)


def rows(paired=False, **generators):
    """Manifest rows of {generator: [(format, quality), ...]}."""
    return pd.DataFrame([{"image_id": f"{name}/{i}", "generator": name, "label": int(name != "real"), "format": form,
                          "jpeg_quality": quality, "source_real": "", "pair": str(i) if paired else ""}
                         for name, files in generators.items() for i, (form, quality) in enumerate(files)])


SAME = [JPEG75, JPEG90, JPEG75]
TWO_SOURCES = rows(real=[JPEG75] * 20 + [JPEG90] * 20, a=[PNG] * 20).assign(source_real=["one"] * 20 + ["two"] * 40)


@pytest.mark.parametrize("table, expected", [
    (rows(real=SAME, a=SAME[::-1], b=SAME * 2), ["raw"] * 12), (rows(real=[PNG] * 2, a=[PNG] * 3), ["raw"] * 5),
    (rows(real=[PNG], a=[PNG]).drop(columns="jpeg_quality"), ["raw"] * 2),
    (rows(paired=True, real=[JPEG75, JPEG90, PNG], a=[PNG] * 3), ["raw"] * 3 + ["jpeg_75", "jpeg_90", "raw"]),
    (TWO_SOURCES, ["raw"] * 40 + ["jpeg_90"] * 20)], ids=["same", "lossless", "unknown quality", "own real", "own source"])
def test_the_matched_view_compresses_as_the_reals_are(table, expected):
    assert processing.encodings(table, "matched", 0) == expected


def test_matched_draws_from_the_reals_and_not_from_other_generators():
    table = rows(real=[JPEG75] * 300 + [JPEG90] * 100, a=[PNG] * 400, b=[JPEG90] * 400)
    drawn = dict(zip(table["image_id"], processing.encodings(table, "matched", 0)))
    assert {drawn[name] for name in table["image_id"][:400]} == {"raw"}
    names = [drawn[f"a/{i}"] for i in range(400)]
    assert set(names) == {"jpeg_75", "jpeg_90"} and 0.18 < np.mean(np.array(names) == "jpeg_90") < 0.32
    for part in (table[table["generator"] != "b"], table[table["generator"] != "a"], table.sample(frac=1, random_state=0)):
        again = dict(zip(part["image_id"], processing.encodings(part, "matched", 0)))
        assert again == {name: drawn[name] for name in again}
    assert processing.encodings(table, "matched", 1) != list(drawn.values())


def test_a_format_that_cannot_be_written_is_named():
    with pytest.raises(UserError, match="cannot write WEBP, the format of some reals"):
        processing.encodings(rows(real=[("WEBP", None)], a=[PNG]), "matched", 0)
    assert processing.encodings(rows(real=[("WEBP", None)], a=[PNG]), "jpeg96", 0) == ["jpeg96"] * 2


# ---- augmentation ------------------------------------------------------------------------------------------------------
def test_a_plan_follows_seed_and_step_and_keeps_to_the_ranges():
    plan = processing.augmentation_plan(np.arange(400), Training, seed=1, step=2)
    assert plan == processing.augmentation_plan(np.arange(400), Training, seed=1, step=2)
    assert plan != processing.augmentation_plan(np.arange(400), Training, seed=1, step=3)
    assert plan != processing.augmentation_plan(np.arange(400), Training, seed=2, step=2)
    chosen = [entry for entry in plan if entry]
    assert 160 < len(chosen) < 240
    for kind, (low, high), least in (("jpeg", (80, 90), 75), ("resize", (0.5, 0.9), 30), ("blur", (0.2, 0.7), 30)):
        strengths = [strength for ((name, strength),) in chosen if name == kind]
        assert len(strengths) > least and low <= min(strengths) < max(strengths) <= high
    twice = processing.augmentation_plan([5, 3, 5, 9], Training, 0, 1)  # a pair that occurs twice has one plan
    assert processing.augmentation_plan([3, 5, 9], Training, 0, 1) == [twice[1], twice[0], twice[3]] and twice[2] == twice[0]


def test_a_plan_is_applied_to_its_images_only():
    images = np.stack([IMAGE, IMAGE[::-1], IMAGE])
    before = images.copy()
    out = processing.apply_plan([None, (("jpeg", 80.4),), (("blur", 0.5),)], images)
    assert np.array_equal(images, before) and np.array_equal(out[0], IMAGE)
    assert np.array_equal(out[1], processing.jpeg(IMAGE[::-1], 80)) and np.array_equal(out[2], processing.blur(IMAGE, 0.5))
    assert processing.apply_plan([None] * 3, images) is images
    both = processing.apply_plan([(("scale", 0.7), ("noise", 2.5))] * 2, images[[0, 2]])
    assert np.array_equal(both[0], both[1]) and not np.array_equal(both[0], processing.scale(IMAGE, 0.7))  # one draw for a pair


def test_operations_follow_one_another():
    plan = processing.augmentation_plan(np.arange(2000), Wild, seed=1, step=2)
    shares = [sum(len(entry or ()) == count for entry in plan) / 2000 for count in range(4)]
    assert shares == pytest.approx([0.5, 0.25, 0.125, 0.125], abs=0.03)
    found = {name: strength for entry in plan for name, strength in entry or ()}
    assert set(found) == set(Wild.augmentations) and 50 <= found["webp"] <= 60 and 1 <= found["noise"] <= 4
    single = processing.augmentation_plan(np.arange(2000), type("", (Wild,), {"augment_most": 1}), seed=1, step=2)
    assert [entry and entry[:1] for entry in plan] == single  # a longer chain begins alike


def test_scaling_changes_the_size_of_what_is_seen_and_not_of_the_image():
    rows = np.broadcast_to(np.arange(64, dtype=np.uint8)[:, None, None], (64, 64, 3))
    for factor in (0.5, 1.5):
        slope = np.diff(processing.scale(rows, factor)[20:44, 32, 0].astype(float)).mean()
        assert processing.scale(rows, factor).shape == (64, 64, 3) and slope == pytest.approx(1 / factor, rel=0.1)
    soft = processing.blur(IMAGE, 1)
    assert np.diff(processing.sharpen(soft, 1).astype(float), axis=0).std() > np.diff(soft.astype(float), axis=0).std()
