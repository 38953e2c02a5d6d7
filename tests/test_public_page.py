import re

from anl import public_page
from anl.files import read_json
from tests import synthetic
from tests.conftest import ROOT

SECTIONS = ROOT / "book/committed/use"


def test_the_section_stands_on_the_page_with_its_tables_and_texts(tmp_path):
    synthetic.write_public(tmp_path / "use/cifake")
    values = public_page.gather(tmp_path / "use", SECTIONS, tmp_path / "out/public")
    assert values["all_AP"] == "0.100 [0.000, 0.200]"
    assert (tmp_path / "out/public/cifake.md.txt").read_text() == (SECTIONS / "cifake.md.txt").read_text()
    assert (tmp_path / "out/public/cifake/packaged.md.txt").read_text() == (SECTIONS / "packaged.md.txt").read_text()
    table = (tmp_path / "out/public/cifake/ranking.html").read_text()
    assert "0.500 [0.400, 0.600]" in table and "anl compare data/sources/cifake.parquet" in table


def test_what_was_not_measured_is_not_claimed(tmp_path):
    assert public_page.gather(tmp_path / "use", SECTIONS, tmp_path / "out") == {}
    assert (tmp_path / "out/cifake.md.txt").read_text() == "\n"
    synthetic.write_public(tmp_path / "use/cifake")
    (tmp_path / "use/cifake/difference.csv").unlink()  # without the packaged detector
    public_page.gather(tmp_path / "use", SECTIONS, tmp_path / "out")
    assert (tmp_path / "out/cifake/packaged.md.txt").read_text() == "\n"


def test_every_value_that_the_sections_name_is_stored():
    stored = read_json(ROOT / "results/use/cifake/values.json")
    named = set(re.findall(r"{{ public\.(\w+) }}", "".join(path.read_text() for path in SECTIONS.glob("*.md.txt"))))
    assert named - set(stored) == set()
