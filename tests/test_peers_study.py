import pandas as pd
import pytest

from anl import notebooks, peers_study
from anl.errors import UserError
from anl.files import write_csv


def summary(means):
    return pd.DataFrame([{"method": method, "generator": generator, "seen": False, "view": "raw", "metric": "AP", "mean": mean,
                          "low": mean - 0.1, "high": mean + 0.1, "seeds": 2, "n": 8}
                         for method, mean in means.items() for generator in ("vae", "unseen")])


@pytest.fixture
def folder(tmp_path):
    """Results of a run on anl, plain, npr and srm, being replaced by a running notebook."""
    folder = tmp_path / "peers"
    table = summary({"anl": 0.7123456789, "plain": 0.6, "npr": 0.8, "srm": 0.9})
    write_csv(folder / "summary.csv", table.to_dict("records"))
    write_csv(folder / "anl_minus_other.csv", [{"other": name, "difference": 0.1} for name in ("plain", "npr", "srm")])
    for name in ("controls", "peers"):
        write_csv(folder / f"{name}.csv", [{"method": method, "seeds": 2} for method in ("anl", "plain", "npr", "srm")])
    with notebooks.whole_results(folder):
        yield folder


def test_rows_of_other_methods_stay_where_ours_are_the_same(folder):
    found = peers_study.earlier(folder, ["srm"], summary({"anl": 0.7123456789, "plain": 0.6, "univfd": 0.5}))
    assert list(found) == ["summary", "anl_minus_other", "controls", "peers"]
    assert [len(tables) for tables in found.values()] == [1] * 4
    assert set(found["summary"][0]["method"]) == {"srm"} and list(found["summary"][0]["mean"]) == [0.9, 0.9]
    assert list(found["anl_minus_other"][0]["other"]) == list(found["peers"][0]["method"]) == ["srm"]
    assert peers_study.earlier(folder, [], None) == {name: [] for name in found}


@pytest.mark.parametrize("means", [{"anl": 0.712347, "plain": 0.6}, {"anl": 0.7123456789, "plain": 0.61}, {"anl": 0.7123456789}])
def test_other_runs_of_ours_are_refused(folder, means):
    with pytest.raises(UserError, match="was made of other runs of ANL than there are now"):
        peers_study.earlier(folder, ["srm"], summary(means))


def test_a_method_or_results_that_are_not_there_are_named(folder, tmp_path):
    ours = summary({"anl": 0.7123456789, "plain": 0.6})
    with pytest.raises(UserError, match="has no rows of 'dire' to keep; add it to `others`"):
        peers_study.earlier(folder, ["srm", "dire"], ours)
    with pytest.raises(UserError, match="no earlier results to keep .summary.csv is missing"):
        peers_study.earlier(tmp_path / "none", ["srm"], ours)
