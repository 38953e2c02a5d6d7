import numpy as np
import pytest
from PIL import Image

from anl import detector as detectors
from anl.detect import maps, scorer
from anl.detect.crops import mirrored
from anl.errors import UserError


def test_the_drawing_shows_attention_and_noise_where_it_looked(in_use, picture):
    tiled = in_use.tile(picture)
    drawn = maps.draw(in_use, tiled, picture)
    height, width = picture.shape[:2]
    assert drawn.shape == (height, 2 * width + 8, 3) and drawn.dtype == np.uint8
    assert (drawn[:, width:width + 8] == 255).all()
    noise = drawn[:, width + 8:].astype(float)
    assert noise.std() > 1 and abs(noise.mean() - 128) < 100
    large = np.tile(picture, (10, 10, 1))
    drawn = maps.draw(in_use, in_use.tile(large), large)
    dark = (large * maps.DIM).astype(np.uint8)
    assert (drawn[:, :large.shape[1]] == dark).all(-1).mean() > 0.5  # most of a large picture is not looked at


def test_a_small_picture_is_drawn_mirrored(in_use, picture):
    small = mirrored(picture[:10, :20], 32)
    assert maps.draw(in_use, in_use.tile(picture[:10, :20]), small).shape == (32, 72, 3)


def test_a_detector_without_noise_is_refused(in_use, picture):
    plain = detectors.Detector("test_resnet", 8, 8, 4, 32, noise=False, attention="none").eval()
    with pytest.raises(UserError, match="predicts no noise to draw"):
        maps.draw(scorer.ImageDetector(plain, in_use.card), in_use.tile(picture), picture)


def test_two_pictures_of_one_name_have_two_files(tmp_path):
    picture = np.zeros((4, 4, 3), np.uint8)
    files = {maps.write(tmp_path / "maps", path, picture) for path in ("a/x.png", "b/x.png", "a/x\n\udce9.png")}
    assert len(files) == 3 and all(Image.open(path).size == (4, 4) and path.parent == tmp_path / "maps" for path in files)
