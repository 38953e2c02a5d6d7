import numpy as np
import pandas as pd
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


def rows(**generators):
    """Manifest rows of {generator: [(format, quality), ...]}."""
    return pd.DataFrame([{"sample_id": f"{name}/{i}", "generator": name, "label": int(name != "real"), "format": form,
                          "jpeg_quality": quality} for name, files in generators.items()
                         for i, (form, quality) in enumerate(files)])


JPEG75, JPEG90, PNG = ("JPEG", 75), ("JPEG", 90), ("PNG", None)


def test_classes_that_are_encoded_alike_are_left_alone_whatever_the_encoding():
    same = [JPEG75, JPEG90, JPEG75]
    assert formats.drawn_from_reals(rows(real=same, a=same[::-1], b=same * 2), 0) == [None] * 12
    lossless = rows(real=[PNG] * 2, a=[PNG] * 3).drop(columns="jpeg_quality")  # as the embedded benchmark's manifest
    assert formats.drawn_from_reals(lossless, 0) == [None] * 5


def test_other_generators_draw_from_the_reals_distribution_each_by_its_own_name():
    files = [JPEG75] * 300 + [JPEG90] * 100
    table = rows(real=files, a=[PNG] * 400, b=files)
    drawn = formats.drawn_from_reals(table, 0)
    assert drawn[:400] == drawn[800:] == [None] * 400
    qualities = [how[1] for how in drawn[400:800]]
    assert set(qualities) == {75, 90} and 0.18 < np.mean(np.array(qualities) == 90) < 0.32
    shuffled = table.sample(frac=1, random_state=0)
    again = dict(zip(shuffled["sample_id"], formats.drawn_from_reals(shuffled, 0)))
    assert [again[name] for name in table["sample_id"]] == drawn and formats.drawn_from_reals(table, 1) != drawn


def test_drawn_encodings_are_applied():
    pixels, _ = images()
    out = formats.encoded(pixels, [None, JPEG75, ("PNG", 0), JPEG90])
    assert np.array_equal(out[[0, 2]], pixels[[0, 2]])
    assert np.array_equal(out[1], views.jpeg(pixels[1], 75)) and np.array_equal(out[3], views.jpeg(pixels[3], 90))


def test_a_format_that_cannot_be_written_is_named():
    with pytest.raises(UserError, match="cannot write WEBP, which some reals are"):
        formats.drawn_from_reals(rows(real=[("WEBP", None)], a=[PNG]), 0)


def test_shares_of_formats_sum_to_one():
    found = formats.distribution(rows(real=[JPEG75, JPEG75, PNG, JPEG90]))
    assert found.to_dict() == {("JPEG", 75): 0.5, ("JPEG", 90): 0.25, ("PNG", 0): 0.25}
