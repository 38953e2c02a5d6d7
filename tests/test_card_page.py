import re

import pytest

from anl import card_page
from anl.errors import UserError
from anl.files import read_json
from tests.conftest import ROOT


def test_every_measured_row_is_shown_reals_first(tmp_path):
    folder = ROOT / "models/detector"
    values = card_page.write(tmp_path, folder)
    rows = re.findall(r"<tr>(.*?)</tr>", (tmp_path / "measured.html").read_text(), re.DOTALL)[1:]
    card = read_json(folder / "card.json")
    assert len(rows) == len(card["measured"]) and "as patches" in rows[0] and "real photographs" in rows[0] and "not seen" in rows[-1]
    files = next(row for row in card["measured"] if row["of"] == "real" and row["condition"] == "files")
    assert values["files_generated"] == f"{100 * files['called_generated']:.0f} %" and values["n_files"] == str(files["n"])
    assert (tmp_path / "limits.html").read_text().count("<li>") == len(card["limits"])


def test_a_missing_card_names_the_mend(tmp_path):
    with pytest.raises(UserError, match="card.json is missing; get it with `make data`"):
        card_page.write(tmp_path, tmp_path)
