import numpy as np
import pandas as pd
import pytest

from anl import analysis
from anl.benchmark import read_manifest
from anl.published import study


def scores(seed, gap):
    """A run's table of scores, the classes `gap` standard deviations apart on test and validation."""
    rng, rows = np.random.default_rng(seed), []
    for split, view in (("val", "raw"), ("test", "raw"), ("test", "matched"), ("test", "jpeg96")):
        for generator in ("real", "sd14", *(("gan", "vae", "ddpm") if split == "test" else ())):
            for i in range(60):
                rows.append({"sample_id": f"{generator}/{split}-{i}", "photo": f"{generator}{i}", "cluster": f"{generator}{i}",
                             "generator": generator, "split": split, "view": view, "label": int(generator != "real"),
                             "logit": rng.normal() + gap * (generator != "real")})
    return pd.DataFrame(rows)


def test_the_best_threshold_is_the_best_of_all_thresholds():
    rng = np.random.default_rng(0)
    label = rng.integers(0, 2, 300)
    logit = np.round(label + rng.normal(0, 1, 300), 1)  # with ties
    threshold, reached = study.best_threshold(label, logit)
    assert reached == pytest.approx(((logit > threshold) == label).mean())
    assert reached == pytest.approx(max(((logit > t) == label).mean() for t in np.arange(-5, 6, 0.05)))


@pytest.mark.parametrize("label, logit, threshold", [([0, 1], [-3.0, 1.0], -1.0), ([0, 0], [1.0, 2.0], 3.0), ([1, 1], [1.0, 2.0], 0.0)])
def test_thresholds_by_hand(label, logit, threshold):
    assert study.best_threshold(np.array(label), np.array(logit)) == (threshold, 1.0)


def test_accuracy_uses_the_validation_threshold_on_the_data_sets_own_test_images(public):
    tables = {"a": scores(0, 2.0), "b": scores(1, 3.0), "c": scores(2, 1.0)}
    found = study.accuracy({"plain": ["a"], "anl": ["b"]}, public.params, "matched", tables.get).set_index("method")
    val, test = (tables["b"][(tables["b"]["split"] == split) & (tables["b"]["view"] == view)
                             & tables["b"]["generator"].isin(["real", "sd14"])] for split, view in (("val", "raw"), ("test", "matched")))
    threshold, reached = study.best_threshold(val["label"], val["logit"])
    assert found.loc["anl", "accuracy"] == pytest.approx(((test["logit"] > threshold) == test["label"]).mean())
    assert found.loc["anl", "validation"] == pytest.approx(reached) and found.loc["anl", "n"] == 120
    assert found.loc["anl", "accuracy_low"] < found.loc["anl", "accuracy"] < found.loc["anl", "accuracy_high"]
    assert found.loc["anl", "minus_plain"] == pytest.approx(found.loc["anl", "accuracy"] - found.loc["plain", "accuracy"])
    assert found.loc["plain", "minus_plain"] == 0


def test_each_method_is_labelled_once_with_a_run_for_every_seed(public):
    found = study.labelled(public.params)
    assert list(found) == ["plain", "anl", "anl, attention none", "anl, target highpass", "anl, t = 100", "npr", "dnf"]
    every = [spec for specs in found.values() for spec in specs]
    assert len(set(every)) == len(every) == 14


def test_encodings_are_counted_for_each_generator(public):
    found = study.encodings(read_manifest(public.params.benchmark.folder)).set_index("generator")
    assert found["share"].eq(1).all() and found["jpeg_quality"].eq(75).all() and found.loc["gan", "images"] == 4


def test_every_number_of_the_page_is_quoted_with_a_text(public):
    tables = {name: scores(i, 1.0 + i) for i, name in enumerate("abcdef")}
    groups = {"plain": ["a", "b"], "anl": ["c", "d"], "npr": ["e", "f"]}
    accuracy = study.accuracy(groups, public.params, "matched", tables.get)
    summary = analysis.summary(groups, public.params, "matched", study.METRICS, read=tables.get)
    gains = pd.concat([analysis.paired_difference(groups, base, public.params, "matched", study.METRICS, read=tables.get)
                       for base in ("plain", "anl")])
    counts = pd.DataFrame([{"split": "train and val", "generator": "real", "published": 14, "in_test_too": 1, "repeated": 1,
                            "used": 12}])
    probe = pd.DataFrame([{"features": "declared", "balanced_accuracy": 0.5, "low": 0.4, "high": 0.6, "real": 14, "generated": 14}])
    values = study.quoted(accuracy, summary, gains, public.params) | study.quoted_of_files(counts, probe)
    assert values["best_on_validation"]["text"] == "`npr`" and values["in_test_too_real"]["text"] == "1"
    assert values["unseen_anl_minus_plain"]["value"] > 0 and values["beaten"]["text"] == "1 of 2"
    assert values["reference"]["text"] == "92.98 %" and not any("nan" in item["text"] for item in values.values())
    assert list(study.across(summary).columns[:3]) == ["method", "sd14", "sd14_low"]
