import json
import shutil

import numpy as np
import pytest

from anl.data.decode import decode
from anl.detect import card, explain
from anl.detect.crops import tile
from anl.errors import UserError
from anl.predict import score


def test_thresholds_hold_in_every_condition_on_validation(world, run, folder):
    from anl import detector

    made = card.read(folder)
    model = detector.load(run / "model.safetensors")
    table = card._scored(model, world.params, "val")
    assert set(table["condition"]) == {"raw", card.FILES, *world.params.evaluation.controls}
    for _, part in table[table["label"] == 0].groupby("condition"):
        logit = card._photographs(part, made.rule)[1]
        assert (logit > made.threshold).mean() <= world.params.evaluation.target_fpr
    assert made.lower <= made.threshold and made.temperature > 0 and made.size == 32


def test_a_photographs_file_is_scored_in_its_own_size(world, run):
    from anl import detector

    model = detector.load(run / "model.safetensors")
    table = card._scored(model, world.params, "test")
    files = table[table["condition"] == card.FILES]
    photo = files["photo"].iloc[0]
    crops, _ = tile(decode(f"{world.root}/photos/{photo}.png"), 32)
    np.testing.assert_allclose(files.loc[files["photo"] == photo, "logit"], score(model, crops), rtol=1e-5)


def test_measured_shares_sum_to_one_and_name_every_generator(world, folder):
    rows = card.read(folder).whole["measured"]
    assert {row["of"] for row in rows} == {"real", *world.params.families}
    for row in rows:
        assert abs(row["called_generated"] + row["called_undecided"] + row["called_real"] - 1) < 1e-4 and row["n"] >= 2
        assert (row["AP"] is None) == (row["of"] == "real")


def test_the_probability_weighs_photographs_files_as_much_as_generated_images(world, run, folder):
    from anl import detector

    made = card.read(folder)
    table = card._scored(detector.load(run / "model.safetensors"), world.params, "val")
    asked = table[(table["label"] == 1) | (table["condition"] == card.FILES)]
    mean = {label: np.mean([np.mean([made.probability(logit) for logit in card._photographs(part, made.rule)[1]])
                            for _, part in asked[asked["label"] == label].groupby("condition")]) for label in (0, 1)}
    # a logistic fit's mean probability is the share of generated ones, here one half
    assert (mean[0] + mean[1]) / 2 == pytest.approx(0.5, abs=0.02) and mean[0] <= mean[1] + 0.05


def test_verdicts_and_probability(folder):
    made = card.read(folder)
    assert card.verdict(1.1, 1.0, 0.0) == "generated" and card.verdict(1.0, 1.0, 0.0) == "undecided"
    assert card.verdict(0.0, 1.0, 0.0) == "undecided" and card.verdict(-0.1, 1.0, 0.0) == "real"
    assert made.probability(made.midpoint) == 0.5 and made.probability(1e9) == 1.0 and made.probability(-1e9) >= 0
    assert made.probability(made.midpoint + made.temperature) == pytest.approx(1 / (1 + np.exp(-1)))


def test_the_explanation_names_errors_and_limits(folder):
    text = explain.text(card.read(folder), width=80)
    assert "real photographs" in text and "files" in text and "A verdict is a hint" in text and "Licence: MIT" in text
    assert all(len(line) <= 80 for line in text.splitlines())


def test_a_card_from_elsewhere_does_not_steer_the_terminal(folder, tmp_path):
    value = json.loads((folder / card.CARD).read_text()) | {"limits": ["\x1b[2Jnone \u202e"], "licence": "\x07\nMIT"}
    (tmp_path / card.CARD).write_text(json.dumps(value))
    assert all(line.isprintable() for line in explain.text(card.read(tmp_path)).splitlines())


@pytest.mark.parametrize("change", [
    {"version": 1}, {"size": 33}, {"size": 10**6}, {"size": "32"}, {"rule": "__import__"}, {"temperature": 0}, {"lower": 1e9},
    {"threshold": float("nan")}, {"limits": None}, {"temperature": None}, {"threshold": "x"}, {"threshold": 10**400},
    {"chosen_on": {}}, {"trained_on": {"generator": "a"}}, {"measured": [{"of": "real"}]}, {"licence": 1}])
def test_a_card_that_cannot_be_is_refused(folder, tmp_path, change):
    value = json.loads((folder / card.CARD).read_text()) | change
    (tmp_path / card.CARD).write_text(json.dumps(value))
    with pytest.raises(UserError, match="card.json .*(cannot be|misstates)"):
        card.read(tmp_path)


@pytest.mark.parametrize("text, message", [(None, "is missing"), ("{", "cannot be read"), ("[]", "misstates"), ("{}", "misstates")])
def test_a_missing_or_damaged_card(tmp_path, text, message):
    if text is not None:
        (tmp_path / card.CARD).write_text(text)
    with pytest.raises(UserError, match=message):
        card.read(tmp_path)


@pytest.mark.parametrize("replace", [False, True])
def test_a_folder_of_something_else_is_never_deleted(world, run, tmp_path, monkeypatch, replace):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.tex").write_text("years of work")
    monkeypatch.setattr(card, "_scored", lambda *a: pytest.fail("computed before the folder was looked at"))
    with pytest.raises(UserError, match="mine exists and holds .*thesis.tex"):
        card.make(run, world.params, tmp_path / "mine", "MIT", replace=replace)
    assert (tmp_path / "mine/thesis.tex").read_text() == "years of work"


def test_a_detectors_folder_is_replaced_only_where_that_is_asked_for(world, run, folder, tmp_path):
    made = shutil.copytree(folder, tmp_path / "made")
    with pytest.raises(UserError, match="made already holds a detector.*--replace"):
        card.make(run, world.params, made, "Other")
    assert card.read(made).whole["licence"] == "MIT"
    card.make(run, world.params, made, "Other", replace=True)
    assert card.read(made).whole["licence"] == "Other"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made"]


def test_a_detectors_folder_that_holds_more_is_not_replaced(world, run, folder, tmp_path):
    made = shutil.copytree(folder, tmp_path / "made")
    (made / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="notes.txt"):
        card.make(run, world.params, made, "Other", replace=True)
    (made / "notes.txt").unlink()
    (made / card.WEIGHTS).write_bytes(b"other weights")
    with pytest.raises(UserError, match="exists and holds"):
        card.make(run, world.params, made, "Other", replace=True)
    (tmp_path / "link").symlink_to(folder, target_is_directory=True)
    with pytest.raises(UserError, match="link is a symbolic link"):
        card.make(run, world.params, tmp_path / "link", "Other", replace=True)


def test_an_empty_folder_is_filled(world, run, tmp_path):
    (tmp_path / "empty").mkdir()
    card.make(run, world.params, tmp_path / "empty", "MIT")
    assert card.read(tmp_path / "empty").size == 32


def test_the_command_writes_next_to_other_models_and_not_over_the_packaged_detector(monkeypatch):
    from anl import cli

    asked = []
    monkeypatch.setattr(card, "make", lambda run, params, out, licence, replace: asked.append((str(out), replace)) or {
        "rule": "max", "threshold": 0.0, "chosen_on": {"n_real": 1, "n_fake": 1}})
    assert cli.main(["card", "runs/small/main/plain-s0"]) == 0
    assert cli.main(["card", "runs/small/main/plain-s0", "--out", "there", "--replace"]) == 0
    assert asked == [("models/plain-s0", False), ("there", True)]
