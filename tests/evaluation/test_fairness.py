"""False-positive rates by category, against counting by hand, and the gap between categories."""

import numpy as np
import pandas as pd
import pytest

from anl.evaluation.fairness import GAP, category_errors, category_of
from anl.io import UserError

OPTIONS = {"view": "raw", "seen": ["ddim"], "replicates": 400, "seed": 3}


def scores(shifts, photographs=40, seeds=(0, 1, 2)):
    """Scores of real test images of some categories, {variant: {category: shift of their logits}}, and validation images."""
    rng, rows = np.random.default_rng(0), []
    for variant, categories in shifts.items():
        for seed in seeds:
            for label, generator in ((0, "real"), (1, "ddim")):
                rows += [{"variant": variant, "seed": seed, "image_id": f"{generator}/v/{i}@0", "group": f"v/{i}", "pair": f"v/{i}",
                          "generator": generator, "split": "val", "view": "raw", "label": label, "logit": label * 4 + i / 100}
                         for i in range(100)]
            rows += [{"variant": variant, "seed": seed, "image_id": f"real/{name}/{i}.jpg@0", "group": f"{name}/{i}.jpg",
                      "pair": f"{name}/{i}", "generator": "real", "split": "test", "view": "raw", "label": 0,
                      "logit": shift + rng.normal()} for name, shift in categories.items() for i in range(photographs)]
    return pd.DataFrame(rows)


def test_rates_and_their_gap():
    table = scores({"fair": {"cat": 0, "dog": 0, "few": 0}, "unfair": {"cat": -3, "dog": 1, "few": 0}})
    table = table[~(table["image_id"].str.startswith("real/few/") & ~table["image_id"].str.contains("/[0-9].jpg"))]
    found = category_errors(table, "fair", **OPTIONS).set_index(["variant", "generator"])
    assert set(found.index.get_level_values(1)) == {"cat", "dog", GAP}  # 10 photographs are too few
    validation = table[(table["split"] == "val") & (table["label"] == 0)]
    threshold = np.sort(validation.loc[(validation["variant"] == "fair") & (validation["seed"] == 0), "logit"])[-6]
    dogs = table[(table["variant"] == "unfair") & table["image_id"].str.startswith("real/dog/")]
    assert found.loc[("unfair", "dog"), "mean"] == pytest.approx((dogs["logit"] > threshold).mean(), abs=0.02)
    gap, fair = found.loc[("unfair", GAP)], found.loc[("fair", GAP)]
    assert gap["difference_low"] > 0 and gap["mean"] > fair["mean"] and gap["n"] == 80 and gap["seeds"] == 3
    assert gap["mean"] == pytest.approx(found.loc[("unfair", "dog"), "mean"] - found.loc[("unfair", "cat"), "mean"], abs=1e-6)
    assert np.isnan(fair["difference"]) and (found["low"] <= found["mean"]).all() and (found["mean"] <= found["high"]).all()


def test_too_few_photographs_and_unknown_baselines():
    table = scores({"fair": {"cat": 0, "dog": 0}}, photographs=10)
    assert category_errors(table, "fair", **OPTIONS) is None
    with pytest.raises(UserError, match="baseline 'plain' has no scores"):
        category_errors(table, "plain", **OPTIONS)


@pytest.mark.parametrize("image, category", [("real/Faces/image_0001.jpg@0,0", "Faces"), ("real/Cat@1,2", ""),
                                             ("real/trashnet/glass/a.jpg@0", "glass")])
def test_categories(image, category):
    assert category_of(image) == category
