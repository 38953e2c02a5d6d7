import dataclasses

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.metrics import average_precision_score, roc_auc_score

from anl import analysis, figures_leave_one_out, leave_one_out_study
from anl.predict import write_predictions

FAMILIES = ("ddim", "vae", "flow")


def scores(folder, strength, seed):
    """A run's predictions: reals at 0, the images of each family around its `strength`."""
    rng, rows = np.random.default_rng(seed), []
    for split, generators in (("val", ("real", "others")), ("test", ("real", *FAMILIES))):
        for generator in generators:
            rows += [{"sample_id": f"{generator}/{split}{i}", "photo": f"{split}{i // 3}", "cluster": f"{split}{i // 3}",
                      "generator": generator, "split": split, "view": view, "label": int(generator != "real"),
                      "logit": strength.get(generator, 1.0) * (generator != "real") + rng.normal()}
                     for i in range(30) for view in ("raw", "matched", "jpeg96")]
    folder.mkdir(parents=True)
    write_predictions(folder, pd.DataFrame(rows))
    return folder


@pytest.fixture
def study(world, tmp_path):
    """(parameters, folders): two seeds; noise learning helps on vae when several families are trained on."""
    families = {name: world.params.families[name] for name in FAMILIES}
    params = dataclasses.replace(world.params, families=families)
    folders = {}
    for method, strengths in (("plain", {"vae": 0.5}), ("anl", {"vae": 3.0}), ("plain_one", {"vae": 0.1}), ("anl_one", {"vae": 0.2})):
        runs = {name: [scores(tmp_path / method / name / str(seed), strengths, seed) for seed in (0, 1)] for name in FAMILIES}
        one = runs["ddim"]
        folders[method] = {name: one for name in FAMILIES} if method.endswith("_one") else runs
    return params, folders


def pick(table, **place):
    for column, value in place.items():
        table = table[table[column] == value]
    (row,) = table.to_dict("records")
    return row


def test_each_family_is_scored_by_the_runs_that_left_it_out(study):
    params, folders = study
    means, differences = leave_one_out_study.compared(folders, params, "matched")
    wanted = {"AP": [], "AUROC": []}
    for folder in folders["anl"]["vae"]:
        table = pd.read_parquet(folder / "predictions.parquet")
        test = table[(table["split"] == "test") & (table["view"] == "matched") & table["generator"].isin(["real", "vae"])]
        wanted["AP"].append(average_precision_score(test["label"], test["logit"]))
        wanted["AUROC"].append(roc_auc_score(test["label"], test["logit"]))
    for metric, values in wanted.items():
        row = pick(means, method="anl", generator="vae", metric=metric)
        assert row["mean"] == pytest.approx(np.mean(values)) and row["low"] <= row["mean"] <= row["high"]
        assert row["seeds"] == 2 and row["n"] == 60
    gain = pick(differences, what="gain", generator="vae", metric="AP")
    assert gain["low"] > 0.1 and gain["difference"] == pytest.approx(
        pick(means, method="anl", generator="vae", metric="AP")["mean"] - pick(means, method="plain", generator="vae", metric="AP")["mean"])
    more = pick(differences, what="gain_more", generator="vae", metric="AP")
    assert more["difference"] == pytest.approx(
        gain["difference"] - pick(differences, what="gain_one", generator="vae", metric="AP")["difference"])


def test_the_mean_that_both_protocols_share_leaves_out_the_one_family(study):
    params, folders = study
    means, differences = leave_one_out_study.compared(folders, params, "jpeg96")
    of = {name: pick(means, method="plain", generator=name, metric="AP")["mean"] for name in (*FAMILIES, "unseen", "every")}
    assert of["unseen"] == pytest.approx((of["vae"] + of["flow"]) / 2)
    assert of["every"] == pytest.approx((of["vae"] + of["flow"] + of["ddim"]) / 3)
    assert pick(means, method="plain", generator="every", metric="AP")["n"] == 120
    assert not ((means["method"] == "plain_one") & (means["generator"] == "every")).any()
    assert set(differences.loc[differences["generator"] == "every", "what"]) == {"gain"}


def test_numbers_and_tables_hold_every_view(study):
    params, folders = study
    parts = [leave_one_out_study.compared(folders, params, view) for view in ("matched", "jpeg96")]
    means, differences = (pd.concat(tables, ignore_index=True) for tables in zip(*parts, strict=True))
    values = leave_one_out_study.numbers(means, differences, "matched")
    assert values["held_gain"]["value"] >= 1 and values["held_gain"]["text"].endswith("of 3") and values["seeds"]["text"] == "2"
    for key in ("AP_gain_vae", "AP_gain_vae_jpeg96", "AUROC_anl_every", "balanced_accuracy_plain_one_ddim", "AP_anl_more_unseen"):
        assert values[key]["low"] <= values[key]["value"] <= values[key]["high"]
    one = [table[table["view"] == "matched"] for table in (means, differences)]
    table = leave_one_out_study.side_by_side(*one, "AP")
    assert list(table["family"]) == [*FAMILIES, analysis.UNSEEN, leave_one_out_study.EVERY]
    assert table.set_index("family").loc["vae", "gain"] == pytest.approx(pick(one[1], what="gain", generator="vae", metric="AP")["difference"])


def test_one_family_alone_has_no_mean_beside_it(study):
    params, folders = study
    alone = {method: {"ddim": runs["ddim"]} for method, runs in folders.items()}
    means, differences = leave_one_out_study.compared(alone, params, "raw")
    assert set(means["generator"]) == {"ddim", "every"} and pick(differences, what="gain", generator="every", metric="AP")


def test_the_figure_draws_every_series(study, tmp_path):
    params, folders = study
    means, differences = (table[table["metric"] == "AP"] for table in leave_one_out_study.compared(folders, params, "matched"))
    names = {"vae": "vae", "ddim": "ddim (trained on)", "unseen": "mean without ddim", "every": "mean of all"}

    def draw(name, data):
        return figures_leave_one_out.by_left_out(data, differences, tmp_path / name, names).read_bytes()

    first = draw("a.png", means)
    assert first == draw("b.png", means) != draw("c.png", means[means["method"] != "anl_one"])
    assert Image.open(tmp_path / "a.png").width > 1000
