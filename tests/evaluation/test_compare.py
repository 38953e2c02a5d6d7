"""The comparison table: its numbers against scikit-learn and plain resampling, its pairing, its unseen mean, its verdicts."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score, balanced_accuracy_score, roc_auc_score

from anl.evaluation import bootstrap
from anl.evaluation.calibration import calibrate
from anl.evaluation.compare import best_of, compare, holm, measure
from anl.io import UserError
from tests.evaluation.synthetic import scores_table

OPTIONS = {"seen": "ddim", "replicates": 200, "seed": 1}


@pytest.fixture(scope="module")
def scores():
    return scores_table({"plain": 0.5, "anl": 1.0})


@pytest.fixture(scope="module")
def table(scores):
    return compare(scores, "plain", **OPTIONS)


def row(table, **where):
    rows = table
    for column, value in where.items():
        rows = rows[rows[column] == value]
    assert len(rows) == 1
    return rows.iloc[0]


def part(scores, variant, seed, generator, view, split="test"):
    return scores[(scores["variant"] == variant) & (scores["seed"] == seed) & (scores["view"] == view)
                  & (scores["split"] == split) & scores["generator"].isin(["real", generator])]


def test_means_are_scikit_learns_mean_over_seeds(scores, table):
    expected = {"auroc": [], "average_precision": [], "balanced_accuracy": [], "pairwise_accuracy": []}
    for seed in (0, 1, 2):
        rows = part(scores, "anl", seed, "vae", "jpeg96")
        validation = part(scores, "anl", seed, "ddim", "raw", "val")
        threshold = calibrate(validation["label"], validation["logit"], 0.05).threshold
        expected["auroc"].append(roc_auc_score(rows["label"], rows["logit"]))
        expected["average_precision"].append(average_precision_score(rows["label"], rows["logit"]))
        expected["balanced_accuracy"].append(balanced_accuracy_score(rows["label"], rows["logit"] > threshold))
        wide = rows.pivot(index="pair", columns="generator", values="logit")
        expected["pairwise_accuracy"].append((wide["vae"] > wide["real"]).mean())
    for metric, values in expected.items():
        found = row(table, variant="anl", generator="vae", view="jpeg96", metric=metric)
        assert found["mean"] == pytest.approx(np.mean(values), abs=1e-12), metric
        assert (found["seeds"], found["n"]) == (3, 12)


def test_intervals_stay_where_the_metric_can_be():
    perfect = scores_table({"anl": 50.0})
    perfect.loc[(perfect["seed"] == 0) & (perfect["label"] == 1), "logit"] -= 60.0  # seeds that disagree: a wide interval
    table = compare(perfect, metrics=("auroc", "nll"), **OPTIONS)
    auroc = table[table["metric"] == "auroc"]
    assert auroc["low"].between(0, 1).all() and auroc["high"].between(0, 1).all() and (auroc["high"] == 1).any()
    assert (table.loc[table["metric"] == "nll", "high"] > 1).any()


def test_differences_are_paired_in_photographs_and_seeds(scores, table):
    place = {"generator": "ddpm", "view": "raw", "metric": "auroc"}
    found = row(table, variant="anl", **place)
    other = row(table, variant="plain", **place)
    assert found["difference"] == pytest.approx(found["mean"] - other["mean"])
    test = scores[scores["split"] == "test"]
    draws = bootstrap.draw_groups(test["group"], 200, 1)
    values, replicates = [], []
    for seed in (0, 1, 2):
        own, base = (part(scores, name, seed, "ddpm", "raw") for name in ("anl", "plain"))
        count = draws.counts[np.searchsorted(draws.names, own["group"].to_numpy(str))]
        values.append(roc_auc_score(own["label"], own["logit"]) - roc_auc_score(base["label"], base["logit"]))
        fake, real = (count[(own["label"] == label).to_numpy()] for label in (1, 0))
        above = [(rows["logit"][rows["label"] == 1].to_numpy()[:, None] > rows["logit"][rows["label"] == 0].to_numpy())
                 for rows in (own, base)]
        areas = [((wins.T @ fake) * real).sum(0) / (fake.sum(0) * real.sum(0)) for wins in above]
        replicates.append(areas[0] - areas[1])
    expected = bootstrap.interval(values, replicates, 12)
    assert (found["difference_low"], found["difference_high"]) == pytest.approx((expected.low, expected.high), abs=1e-5)
    assert np.isnan(other["difference"])


def test_unseen_averages_disjoint_models_first(scores):
    models = {"ddim": "pixel", "ddpm": "pixel", "vae": "vae", "latent": "vae", "flow": "flow"}
    rows = scores_table({"anl": 1.0}, generators=tuple(models), views=("raw",))
    table = compare(rows, metrics=("auroc",), disjoint=models, **OPTIONS)
    mean = table.set_index("generator")["mean"]
    assert mean["unseen"] == pytest.approx(((mean["vae"] + mean["latent"]) / 2 + mean["flow"]) / 2)
    every = compare(rows, metrics=("auroc",), **OPTIONS).set_index("generator")["mean"]
    assert every["unseen"] == pytest.approx(every[["ddpm", "vae", "latent", "flow"]].mean())
    assert set(mean.index) == {*models, "unseen"}


def test_rows_and_variants_do_not_depend_on_the_order_of_the_scores(scores, table):
    shuffled = compare(scores.sample(frac=1, random_state=0), "plain", **OPTIONS)
    keys = ["variant", "generator", "view", "metric"]
    merged = table.merge(shuffled, on=keys, suffixes=("", "_other"))
    assert len(merged) == len(table)
    np.testing.assert_allclose(merged["low"], merged["low_other"], atol=1e-6)
    alone = compare(scores[scores["variant"] == "anl"], **OPTIONS)
    np.testing.assert_allclose(alone["high"], table.loc[table["variant"] == "anl", "high"], atol=1e-6)


def test_false_positive_rate_has_one_row_also_where_only_reals_were_scored(scores):
    controls = scores[(scores["generator"] == "real") & (scores["view"] == "raw") & (scores["split"] == "test")]
    table = compare(pd.concat([scores, controls.assign(view="blur")]), metrics=("fpr", "auroc"), **OPTIONS)
    rows = table[(table["variant"] == "anl") & (table["metric"] == "fpr")]
    assert rows["generator"].unique().tolist() == ["real"] and set(rows["view"]) == {"raw", "jpeg96", "blur"}
    values = rows.set_index("view")["mean"]
    assert values["blur"] == values["raw"] and not (table["view"].eq("blur") & table["metric"].eq("auroc")).any()


def test_unpaired_images_have_no_pairwise_accuracy_and_are_drawn_within_their_class():
    rows = scores_table({"anl": 1.0}, paired=False, views=("raw",), photographs=10)
    table = compare(rows, **OPTIONS)
    assert table.loc[table["metric"] == "pairwise_accuracy", "mean"].isna().all()
    assert row(table, generator="ddim", metric="auroc")["n"] == 60
    measured = measure(rows, **OPTIONS)
    assert measured.photographs["ddim", "raw"] == (60, 2)


def test_best_needs_every_rival_below_and_not_best_one_above():
    rows = scores_table({"weak": 0.2, "other": 0.3, "strong": 2.5}, photographs=30, views=("raw",))
    place = {"view": "raw", "generator": "vae"}
    strong, weak, other = (compare(rows, name, **OPTIONS) for name in ("strong", "weak", "other"))
    assert best_of(strong, "strong", **place)[:3] == ("best", 2, 0)
    assert best_of(weak, "weak", **place).verdict == "not best"
    assert best_of(other, "other", ["weak"], **place).verdict == "undecided"
    level = compare(pd.concat([rows, rows[rows["variant"] == "strong"].assign(variant="level")]), "strong", **OPTIONS)
    assert best_of(level, "strong", **place)[:2] == ("undecided", 2)
    table = best_of(weak, "weak", **place).table
    assert table["rival"].tolist() == ["other", "strong"] and (table["p_holm"] >= table["p"]).all()
    gain = row(strong, variant="weak", metric="auroc", **place)
    found = best_of(strong, "strong", ["weak"], **place).table.iloc[0]
    assert (found["difference"], found["low"], found["high"]) == (-gain["difference"], -gain["difference_high"], -gain["difference_low"])
    for changes in ({"rivals": ["x"]}, {"rivals": []}, {"metric": "x"}):
        with pytest.raises(UserError, match="has no difference between 'strong' and"):
            best_of(strong, "strong", **{**place, **changes})


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.5]) == pytest.approx([0.04, 0.09, 0.09, 0.5])
    assert holm([0.6, 0.6]) == pytest.approx([1, 1])


def broken(scores, how):
    if how == "images":
        return scores.drop(scores.index[-1])
    if how == "twice":
        return pd.concat([scores, scores.iloc[[-1]]])
    if how == "seeds":
        return scores[(scores["variant"] != "anl") | (scores["seed"] != 2)]
    if how == "validation":
        return scores[scores["split"] == "test"]
    return scores.drop(columns="group")


@pytest.mark.parametrize(("how", "message"), [
    ("images", "other images"), ("twice", "twice"), ("seeds", "same seeds"), ("validation", "'plain' seed 0"),
    ("column", "'group'")])
def test_scores_that_cannot_be_compared_are_refused(scores, how, message):
    with pytest.raises(UserError, match=message):
        compare(broken(scores, how), "plain", **OPTIONS)


def test_unknown_names_are_refused(scores):
    for changes in ({"baseline": "x"}, {"views": ["x"]}, {"metrics": ["x"]}):
        with pytest.raises(UserError, match="choose"):
            compare(scores, **{**OPTIONS, **changes})


def test_intervals_at_a_threshold_cover_the_draw_of_the_validation_photographs():
    rng, inside = np.random.default_rng(0), []
    images = pd.DataFrame([{"image_id": f"{split}-{kind}-{number}", "generator": kind, "split": split, "group": f"{split}-{kind}-{number}",
                            "pair": "", "label": int(kind != "real"), "variant": "anl", "seed": 0, "view": "raw"}
                           for split in ("val", "test") for kind in ("real", "ddim") for number in range(100)])
    for repetition in range(100):
        scores = images.assign(logit=rng.standard_normal(len(images)) + images["label"])
        fpr = measure(scores, metrics=("fpr",), seen="ddim", replicates=200, seed=repetition, target_fpr=0.2)
        key = ("anl", "real", "raw", "fpr")
        found = bootstrap.interval(fpr.values[key], fpr.replicates[key], 100)
        inside.append(found.low <= 0.2 <= found.high)  # the expected rate of a threshold drawn with the photographs
    assert 0.88 <= np.mean(inside) <= 1.0


def test_a_generator_used_for_selection_is_not_unseen(scores):
    kept, dropped = (compare(scores, metrics=("auroc",), held_out=names, **OPTIONS) for names in ((), ("vae",)))
    chosen = {"variant": "anl", "generator": "unseen", "view": "raw"}
    assert row(dropped, **chosen)["mean"] == pytest.approx(row(kept, **(chosen | {"generator": "ddpm"}))["mean"])
    assert row(dropped, **chosen)["mean"] != pytest.approx(row(kept, **chosen)["mean"])
