import pytest

from anl import committed, origins
from anl.book import PUBLIC
from anl.errors import UserError
from anl.files import read_json, write_json
from tests.synthetic import ROOT, prepared_book, write_committed


def gather(folder):
    return committed.gather(folder / "full", ROOT / "book/committed", folder / "out", origins.commands(ROOT / "dvc.yaml"), ())


def test_a_stored_result_is_shown_with_its_numbers_and_its_tables(tmp_path):
    write_committed(tmp_path / "full")
    values = gather(tmp_path)
    assert values["full_targets"]["own_minus_best_other"] == "0.100 [0.000, 0.200]"
    assert (tmp_path / "out/targets.md.txt").read_text() == (ROOT / "book/committed/targets.md.txt").read_text()
    assert "<table" in (tmp_path / "out/targets/own_minus_other.html").read_text()
    assert (tmp_path / "out/targets/ap_by_target.png").is_file()
    assert "then `dvc repro targets`" in (tmp_path / "out/targets/provenance.md.txt").read_text()
    assert "then `anl notebook anl_plus`" in (tmp_path / "out/anl_plus/provenance.md.txt").read_text()


def test_the_public_sets_numbers_go_by_one_word_and_say_how_to_get_it(tmp_path):
    write_committed(tmp_path / PUBLIC, PUBLIC)
    values = committed.gather(tmp_path / PUBLIC, ROOT / "book/committed" / PUBLIC, tmp_path / "out", {}, (), PUBLIC)
    assert sorted(values) == [PUBLIC, *(f"{PUBLIC}_{name}" for name in ("longer", "public_data", "public_peers"))]
    assert values[PUBLIC]["accuracy_plain"] == "0.100 [0.000, 0.200]"
    line = (tmp_path / "out/cifake/provenance.md.txt").read_text()
    assert "`anl fetch cifake --accept-licence`, then `dvc repro cifake/dvc.yaml`" in line
    assert "`results/cifake/cifake`" in line
    longer = (tmp_path / "out/longer/provenance.md.txt").read_text()
    assert "then `dvc repro cifake/dvc.yaml:longer`" in longer and "`results/cifake/longer`" in longer
    assert 'href="files/cifake/cifake/accuracy.csv"' in (tmp_path / "out/cifake/accuracy.html").read_text()


def test_where_nothing_is_stored_the_page_says_nothing(tmp_path):
    assert gather(tmp_path) == {}
    assert (tmp_path / "out/targets.md.txt").read_text() == "\n"


def test_a_stored_value_that_is_no_number_stops_the_book(tmp_path):
    write_committed(tmp_path / "full")
    path = tmp_path / "full/targets/values.json"
    write_json(path, {**read_json(path), "best_other": {"text": "nan", "value": 0}})
    with pytest.raises(UserError, match="'best_other' is 'nan', not a number; `anl profile full`"):
        gather(tmp_path)


def test_the_active_profile_takes_no_part(tmp_path):
    copy, _ = prepared_book(tmp_path, "smoke")
    assert "full_targets" in read_json(copy / "generated/values.json")
