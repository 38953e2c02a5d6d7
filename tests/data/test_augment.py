import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from anl.data import augment, views
from tests.conftest import photograph

IMAGE = photograph(1, 32, 32)


@pytest.fixture
def config(world):
    return dataclasses.replace(world.params.training, augment_probability=0.5, jpeg_quality=[80, 90],
                               resize_scale=[0.5, 0.9], blur_radius=[0.2, 0.7])


def test_a_plan_follows_seed_and_step_and_keeps_to_the_ranges(config):
    plan = augment.plan(np.arange(400), config, seed=1, step=2)
    assert plan == augment.plan(np.arange(400), config, seed=1, step=2)
    assert plan != augment.plan(np.arange(400), config, seed=1, step=3)
    assert plan != augment.plan(np.arange(400), config, seed=2, step=2)
    chosen = [p for p in plan.values() if p]
    assert 160 < len(chosen) < 240
    for kind, (low, high) in {"jpeg": (80, 90), "resize": (0.5, 0.9), "blur": (0.2, 0.7)}.items():
        strengths = [strength for name, strength in chosen if name == kind]
        assert augment.KINDS.count(kind) * 30 < len(strengths) < augment.KINDS.count(kind) * 75 and low <= min(strengths) < max(strengths) <= high


def test_a_pair_drawn_twice_in_a_batch_has_one_plan(config):
    once, twice = (augment.plan(np.array(pairs), config, 0, 0) for pairs in ([3, 5], [5, 3, 3]))
    assert once == twice


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_never_and_always(config, probability):
    plan = augment.plan(np.arange(20), dataclasses.replace(config, augment_probability=probability), 0, 0)
    assert all((p is not None) == bool(probability) for p in plan.values())


def test_each_kind_does_what_its_name_says():
    assert np.array_equal(augment.process(IMAGE, "jpeg", 80.4), views.jpeg(IMAGE, 80))
    blurred = np.asarray(Image.fromarray(IMAGE).filter(ImageFilter.GaussianBlur(0.6)))
    assert np.array_equal(augment.process(IMAGE, "blur", 0.6), blurred)
    assert np.array_equal(augment.process(IMAGE, "blur", 0.0), IMAGE)
    assert np.array_equal(augment.process(IMAGE, "resize", 0.75), views.apply("resize75", IMAGE))
    assert np.array_equal(augment.process(IMAGE, "resize", 1.0), IMAGE)


def test_images_without_a_plan_stay_as_they_are():
    images = np.stack([IMAGE, IMAGE[::-1], IMAGE])
    out = augment.apply([None, ("jpeg", 80), ("blur", 0.5)], images)
    assert out.dtype == np.uint8 and np.array_equal(out[0], IMAGE)
    assert np.array_equal(out[1], views.jpeg(IMAGE[::-1], 80)) and not np.array_equal(out[2], IMAGE)


def test_half_of_the_pairs_are_flipped_where_asked_for_and_none_elsewhere(config):
    asked = dataclasses.replace(config, flip=True)
    flips = augment.flips(np.arange(400), asked, seed=1, step=2)
    assert flips == augment.flips(np.arange(400), asked, seed=1, step=2) and 160 < sum(flips.values()) < 240
    assert flips != augment.flips(np.arange(400), asked, seed=1, step=3) != augment.flips(np.arange(400), asked, seed=2, step=3)
    assert augment.flips(np.array([5, 3, 3]), asked, 1, 2).keys() == {3, 5}
    assert not any(augment.flips(np.arange(400), config, seed=1, step=2).values())


def test_a_mirror_turns_the_chosen_ones_left_to_right():
    images = torch.arange(24.0).view(2, 3, 2, 2)
    out = augment.mirror(images, [False, True])
    assert torch.equal(out[0], images[0]) and torch.equal(out[1, ..., 0], images[1, ..., 1])
    assert torch.equal(augment.mirror(images, [True, True]), images.flip(-1))
