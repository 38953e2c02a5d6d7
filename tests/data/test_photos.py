import itertools

import numpy as np
import pytest

from anl.data import manifest, photos
from anl.data.decode import decode
from anl.data.duplicates import NEAR, perceptual_hash
from anl.io import UserError
from tests.conftest import ROOT
from tests.data.trees import photo_card, write


@pytest.fixture
def folder(tmp_path):
    """Two photographs and their card: (photos, folder)."""
    names = ("b.png", "a.png")
    card = photo_card(tmp_path / "card.csv", {name: (name.encode(), {}) for name in names})
    return photos.read_card(card), write(tmp_path / "photos", {name: name.encode() for name in names})


def test_a_complete_folder_passes(folder):
    assert [photo.id for photo in folder[0]] == ["a", "b"]
    photos.check_folder(*folder)


def test_incomplete_folders_are_refused(folder):
    with pytest.raises(UserError, match="nowhere is missing; get it with `dvc pull data.dvc`"):
        photos.check_folder(folder[0], folder[1].parent / "nowhere")
    (folder[1] / "b.png").write_bytes(b"other")
    with pytest.raises(UserError, match=r"b\.png is not the listed file"):
        photos.check_folder(*folder)
    (folder[1] / "b.png").unlink()
    with pytest.raises(UserError, match=r"lacks 1 of 2 photographs, the first b\.png; get it with `dvc pull"):
        photos.check_folder(*folder)


def test_a_missing_or_incomplete_card_is_refused(tmp_path):
    with pytest.raises(UserError, match="card.csv is missing; restore it"):
        photos.read_card(tmp_path / "card.csv")
    (tmp_path / "card.csv").write_text("file,bytes\na,1\n")
    with pytest.raises(UserError, match=r"lacks the column\(s\) author, "):
        photos.read_card(tmp_path / "card.csv")


def test_the_committed_card():
    card = photos.read_card(ROOT / "data/photos.csv")
    assert len(card) >= 150 and len({photo.id for photo in card}) == len(card)
    assert all(len(photo.sha256) == 64 and photo.licence and photo.author and photo.package for photo in card)


@pytest.mark.skipif(not (ROOT / "data/photos").is_dir(), reason="the photographs are not there: `dvc pull data.dvc`")
def test_the_pulled_photographs():
    photos.check_folder(photos.read_card(ROOT / "data/photos.csv"), ROOT / "data/photos")


def test_photographs_of_priors_generators_and_the_confirmation_set_are_disjoint():
    cards = photos.read_card(ROOT / "data/photos.csv")
    others = [manifest.read(ROOT / f"data/{name}.parquet", ["sha256", "phash"]) for name in ("caltech101", "trashnet")]
    files = [{photo.sha256 for photo in cards}, *(set(rows["sha256"]) for rows in others)]
    assert [len(found) for found in files] == [158, 4725, 372]
    for one, other in itertools.combinations(files, 2):
        assert not one & other
    looks = [rows["phash"].to_numpy(np.uint64) for rows in others]
    if (ROOT / "data/photos").is_dir():
        looks.append(np.array([perceptual_hash(decode(ROOT / "data/photos" / photo.file)) for photo in cards], np.uint64))
    for one, other in itertools.combinations(looks, 2):
        assert np.bitwise_count(one[:, None] ^ other[None]).min() > NEAR
