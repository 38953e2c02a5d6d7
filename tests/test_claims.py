import json
import subprocess
from types import SimpleNamespace

import pytest
import yaml

from anl import claims
from anl.errors import UserError
from tests import synthetic

LEDGER = synthetic.ROOT / "claims.yaml"
SMALL = SimpleNamespace(profile="small")


@pytest.fixture
def results(tmp_path):
    return synthetic.write_results(tmp_path)


def verdicts(folder):
    return {claim["id"]: claim["verdict"] for claim in claims.evaluate(folder, LEDGER)}


@pytest.mark.parametrize("low, high, verdict", [(0.001, 0.04, "reproduced"), (-0.01, 0.04, "within noise"),
                                                (-0.04, -0.001, "not reproduced"), (0, 0.04, "within noise")])
def test_interval_decides(tmp_path, low, high, verdict):
    difference = {"value": (low + high) / 2, "low": low, "high": high}
    folder = synthetic.write_results(tmp_path, difference=difference) / "small"
    assert verdicts(folder)["generalisation"] == verdict


def test_all_claims_have_sentence_and_answer(results):
    judged = claims.evaluate(results / "small", LEDGER)
    assert [claim["id"] for claim in judged] == ["existing_methods", "generalisation", "attention", "attention_unseen", "first_step", "diffusion_prior", "inference_cost"]
    assert all(claim["answer"] and claim["stands"] and claim["deviations"] for claim in judged)


def test_counts_are_decided_by_their_worst(results):
    assert verdicts(results / "small")["inference_cost"] == "not reproduced"  # 21 % more multiply-adds, 10 % allowed
    path = results / "small/detector/values.json"
    numbers = json.loads(path.read_text())
    numbers["extra_macs_share"]["value"] = 0.09
    path.write_text(json.dumps(numbers))
    assert verdicts(results / "small")["inference_cost"] == "reproduced"


def test_other_profile_and_few_seeds_are_not_run_here(tmp_path, results):
    smoke = verdicts(synthetic.write_results(tmp_path, profile="smoke") / "smoke")
    assert smoke["generalisation"] == smoke["first_step"] == "not run here"
    path = results / "small/cross_generator/values.json"
    numbers = json.loads(path.read_text())
    numbers["unseen_AP_difference"]["seeds"] = 2
    path.write_text(json.dumps(numbers))
    assert verdicts(results / "small")["generalisation"] == "not run here"


def test_missing_results_and_unknown_metric_are_named(tmp_path, results):
    changed = yaml.safe_load(LEDGER.read_text())
    changed["claims"][1]["rules"][0]["metric"] = "cross_generator.no_such"
    (tmp_path / "claims.yaml").write_text(yaml.safe_dump(changed))
    with pytest.raises(UserError, match="unknown metric 'cross_generator.no_such'"):
        claims.evaluate(results / "small", tmp_path / "claims.yaml")
    (results / "small/step_t/values.json").unlink()
    with pytest.raises(UserError, match="step_t/values.json is missing.*dvc repro step_t"):
        claims.evaluate(results / "small", LEDGER)


@pytest.mark.parametrize("key", ["value", "low"])
def test_a_number_that_is_none_decides_nothing_and_is_named(results, key):
    path = results / "small/cross_generator/values.json"
    numbers = json.loads(path.read_text())
    numbers["unseen_AP_difference"][key] = float("nan")
    path.write_text(json.dumps(numbers))
    with pytest.raises(UserError, match="values.json: 'unseen_AP_difference', which decides a claim, is not a number.*dvc repro"):
        claims.evaluate(results / "small", LEDGER)


@pytest.mark.parametrize("change, message", [
    (lambda c: c.update(colour=1), "unknown key 'colour'"), (lambda c: c.pop("stands"), "lacks 'stands'"),
    (lambda c: c["rules"][0].update(at_most=1), "one of `above` and `at_most`"),
    (lambda c: c["answer"].pop("within noise"), "needs an answer for each"),
    (lambda c: c.update(id="attention"), "stands twice")])
def test_broken_ledger_is_refused(tmp_path, change, message):
    value = yaml.safe_load(LEDGER.read_text())
    change(value["claims"][1])
    (tmp_path / "claims.yaml").write_text(yaml.safe_dump(value))
    with pytest.raises(UserError, match=message):
        claims.read_claims(tmp_path / "claims.yaml")


def run(results, readme, check=False):
    return claims.run(SMALL, check=check, results=results, claims_path=LEDGER, readme=readme)


def test_run_writes_the_same_bytes_twice_and_fills_the_readme(tmp_path, results):
    readme = tmp_path / "README.md"
    readme.write_text(f"# x\n{claims.START}\nold\n{claims.END}\nafter\n")
    assert run(results, readme) == 0
    paths = [results / "small/claims.json", results / "small/claims.csv", readme]
    first = [path.read_bytes() for path in paths]
    assert run(results, readme) == 0
    assert [path.read_bytes() for path in paths] == first
    text = readme.read_text()
    assert "old" not in text and text.endswith("after\n") and "**within noise**" in text
    assert "0.021 [0.004, 0.038]" in text


def test_a_claim_of_another_profile_needs_no_numbers_here_but_does_there(tmp_path, results):
    first = claims.evaluate(results / "small", LEDGER)[0]
    assert first["id"] == "existing_methods" and first["verdict"] == "not run here" and first["views"] == {}
    assert [measure["value"] for measure in first["measures"]] == [None]
    ledger = yaml.safe_load(LEDGER.read_text())
    ledger["claims"][0]["profiles"] = ["small"]
    (tmp_path / "claims.yaml").write_text(yaml.safe_dump(ledger))
    with pytest.raises(UserError, match="peers/values.json is missing"):
        claims.evaluate(results / "small", tmp_path / "claims.yaml")
    number = {"value": -0.1, "low": -0.2, "high": -0.05, "seeds": 5, "n": 9, "text": "-0.1"}
    (results / "small/peers").mkdir()
    (results / "small/peers/values.json").write_text(json.dumps(dict.fromkeys(
        ("anl_minus_best_other", "anl_minus_best_other_jpeg96", "best_other", "beaten"), number)))
    first = claims.evaluate(results / "small", tmp_path / "claims.yaml")[0]
    assert first["verdict"] == "not reproduced" and set(first["views"]) == {"jpeg96"}


def test_the_readme_shows_each_stored_profile_beside_the_other(tmp_path, results):
    readme = tmp_path / "README.md"
    readme.write_text(f"{claims.START}\n{claims.END}\n")
    run(results, readme)
    assert "| Claim | Measured | `small`, 3 seeds |" in readme.read_text()
    judged = claims.evaluate(results / "small", LEDGER)
    others = json.loads(json.dumps(judged))
    others[1]["measures"][0] |= {"verdict": "not reproduced", "text": "-0.5", "seeds": 5}
    claims.fill_readme(readme, {"small": judged, "full": others[:2]})
    lines = readme.read_text().splitlines()
    assert lines[1] == "| Claim | Measured | `small`, 3 seeds | `full`, 5 seeds |"
    assert lines[3].endswith("| **not run here** | **not run here** |")
    assert lines[4].endswith("| **reproduced** 0.021 [0.004, 0.038] | **not reproduced** -0.5 |")
    assert lines[5].endswith(" | - |")


def test_readme_is_only_filled_from_stored_profiles(tmp_path):
    results = synthetic.write_results(tmp_path, profile="smoke")
    readme = tmp_path / "README.md"
    readme.write_text("no markers")
    claims.run(SimpleNamespace(profile="smoke"), results=results, claims_path=LEDGER, readme=readme)
    assert readme.read_text() == "no markers"
    with pytest.raises(UserError, match="lacks the markers"):
        claims.fill_readme(readme, {})


def test_check_finds_a_changed_verdict(tmp_path, results, capsys):
    run(results, tmp_path / "README.md")
    assert run(results, tmp_path / "README.md", check=True) == 0
    synthetic.write_results(tmp_path, difference={"value": -0.02, "low": -0.03, "high": -0.01})
    assert run(results, tmp_path / "README.md", check=True) == 1
    assert "generalisation was 'reproduced', is 'not reproduced'" in capsys.readouterr().err


def test_check_finds_a_value_outside_the_committed_interval(tmp_path, results, capsys):
    run(results, tmp_path / "README.md")
    synthetic.write_results(tmp_path, difference={"value": 0.05, "low": 0.03, "high": 0.07})
    assert run(results, tmp_path / "README.md", check=True) == 1
    assert "is 0.050 [0.030, 0.070], was 0.021 [0.004, 0.038]" in capsys.readouterr().err


def test_check_compares_with_what_git_holds(tmp_path, results):
    run(results, tmp_path / "README.md")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=n", "-c", "user.email=n@example.org"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "add", "results/small/claims.json"], check=True)
    subprocess.run([*git, "commit", "-qm", "Commit the claims"], check=True)
    synthetic.write_results(tmp_path, difference={"value": -0.02, "low": -0.03, "high": -0.01})
    run(results, tmp_path / "README.md")  # a rerun overwrites the file, but not what was committed
    assert run(results, tmp_path / "README.md", check=True) == 1


def test_each_view_has_its_own_verdict(results):
    path = results / "small/cross_generator/values.json"
    numbers = json.loads(path.read_text())
    numbers["unseen_AP_difference_jpeg96"] |= {"value": -0.03, "low": -0.05, "high": -0.01}
    numbers.pop("unseen_AP_difference_raw", None)
    path.write_text(json.dumps(numbers))
    judged = claims.evaluate(results / "small", LEDGER)
    rows = [row for row in claims.view_table(judged, "matched") if row["id"] == "generalisation"]
    assert [(row["in_view"], row["verdict"]) for row in rows] == [("matched", "reproduced"), ("jpeg96", "not reproduced")]
    assert not any(row["id"] == "inference_cost" for row in claims.view_table(judged, "matched"))
    numbers["unseen_AP_difference_jpeg96"]["seeds"] = 2
    path.write_text(json.dumps(numbers))
    rows = claims.view_table(claims.evaluate(results / "small", LEDGER), "matched")
    assert [row["verdict"] for row in rows if row["id"] == "generalisation"] == ["reproduced", "not run here"]
