"""Rules decide claims from table rows, and a ledger is compared with a reference."""

import numpy as np
import pandas as pd
import pytest
import yaml

from anl.io import UserError
from anl.report import claims
from tests.conftest import ROOT

RULE = {"measure": "AUROC, ANL minus plain", "table": "main", "where": {"generator": "unseen", "variant": "anl"}, "above": 0}
CLAIM = {"id": "gain", "title": "Noise learning helps", "sentence": "It helps.", "source": "abstract",
         "kind": "exploratory", "benchmark": "embedded", "profiles": ["small"], "rules": [RULE]}


def table(low, high, seeds=3, variants=("anl",)):
    return pd.DataFrame([{"variant": variant, "generator": "unseen", "difference": (low + high) / 2,
                          "difference_low": low, "difference_high": high, "seeds": seeds, "n": 33} for variant in variants])


def decide(claim, frame, profile="small"):
    ledger = claims.evaluate([claims.Claim.model_validate(claim)], {"main": frame}, profile)
    return claims.verdicts(ledger)["gain"]


def test_too_few_seeds_another_profile_or_a_missing_table_decide_nothing():
    assert decide(CLAIM, table(0.1, 0.2, seeds=2)) == "not run"
    assert decide(CLAIM, table(0.1, 0.2), profile="smoke") == "not run"
    ledger = claims.evaluate([claims.Claim.model_validate(CLAIM)], {}, "small")
    assert ledger["verdict"].tolist() == ["not run"]
    other = CLAIM | {"rules": [RULE | {"where": RULE["where"] | {"experiment": "main"}}]}
    assert decide(other, table(0.1, 0.2).assign(experiment="controls")) == "not run"


def test_the_committed_ledger_follows_from_the_committed_tables():
    profile = "caltech"
    folder, registered = ROOT / "results" / profile, claims.read_claims(ROOT / "claims.yaml")
    found = claims.evaluate(registered, claims.read_tables(folder / "tables"), profile)
    assert claims.differences(claims.read_ledger(folder / "claims.csv"), found) == [] and set(found["verdict"]) - {"not run"}
    claims.check_registered(registered, profile, folder / "registered.json")


def test_a_confirmatory_claim_must_be_registered_before_test_images_are_scored(tmp_path):
    path = tmp_path / "registered.json"
    first, loose = (claims.Claim.model_validate(CLAIM | {"id": name, "kind": kind}) for name, kind in
                    (("first", "confirmatory"), ("loose", "exploratory")))
    claims.check_registered([loose], "small", path)  # nothing to keep
    with pytest.raises(UserError, match=r"registered\.json is missing; mark the claims of profile small exploratory"):
        claims.check_registered([first], "small", path)
    claims.register([loose], "small", path)
    assert not path.exists()
    claims.register([first, loose], "small", path)
    claims.check_registered([first, loose], "small", path)
    claims.check_registered([first], "other", tmp_path / "other.json")  # does not decide it
    softened = claims.Claim.model_validate(CLAIM | {"id": "first", "kind": "exploratory"})
    for left in ([loose], [loose, softened]):
        with pytest.raises(UserError, match="claim first was withdrawn after the test images of profile small were first scored"):
            claims.check_registered(left, "small", path)
    late = claims.Claim.model_validate(CLAIM | {"id": "late", "kind": "confirmatory"})
    changed = claims.Claim.model_validate(CLAIM | {"id": "first", "kind": "confirmatory", "rules": [RULE | {"above": 0.1}]})
    for claim in (late, changed):
        claims.register([claim], "small", path)  # too late
        with pytest.raises(UserError, match=f"claim {claim.id} was added or changed after the test images"):
            claims.check_registered([claim], "small", path)


ALL_ROWS = {"generator": "unseen"}
LEVEL, ABOVE, BELOW, WIDE = (-0.1, 0.3), (0.1, 0.2), (-0.3, -0.1), (-0.5, 0.3)


@pytest.mark.parametrize("bound, first, second, verdict", [
    ("above", ABOVE, LEVEL, "undecided"), ("above", ABOVE, BELOW, "contradicted"), ("above", ABOVE, ABOVE, "supported"),
    ("above", WIDE, BELOW, "contradicted"), ("below", BELOW, BELOW, "supported"), ("below", BELOW, LEVEL, "undecided"),
    ("below", BELOW, ABOVE, "contradicted"), ("above", LEVEL, LEVEL, "undecided"), ("above", BELOW, BELOW, "contradicted")])
def test_a_claim_about_several_rows_needs_all_of_them(bound, first, second, verdict):
    claim = CLAIM | {"rules": [{**RULE, "where": ALL_ROWS, "above": None, bound: 0}]}
    assert decide(claim, pd.concat([table(*first), table(*second, variants=["other"])])) == verdict


def test_a_rival_that_was_not_measured_leaves_a_claim_undecided():
    claim = CLAIM | {"rules": [{**RULE, "where": {"generator": "unseen", "variant": ["anl", "other"]}}]}
    whole = pd.concat([table(0.1, 0.2), table(0.1, 0.3, variants=["other"])])
    assert decide(claim, whole) == "supported" and decide(claim, table(0.1, 0.2)) == "undecided"
    assert decide(claim, table(-0.2, -0.1)) == "contradicted"
    ledger = claims.evaluate([claims.Claim.model_validate(claim)], {"main": table(0.1, 0.2)}, "small")
    assert ledger["rule"].iloc[0].endswith("1 of 2 not measured")


def test_holm_corrects_what_contradicts():
    rule = {**RULE, "where": {"generator": "unseen"}, "above": None, "below": 0}
    claim = CLAIM | {"rules": [rule], "correction": "holm"}
    rivals = pd.concat([table(0.01, 0.2, variants=[name]) for name in ("a", "b", "c")])
    assert decide(claim, rivals.assign(p=[0.03, 0.4, 0.5])) == "undecided"  # 3 x 0.03 is above 0.05
    assert decide(claim, rivals.assign(p=[0.01, 0.4, 0.5])) == "contradicted"
    wide = pd.concat([table(0.08, 0.1, variants=["a"]), table(-0.5, 0.3, variants=["b"])]).assign(p=[0.001, 0.3])
    row = claims.evaluate([claims.Claim.model_validate(claim)], {"main": wide}, "small").iloc[0]
    assert (row["verdict"], row["low"], row["high"]) == ("contradicted", 0.08, 0.1)  # of the rival that contradicts the claim
    favourable = pd.concat([table(-0.2, -0.01, variants=[name]) for name in ("a", "b", "c")])
    assert decide(claim, favourable.assign(p=[0.001, 0.001, 0.03])) == "supported"
    with pytest.raises(UserError, match="has no column 'p'"):
        decide(claim, rivals)
    with pytest.raises(ValueError, match="needs a difference above or below 0"):
        claims.Claim.model_validate(claim | {"rules": [{**rule, "below": 0.1}]})


def test_counts_need_no_interval():
    claim = CLAIM | {"rules": [{"measure": "parameters", "table": "main", "column": "value", "at_most": 0}]}
    assert decide(claim, pd.DataFrame({"value": [0.0, 0.0]})) == "supported"
    assert decide(claim, pd.DataFrame({"value": [0.0, 0.1]})) == "contradicted"


def test_an_undecided_rule_states_the_effect_that_would_have_been_found():
    claim = claims.Claim.model_validate(CLAIM)
    ledger = pd.concat([claims.evaluate([claim], {"main": table(*ends)}, "small") for ends in ((-0.196, 0.196), (0.1, 0.2))])
    found = claims.detectable(ledger).tolist()
    assert found[0] == pytest.approx(0.1 * (1.96 + 0.8416), abs=1e-4) and np.isnan(found[1])
    power = (np.random.default_rng(0).normal(found[0], 0.1, 20000) - 0.196 > 0).mean()
    assert power == pytest.approx(0.8, abs=0.01)


def test_the_verdict_is_the_worst_of_the_rules():
    claim = CLAIM | {"rules": [RULE, RULE | {"measure": "again", "where": {"variant": "other"}}]}
    frame = pd.concat([table(0.1, 0.2), table(-0.1, 0.2, variants=["other"])])
    assert decide(claim, frame) == "undecided"


@pytest.mark.parametrize("rule, words", [({"where": {"generater": "unseen"}}, "has no column 'generater'"),
                                         ({"where": {"generator": "nowhere"}}, "has no row with generator = nowhere"),
                                         ({"column": "gain"}, "has no column 'gain'")])
def test_a_rule_that_selects_nothing_is_refused(rule, words):
    with pytest.raises(UserError, match=words):
        decide(CLAIM | {"rules": [RULE | rule]}, table(0, 1))
    with pytest.raises(UserError, match="holds no number"):
        decide(CLAIM, table(0.1, 0.2).assign(difference=float("nan")))


@pytest.mark.parametrize("change, words", [({"kind": "registered"}, "kind"), ({"extra": 1}, "extra"),
                                           ({"rules": []}, "rules"),
                                           ({"rules": [{**RULE, "at_most": 1}]}, "exactly one of")])
def test_bad_entries_are_one_line(tmp_path, change, words):
    path = tmp_path / "claims.yaml"
    path.write_text(yaml.safe_dump({"claims": [CLAIM | change]}))
    with pytest.raises(UserError, match=words) as caught:
        claims.read_claims(path)
    assert "\n" not in str(caught.value)


def test_missing_broken_and_doubled_files(tmp_path):
    path = tmp_path / "claims.yaml"
    for text, words in ((None, "is missing"), ("claims", "no list of claims"), ("a: [", "no list of claims"),
                        (yaml.safe_dump({"claims": [CLAIM, CLAIM]}), "used twice")):
        if text is not None:
            path.write_text(text)
        with pytest.raises(UserError, match=words):
            claims.read_claims(path)


def ledger_of(low, high):
    return claims.evaluate([claims.Claim.model_validate(CLAIM)], {"main": table(low, high)}, "small")


def test_differences_name_verdicts_and_values_outside_the_interval(tmp_path):
    reference = ledger_of(0.1, 0.3)
    claims.write_ledger(tmp_path / "claims.csv", reference)
    stored = claims.read_ledger(tmp_path / "claims.csv")
    assert claims.differences(stored, reference) == []
    assert claims.differences(stored, ledger_of(0.11, 0.27)) == []
    assert claims.differences(stored, ledger_of(0.4, 0.6)) == [
        "gain: 'AUROC, ANL minus plain' is 0.500 [0.400, 0.600], was 0.200 [0.100, 0.300]"]
    assert claims.differences(stored, ledger_of(-0.1, 0.3)) == ["gain: 'AUROC, ANL minus plain' was supported, is undecided"]
    assert claims.differences(stored, stored.iloc[:0]) == ["gain: 'AUROC, ANL minus plain' is no longer decided"]
    assert claims.differences(stored.iloc[:0], reference) == ["gain: 'AUROC, ANL minus plain' is new"]


def test_the_answers_stand_between_the_markers_of_the_readme(tmp_path):
    path = tmp_path / "README.md"
    path.write_text(f"before\n{claims.START}\nold\n{claims.END}\nafter\n")
    claims.fill_readme(path, {"small": ledger_of(0.1, 0.3), "other": ledger_of(-0.1, 0.3)})
    text = path.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert "- **Held.** Noise learning helps. AUROC, ANL minus plain: 0.200 [0.100, 0.300] (`small`, 3 seeds x 33 photographs)\n" in text and "Undecided" not in text
    path.write_text("no markers")
    with pytest.raises(UserError, match="lacks the markers"):
        claims.fill_readme(path, {"small": ledger_of(0.1, 0.3)})


def test_answers_are_those_of_the_confirmatory_claims_if_there_are_any():
    def ledger(kind, profile, **verdicts):
        rows = [table(*ends) for ends in verdicts.values()]
        made = [claims.evaluate([claims.Claim.model_validate(CLAIM | {"id": name, "title": name, "kind": kind, "profiles": [profile]})],
                                {"main": row}, profile) for name, row in zip(verdicts, rows)]
        return pd.concat(made)

    exploratory = ledger("exploratory", "small", a=(0.1, 0.2))
    assert [line[:15] for line in claims.answers({"small": exploratory})] == ["- **Held.** a. "]
    never = claims.evaluate([claims.Claim.model_validate(CLAIM | {"id": "later", "kind": "confirmatory"})], {}, "small")
    confirmatory = ledger("confirmatory", "large", b=(-0.2, -0.1), c=(-0.1, 0.2), d=(0.1, 0.3))
    found = claims.answers({"small": pd.concat([exploratory, never]), "large": confirmatory})
    assert [line.partition(". AUROC")[0] for line in found] == [
        "- **Held.** d", "- **Did not hold.** b", "- **Undecided.** c", "- **Not measured yet.** 1 confirmatory claim"]
    assert [line.partition(". AUROC")[0] for line in claims.answers({"large": confirmatory}, ["c", "other"])] == [
        "- **Undecided.** c", "- **All 3 confirmatory claims.** Held: 1, did not hold: 1, undecided: 1"]
    assert claims.answers({"large": confirmatory}, ["other"]) == claims.answers({"large": confirmatory})
    assert claims.answers({"small": never}) == ["- **Not measured yet.** 1 confirmatory claim"]
    counted = confirmatory[confirmatory["claim"] == "d"].assign(value=0.0, low=np.nan, high=np.nan, n=1, seeds=1)  # without an interval
    assert claims.answers({"large": counted}) == ["- **Held.** d. AUROC, ANL minus plain: 0 (`large`)"]


def test_tables_without_rows_decide_nothing_and_ledgers_are_found(tmp_path):
    folder = tmp_path / "small/tables"
    folder.mkdir(parents=True)
    table(0.1, 0.2).to_csv(folder / "main.csv", index=False)
    table(0.1, 0.2).iloc[:0].to_csv(folder / "peers.csv", index=False)
    assert list(claims.read_tables(folder)) == ["main"]
    assert decide(CLAIM, table(0.1, 0.2).iloc[:0]) == "not run"
    for profile in ("other", "small"):
        claims.write_ledger(tmp_path / profile / "claims.csv", ledger_of(0.1, 0.3))
    (tmp_path / "old").mkdir()
    (tmp_path / "old/claims.csv").write_text("id,title\n")
    assert list(claims.read_ledgers(tmp_path, "small")) == ["small", "other"]


def test_intervals_are_turned_so_that_the_right_side_supports_the_claim():
    above = claims.Claim.model_validate(CLAIM | {"id": "above", "title": "Above", "rules": [RULE]})
    below = claims.Claim.model_validate(CLAIM | {"id": "below", "title": "Below", "rules": [
        {**{key: value for key, value in RULE.items() if key != "above"}, "below": 0.1},
        {**RULE, "measure": "another"}]})
    base = {"profile": "small", "kind": "exploratory", "value": -0.1, "low": -0.3, "high": 0.0}
    ledger = pd.DataFrame([{**base, "claim": "above", "title": "Above", "measure": RULE["measure"]},
                           {**base, "claim": "below", "title": "Below", "measure": RULE["measure"]},
                           {**base, "claim": "gone", "title": "Of an earlier file", "measure": "x"},
                           {**base, "claim": "above", "title": "Above", "measure": RULE["measure"], "low": None}])
    drawn = claims.as_intervals([above, below], ledger).set_index("variant")
    assert drawn.index.tolist() == ["Above", RULE["measure"]]
    assert drawn.loc["Above", ["difference_low", "difference", "difference_high"]].tolist() == pytest.approx([-0.3, -0.1, 0.0])
    turned = drawn.loc[RULE["measure"], ["difference_low", "difference", "difference_high"]].tolist()
    assert turned == pytest.approx([0.1, 0.2, 0.4])
