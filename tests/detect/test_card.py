"""Packing a run: calibration, measured errors, and a folder that deletes nothing."""

import json
import sys
import types

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit

from anl.detect import card as cards
from anl.io import UserError, sha256_of, write_json
from tests.conftest import photograph
from tests.detect.conftest import CONDITIONS, WHOLE, make_scores, tiny


def means(scores, **where):
    rows = scores[(scores[list(where)] == pd.Series(where)).all(axis=1)]
    return rows.groupby("group")["logit"].mean().to_numpy()


def test_threshold_keeps_the_false_positive_rate_over_conditions_and_states_it_in_each(folder, scores):
    card = cards.read(folder)
    rates = {view: (means(scores, split="val", generator="real", view=view) > card.threshold).mean() for view in WHOLE}
    assert card.calibration.fpr_by_condition == pytest.approx(rates, abs=1e-4)
    assert np.mean(list(rates.values())) <= 0.05 < np.mean([(means(scores, split="val", generator="real", view=view) > card.threshold - 0.5).mean()
                                                            for view in WHOLE])
    fake = np.concatenate([means(scores, split="val", generator="ddim", view=view) for view in CONDITIONS])
    assert card.lower <= card.threshold and (fake < card.lower).mean() == pytest.approx(card.calibration.target_miss, abs=0.01)
    assert (card.calibration.n_real, card.calibration.n_generated) == (40, 40)


@pytest.mark.parametrize(("gap", "miss"), [(6, 0.05), (0.5, 0.5)])
def test_at_most_a_third_is_undecided_and_the_price_is_stated(gap, miss):
    """Where the classes are apart both errors are small; where they are not, more generated pictures are called real."""
    scores = make_scores()
    scores.loc[scores["generator"] == "ddim", "logit"] += gap - 3
    rule = cards.calibrate(scores, ["ddim"], 0.05)
    parts = [np.concatenate([means(scores, split="val", generator=name, view=view) for view in views])
             for name, views in (("real", WHOLE), ("ddim", CONDITIONS))]
    undecided = [((part >= rule["lower"]) & (part <= rule["threshold"])).mean() for part in parts]
    stated = rule["calibration"].target_miss
    assert np.mean(undecided) <= cards.UNDECIDED + 1e-9 and stated == pytest.approx((parts[1] < rule["lower"]).mean(), abs=1e-3)
    assert stated <= 0.05 if miss == 0.05 else stated > 0.3


def test_held_out_generators_calibrate_too(config, tmp_path):
    scores = make_scores()
    scores = pd.concat([scores, scores[scores["generator"] == "ddim"].assign(generator="vae", logit=lambda rows: rows["logit"] - 1)])
    held = config.override(benchmark={"held_out": ["vae"]})
    one, both = (cards.write(tiny(), tmp_path / name, config=chosen, scores=scores) for name, chosen in (("a", config), ("b", held)))
    assert (one.calibration.n_generated, both.calibration.n_generated) == (40, 80) and both.midpoint < one.midpoint
    assert (one.training.held_out, both.training.held_out) == ([], ["vae"]) and "vae" in one.training.unseen and "vae" not in both.training.unseen


def test_the_probability_is_calibrated_for_half_real_and_half_generated(folder, scores):
    card = cards.read(folder)
    real = np.concatenate([means(scores, split="test", generator="real", view=view) for view in WHOLE])
    fake = np.concatenate([means(scores, split="test", generator="ddim", view=view) for view in CONDITIONS])
    probability = [expit((logit - card.midpoint) / card.temperature) for logit in (real, fake)]
    assert np.mean([part.mean() for part in probability]) == pytest.approx(0.5, abs=0.05)
    assert card.probability(card.midpoint) == 0.5 and card.probability(1e9) == 1 and card.probability(-1e9) < 1e-300
    assert [card.verdict(card.threshold + x) for x in (1e-6, 0)] == ["generated", "undecided"]
    assert card.verdict(card.lower - 1e-6) == "real"


def test_errors_are_measured_on_test_images_of_every_generator(folder, scores):
    card = cards.read(folder)
    table = card.table()
    assert table["generator"].tolist() == ["real"] * 6 + ["ddim"] * 3 + ["vae"] * 3
    np.testing.assert_allclose(table[list(cards.VERDICTS)].sum(axis=1), 1, atol=1e-5)
    row = table[(table["generator"] == "vae") & (table["condition"] == "blur")].iloc[0]
    assert not row["seen"] and row["n"] == 40
    assert row["generated"] == pytest.approx((means(scores, split="test", generator="vae", view="blur") > card.threshold).mean())
    assert table["auroc"].isna().tolist() == [True] * 6 + [False] * 6
    assert (card.training.seen, card.training.unseen) == (["ddim"], ["vae"])


def test_the_card_describes_the_weights(folder):
    card = cards.read(folder)
    assert card.weights_sha256 == sha256_of(folder / cards.WEIGHTS)
    assert card.settings["kind"] == "detector" and card.settings["backbone"] == "test_resnet" and card.size == 32
    assert card.training.run["identity"] == "0" and card.licence == "MIT"
    assert sorted(path.name for path in folder.iterdir()) == ["card.json", "model.safetensors"]


def test_nothing_but_a_packaged_detector_is_ever_replaced(config, scores, tmp_path):
    place = tmp_path / "detector"
    write = {"config": config, "scores": scores}
    cards.write(tiny(), place, **write)
    with pytest.raises(UserError, match="already holds a packaged detector.*--replace"):
        cards.write(tiny(), place, **write)
    cards.write(tiny(seed=1), place, **write, replace=True)
    (place / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="holds notes.txt.*nothing was deleted"):
        cards.write(tiny(), place, **write, replace=True)
    (place / "notes.txt").unlink()
    (place / cards.WEIGHTS).write_bytes(b"other weights")
    with pytest.raises(UserError, match="not a packaged detector"):
        cards.write(tiny(), place, **write, replace=True)
    (tmp_path / "link").symlink_to(place)
    with pytest.raises(UserError, match="symbolic link"):
        cards.write(tiny(), tmp_path / "link", **write, replace=True)
    assert (place / cards.WEIGHTS).read_bytes() == b"other weights"


def test_scores_without_a_class_are_refused(config, scores, tmp_path):
    with pytest.raises(UserError, match="lack untouched validation images"):
        cards.write(tiny(), tmp_path / "x", config=config, scores=scores[scores["generator"] != "ddim"])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("change", "message"), [
    ({"version": 2}, "version"), ({"size": 33}, "size"), ({"temperature": 0.0}, "temperature"),
    ({"threshold": -100.0}, "lower is above"), ({"measured": [{"generator": "x"}]}, "measured.0"), ({"limits": "x"}, "limits")])
def test_impossible_cards_are_refused(folder, tmp_path, change, message):
    value = json.loads((folder / cards.CARD).read_text()) | change
    write_json(tmp_path / cards.CARD, value)
    with pytest.raises(UserError, match=rf"not a detector's card \(.*{message}"):
        cards.read(tmp_path)


def test_missing_and_broken_cards_are_named(tmp_path):
    with pytest.raises(UserError, match="card.json is missing"):
        cards.read(tmp_path)
    (tmp_path / cards.CARD).write_text("[" * 100000)
    with pytest.raises(UserError, match="card.json"):
        cards.read(tmp_path)


def test_explained_in_lines_that_cannot_steer_a_terminal(folder):
    card = cards.read(folder)
    text = cards.explain(card.model_copy(update={"licence": "\x1b[31mred"}), width=80)
    assert "\x1b" not in text and "generated" in text and all(limit.split(":")[0][:40] in text.replace("\n  ", " ") for limit in card.limits)
    assert "vae" in text and len(cards.summary(card).splitlines()) == 3
    assert cards.model_card(card).startswith("---\nlibrary_name: anl\n")


def test_pack_scores_untouched_and_processed_images_and_whole_files(config, tmp_path, monkeypatch):
    """`pack` of a run: benchmark and loader are stand-ins, photographs are files."""
    from PIL import Image

    config = config.override(data={"card": str(tmp_path / "photos.csv"), "folder": str(tmp_path)},
                             evaluation={"conditions": ["blur"]})
    rows, lines = [], ["file,sha256,bytes,width,height,format,licence,author,source,package,path_in_package,group"]
    for index, split in enumerate(["val", "test"] * 3):
        Image.fromarray(photograph(index, 70, 80)).save(tmp_path / f"p{index}.png")
        lines.append(f"p{index}.png,0,1,80,70,PNG,CC0,me,,,,")
        for generator in ("real", "ddim"):
            rows += [{"image_id": f"{generator}/p{index}@{top}x0", "group": f"p{index}", "pair": f"p{index}@{top}x0",
                      "generator": generator, "split": split, "label": int(generator != "real"), "jpeg_quality": None,
                      "format": "PNG"} for top in (0, 9)]
    (tmp_path / "photos.csv").write_text("\n".join(lines) + "\n")
    (tmp_path / "run").mkdir()
    write_json(tmp_path / "run" / "run.json", {"identity": "abc", "seed": 0})

    def pixels(part):
        return np.stack([photograph(int(row.label), 32, 32) for row in part.itertuples()])

    benchmark = types.SimpleNamespace(rows=pd.DataFrame(rows), folder=tmp_path, pixels=pixels)
    stand_in = types.ModuleType("anl.training.runs")
    stand_in.open_benchmark, stand_in.load_run = lambda config: benchmark, lambda run, config, device: tiny()
    monkeypatch.setitem(sys.modules, "anl.training.runs", stand_in)
    card = cards.pack(tmp_path / "run", tmp_path / "out", config=config)
    assert set(card.calibration.fpr_by_condition) == {"files", "files+blur"}
    assert card.calibration.n_real == 3 and card.training.run["identity"] == "abc"
    assert {(row.generator, row.condition, row.n) for row in card.measured} == {
        ("real", "raw", 3), ("real", "blur", 3), ("real", "files", 3), ("ddim", "raw", 3), ("ddim", "blur", 3)}


