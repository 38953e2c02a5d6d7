import json

import pytest

from anl import gallery_page
from anl.errors import UserError
from anl.tables import photo_anchor
from tests import synthetic


def test_page_gets_the_sheets_and_where_they_lie(tmp_path):
    synthetic.write_gallery(tmp_path / "gallery")
    gallery_page.write(tmp_path / "gallery", tmp_path / "out", "gallery")
    value = json.loads((tmp_path / "out/gallery.plot.json").read_text())
    assert value["folder"] == "files/gallery/sheets" and value["steps"] == [1, 10]
    for name in gallery_page.sheet_files(value):
        assert (tmp_path / "out/sheets" / name).read_bytes() == (tmp_path / "gallery/sheets" / name).read_bytes()
    patch = value["patches"][0]
    assert patch["card"] == f"data_card.html#{photo_anchor(patch['sha256'])}"
    assert len(value["scores"]["10"]["probability"]) == len(value["generators"]) == 3


def test_a_missing_sheet_is_named_and_other_notebooks_have_none(tmp_path):
    synthetic.write_gallery(tmp_path / "gallery")
    (tmp_path / "gallery/sheets/noise-t10.png").unlink()
    with pytest.raises(UserError, match="noise-t10.png is missing.*anl notebook gallery"):
        gallery_page.write(tmp_path / "gallery", tmp_path / "out", "gallery")
    gallery_page.write(tmp_path / "step_t", tmp_path / "other", "step_t")
    assert not (tmp_path / "other").exists()
