import numpy as np
import pytest
from PIL import Image

from anl import detector as detectors
from anl.detect import maps, scorer
from anl.detect.crops import mirrored
from anl.errors import UserError


def panels(drawn, in_use, picture):
    """The three panels of a drawing, without their words: the overview's size is known, the others' are the crops'."""
    small = maps.overview(picture)
    body = drawn[maps.HEAD:]
    return body[:len(small), 2 * maps.GAP:][:, :small.shape[1]], body


def test_the_drawing_shows_where_it_looked_and_attention_and_noise_there(in_use, picture):
    large = np.tile(picture, (10, 10, 1))
    drawn = maps.draw(in_use, in_use.tile(large), maps.overview(large))
    assert drawn.dtype == np.uint8 and max(drawn.shape) < 4 * maps.SIDE
    first, body = panels(drawn, in_use, large)
    dark = (maps.overview(large) * maps.DIM).astype(np.uint8)
    share = (first == dark).all(-1).mean()
    assert 0.5 < share < 1  # most of a large picture is not looked at
    framed = (first == 255).all(-1)
    assert framed.any() and framed.mean() < 0.2
    noise = body[:100, -200:-100].astype(float)
    assert noise.std() > 1 and abs(noise.mean() - 128) < 100
    assert (drawn[:maps.HEAD] < 128).any()  # words


def test_a_picture_of_any_size_has_a_drawing_of_a_screens_size(in_use, picture):
    for pixels in (picture, picture[:10, :20], np.tile(picture, (1, 40, 1)), np.tile(picture, (40, 1, 1))):
        small = maps.overview(mirrored(pixels, 32))
        assert max(small.shape) <= maps.SIDE
        drawn = maps.draw(in_use, in_use.tile(pixels), small)
        assert 100 < drawn.shape[1] <= 4 * maps.SIDE and drawn.shape[0] <= maps.SIDE * 2


def test_crops_stand_in_the_order_in_which_they_lie():
    crops = [np.full((2, 2, 3), value, np.uint8) for value in (1, 2, 3, 4, 5, 6)]
    places = np.array([(top, left) for top in (0, 7) for left in (0, 3, 9)])
    grid = maps._grid(crops, places)
    rows, columns = grid.shape[0], grid.shape[1]
    corners = [int(grid[y, x, 0]) for y in (0, rows - 1) for x in (0, columns // 2, columns - 1)]
    assert corners == [1, 2, 3, 4, 5, 6]


def test_a_detector_without_noise_is_refused(in_use, picture):
    plain = detectors.Detector("test_resnet", 8, 8, 4, 32, noise=False, attention="none").eval()
    with pytest.raises(UserError, match="predicts no noise to draw"):
        maps.draw(scorer.ImageDetector(plain, in_use.card), in_use.tile(picture), maps.overview(picture))


def test_two_pictures_of_one_name_have_two_files(tmp_path):
    picture = np.zeros((4, 4, 3), np.uint8)
    files = {maps.write(tmp_path / "maps", path, picture) for path in ("a/x.png", "b/x.png", "a/x\n\udce9.png")}
    assert len(files) == 3 and all(Image.open(path).size == (4, 4) and path.parent == tmp_path / "maps" for path in files)
