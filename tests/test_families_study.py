import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import average_precision_score

from anl import detector, families_study, more_families, predict
from anl.benchmark import REAL
from anl.data import views
from anl.errors import UserError
from anl.files import write_json

PAIRED = ["dpm", "inpaint", "superres"]


def run(root, params, slug, seed=0, formats="lossless"):
    """A run folder of an untrained detector, with its scores."""
    folder = root / "runs/tiny/main" / slug
    torch.manual_seed(seed)
    made = detector.Detector("test_resnet", 8, 8, 4, 32, attention_dim=8).eval()
    detector.save(made, folder / "model.safetensors")
    write_json(folder / "run.json", {"spec": {"seed": seed, "formats": formats}})
    predict.write_predictions(folder, predict.score_benchmark(made, params))
    return folder


def test_generated_test_images_are_scored_once_in_every_view(tmp_path, world):
    folder = run(tmp_path, world.params, "plain-s0")
    made = families_study.score_run(folder, world.params)
    assert made == tmp_path / "runs/tiny/families/plain-s0"
    table = pd.concat([pd.read_parquet(made / f"{name}.parquet") for name in world.params.more_families])
    manifest, pixels = more_families.read(world.params)
    wanted = manifest[(manifest["split"] == "test") & (manifest["generator"] != REAL)]
    assert list(table.columns) == predict.COLUMNS and set(table["view"]) == set(world.params.evaluation.views)
    for view, part in table.groupby("view"):
        assert sorted(part["sample_id"]) == sorted(wanted["sample_id"])
        last = wanted.index[-1]  # alone, so that its score depends on no other image
        image = views.apply("raw" if view == "matched" else view, pixels[last])
        alone = predict.score(detector.load(folder / "model.safetensors"), image[None])
        stored = part.loc[part["sample_id"] == wanted.loc[last, "sample_id"], "logit"].item()
        assert stored == pytest.approx(alone.item(), abs=1e-5)


def test_what_is_current_is_kept_and_what_is_not_is_made_again(tmp_path, world):
    folder = run(tmp_path, world.params, "plain-s0")
    path = families_study.score_run(folder, world.params) / "dpm.parquet"
    before, stamp = path.read_bytes(), path.stat().st_mtime_ns
    (path.parent / "superres.parquet").unlink()  # as if that family were new
    families_study.score_run(folder, world.params)
    assert path.stat().st_mtime_ns == stamp and (path.parent / "superres.parquet").is_file()
    run(tmp_path, world.params, "plain-s0", seed=1)  # other weights under the same name
    families_study.score_run(folder, world.params)
    other = path.read_bytes()
    path.write_bytes(before[:100])
    families_study.score_run(folder, world.params)
    assert before != other == path.read_bytes()


def test_a_run_that_cannot_be_scored_is_named(tmp_path, world):
    with pytest.raises(UserError, match="run.json is missing"):
        families_study.score_run(tmp_path / "nothing", world.params)
    with pytest.raises(UserError, match="other formats"):
        families_study.score_run(run(tmp_path, world.params, "plain-leaky-s0", formats="leaky"), world.params)
    with pytest.raises(UserError, match="no paired `more_families`"):
        families_study.compared({}, ["plain"], dataclasses.replace(world.params, more_families={}))
    with pytest.raises(UserError, match="family_statistics.csv is missing; make it with `anl audit --more`"):
        families_study.read_statistics(world.params, tmp_path)


@pytest.fixture(scope="module")
def study(tmp_path_factory, world):
    root = tmp_path_factory.mktemp("families")
    groups = {name: [run(root, world.params, f"{name}-s{seed}", 10 * index + seed) for seed in range(2)]
              for index, name in enumerate(("plain", "anl", "npr"))}
    return world.params, groups, *families_study.compared(groups, ["plain", "anl"], world.params)


def ap(folders, family, view, params):
    """The mean over runs of scikit-learn's average precision on one family."""
    scores = []
    for folder in folders:
        table = families_study.read_scores(folder, params)
        table = table[(table["split"] == "test") & (table["view"] == view) & table["generator"].isin([REAL, family])]
        scores.append(average_precision_score(table["label"], table["logit"]))
    return np.mean(scores)


def pick(table, **place):
    for key, value in place.items():
        table = table[table[key] == value]
    return table


def test_means_agree_with_scikit_learn(study):
    params, groups, means, differences = study
    for family, view in (("vae", "matched"), ("superres", "jpeg96"), ("unconditional", "matched")):
        wanted = {name: ap(folders, family, view, params) for name, folders in groups.items()}
        rows = pick(means, metric="AP", generator=family, view=view).set_index("method")
        assert rows["mean"].to_dict() == pytest.approx(wanted)
        row = pick(differences["plain"], metric="AP", generator=family, view=view, method="anl")
        assert row["difference"].item() == pytest.approx(wanted["anl"] - wanted["plain"])


def test_means_over_unseen_families_leave_out_the_seen_and_the_unpaired(study):
    params, groups, means, _ = study
    own = [name for name in params.families if name != params.benchmark.seen]
    for name, families in (("unseen_benchmark", own), ("unseen_further", PAIRED), ("unseen", own + PAIRED)):
        row = pick(means, metric="AP", generator=name, view="matched", method="anl")
        assert row["mean"].item() == pytest.approx(np.mean([ap(groups["anl"], family, "matched", params) for family in families]))
        table = families_study.read_scores(groups["anl"][0], params)
        table = table[(table["split"] == "test") & (table["view"] == "matched")]
        assert row["n"].item() == table["generator"].isin([REAL, *families]).sum() and row["seeds"].item() == 2


def test_methods_of_which_means_alone_are_wanted_are_not_scored_on_unpaired_families(study, tmp_path):
    params, groups, *_ = study
    peer = [run(tmp_path, params, f"srm-s{seed}", 20 + seed) for seed in range(2)]
    fewer = {"plain": groups["plain"], "srm": peer}
    found, over = families_study.compared(fewer, ["plain"], params, on_paired_alone=["srm"])
    assert not (tmp_path / "runs/tiny/families/srm-s0/unconditional.parquet").exists()
    assert pick(found, generator="unconditional")["method"].unique().tolist() == ["plain"]
    assert "unconditional" not in set(over["plain"]["generator"])
    everywhere, _ = families_study.compared(fewer, ["plain"], params)
    both = everywhere[(everywhere["method"] == "plain") | (everywhere["generator"] != "unconditional")]
    pd.testing.assert_frame_equal(found, both.reset_index(drop=True))


def test_tables_to_read(study):
    params, _, means, differences = study
    shown = [pick(table, view="matched", metric="AP") for table in (
        means[means["method"] != "npr"], pick(differences["plain"], method="anl"))]
    table = families_study.family_table(*shown, families_study.parts(params))
    assert table["family"].tolist() == ["ddim", "ddpm", "vae", "vq", "flow", "latent", *PAIRED, "unconditional",
                                        *families_study.NAMES.values()]
    np.testing.assert_allclose(table["anl"] - table["plain"], table["anl_minus_plain"], atol=1e-12)
    over = families_study.turned(differences["anl"])
    table = families_study.method_table(means, over, "jpeg96")
    assert table["unseen"].is_monotonic_decreasing and set(table["method"]) == {"plain", "anl", "npr"}
    own = table.loc[table["method"] == "anl", "unseen"].item()
    rest = table[table["method"] != "anl"]
    np.testing.assert_allclose(own - rest["unseen"], rest["anl_minus_it"].astype(float), atol=1e-12)
    assert table.loc[table["method"] == "anl", "anl_minus_it"].isna().all()


def test_values_count_the_families_whose_interval_lies_above_zero(study):
    params, _, means, differences = study
    gains = pick(differences["plain"]).copy()
    gains["low"] = np.where(gains["generator"].isin(["dpm", "vae"]), 0.01, -0.01)
    values = families_study.gains(means, gains, params)
    assert values["held_unseen_further"]["text"] == "1 of 3" and values["lost_unseen_further"]["text"] == "`inpaint`, `superres`"
    assert values["held_unseen"]["text"] == "2 of 8" and values["held_unseen_jpeg96"]["value"] == 2
    assert values["gain_unconditional"]["value"] == pytest.approx(
        pick(gains, generator="unconditional", view="matched", metric="AP", method="anl")["difference"].item())
    over = families_study.turned(differences["anl"])
    standing = families_study.standing(means, over, params)
    others = pick(means, generator="unseen", view="matched", metric="AP").set_index("method")["mean"].drop("anl")
    assert standing["best_other_unseen"]["text"] == f"`{others.idxmax()}`"
    rows = pick(over, generator="unseen", view="matched", metric="AP")
    assert standing["beaten_unseen"]["text"] == f"{(rows['low'] > 0).sum()} of 2"
