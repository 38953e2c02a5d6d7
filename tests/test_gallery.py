import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch

from anl import attention, detector, gallery, more_families, predict
from anl.benchmark import REAL, read_images, read_manifest
from anl.data.photos import read_card
from anl.errors import UserError
from anl.metrics import Calibration
from anl.prior import NoisePrior


def made_detector(noise=True):
    torch.manual_seed(0)
    return detector.Detector("test_resnet", 8, 8, 4, 32, noise=noise, attention="affinity" if noise else "none",
                             attention_dim=8).eval()


def test_patches_are_the_first_by_name_and_every_family_regenerated_them(world):
    found = gallery.read(world.params, 2)
    paired = ["dpm", "inpaint", "superres"]  # `unconditional` regenerates nothing
    assert found.generators[:2] == [REAL, "ddim"]
    assert found.generators == [REAL, *world.params.families, *paired]
    manifest = read_manifest(world.params.benchmark.folder)
    test = manifest[(manifest["split"] == "test") & (manifest["generator"] == REAL)].sort_values("sample_id")
    first = test.groupby("photo").head(1).head(2)
    assert list(found.table["photo"]) == list(first["photo"])
    assert list(found.table["place"]) == list(more_families.place(first))
    assert np.array_equal(found.pixels[0], read_images(world.params.benchmark.folder, first))
    fakes = read_manifest(more_families.folder_of(world.params)).set_index("sample_id", drop=False)
    wanted = fakes.loc[[f"superres/{place}" for place in found.table["place"]]]
    assert np.array_equal(found.pixels[-1], read_images(more_families.folder_of(world.params), wanted))


def test_too_many_patches_are_refused(world):
    with pytest.raises(UserError, match="3 test photographs that every family regenerated, not 20.*raise use.test"):
        gallery.read(world.params, 20)
    with pytest.raises(UserError, match="ask for 1 or more"):
        gallery.read(world.params, 0)


def test_a_profile_without_further_families_needs_no_folder_of_them(world):
    alone = dataclasses.replace(world.params, more_families={})
    assert gallery.read(alone, 1).generators == [REAL, *world.params.families]


def test_sight_is_what_prior_and_detector_say_of_each_image(world):
    pixels = gallery.read(world.params, 2).pixels[:3]
    prior, model = NoisePrior.load(f"{world.models}/prior", precision="fp32"), made_detector()
    sight = gallery.look(model, prior, 0.5, 10, pixels)
    assert sight.noise.shape == sight.predicted.shape == (3, 2, 3, 32, 32) and sight.maps.shape[:2] == (3, 2)
    assert np.allclose(sight.maps.sum((2, 3)), 1, atol=1e-5)
    assert sight.logits.ravel() == pytest.approx(predict.score(model, pixels.reshape(-1, 32, 32, 3)), abs=1e-4)
    alone = gallery.look(model, prior, 1.0, 10, pixels[1:2, 1:])
    assert np.allclose(sight.noise[1, 1], 2 * alone.noise[0, 0], atol=1e-4)
    assert np.allclose(sight.predicted[1, 1], alone.predicted[0, 0], atol=1e-4)
    with pytest.raises(UserError, match="predicts no noise"):
        gallery.look(made_detector(noise=False), prior, 1.0, 10, pixels)


def sights(rng, generators=3, patches=2):
    noise = rng.normal(size=(generators, patches, 3, 8, 8))
    maps = rng.dirichlet(np.ones(16), (generators, patches)).reshape(generators, patches, 4, 4)
    return gallery.Sight(noise, -noise, maps, np.arange(generators * patches, dtype=float).reshape(generators, patches))


def test_scores_are_called_at_the_detectors_own_threshold():
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"place": ["a@0x0", "b@0x0"], "photo": ["a", "b"]})
    patches = gallery.Patches(table, [REAL, "ddim", "superres"], np.zeros((3, 2, 8, 8, 3), np.uint8))
    seen = sights(rng)
    rows = gallery.scores(patches, {1: seen, 10: seen}, {1: Calibration(2.5, 2.0), 10: Calibration(9.0, 1.0)}, "ddim", ["superres"])
    first = rows[rows["step"] == 1].reset_index(drop=True)
    assert list(first["called_generated"]) == [False, False, False, True, True, True]
    assert not rows.loc[rows["step"] == 10, "called_generated"].any()
    assert first.loc[4, "probability"] == pytest.approx(1 / (1 + np.exp(-2))) and first["noise_correlation"].to_numpy() == pytest.approx(-1)
    assert first.loc[0, "threshold"] == pytest.approx(1 / (1 + np.exp(-1.25)))
    assert list(first["part"]) == ["photograph"] * 2 + ["trained on"] * 2 + ["unseen, further"] * 2
    assert first.loc[0, "effective_support"] == pytest.approx(float(attention.effective_support(torch.from_numpy(seen.maps[0]))[0]))


def test_every_photograph_has_an_author_and_a_licence(world):
    found = gallery.read(world.params, 2)
    rows = gallery.credits_of(found, read_card(world.params.data.card))
    assert list(rows["author"]) == ["nobody"] * 2 and list(rows["licence"]) == ["CC0-1.0"] * 2
    assert list(rows["photograph"]) == [f"{name}.png" for name in found.table["photo"]]
    with pytest.raises(UserError, match=f"lacks {found.table['photo'][0]}"):
        gallery.credits_of(found, [])
