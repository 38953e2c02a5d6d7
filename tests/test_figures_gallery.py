import numpy as np
from PIL import Image

from anl import figures_gallery as figures
from anl.gallery import Sight


def sight(generators=3, patches=2):
    rng = np.random.default_rng(1)
    noise = rng.normal(size=(generators, patches, 3, 16, 16))
    maps = rng.dirichlet(np.ones(4), (generators, patches)).reshape(generators, patches, 2, 2)
    return Sight(noise, noise / 2, maps, np.zeros((generators, patches)))


def pixels(generators=3, patches=2):
    return np.random.default_rng(0).integers(0, 256, (generators, patches, 16, 16, 3), dtype=np.uint8)


def test_noise_has_one_symmetric_scale_in_steps_of_half_a_deviation():
    noise = np.array([-9, -3, -0.2, 0, 0.3, 1.5, 3, 9])[None, :, None].repeat(3, 0)
    line = figures.noise_pixels(noise)[:, 0, 0]
    assert list(line) == [0, 0, 128, 128, 149, 191, 255, 255]
    assert figures.noise_pixels(np.zeros((2, 4, 8, 8))).shape == (2, 8, 8, 3)  # a latent prior's


def test_a_uniform_map_lies_in_the_middle_of_the_attentions_scale():
    uniform, twice = np.full((2, 2), 0.25), np.array([[0.5, 0.5], [0, 0]])
    middle, (bright, dark) = figures.map_pixels(uniform)[0, 0], figures.map_pixels(twice)[:, 0]
    assert dark.sum() < middle.sum() < bright.sum()
    assert (figures.map_pixels(np.array([[0.9, 0.1], [0, 0]]))[0, 0] == bright).all()


def test_a_sheet_has_a_column_a_generator_and_a_row_a_patch(tmp_path):
    tiles = pixels()
    path = figures.write_sheet(tmp_path / "a.png", tiles)
    found = np.asarray(Image.open(path))
    assert found.shape == (32, 48, 3) and (found[16:, 32:] == tiles[2, 1]).all()
    assert path.read_bytes() == figures.write_sheet(tmp_path / "b.png", tiles).read_bytes()


def test_every_sheet_is_written_and_named(tmp_path):
    names = figures.write_sheets(tmp_path, pixels(), {1: sight(), 10: sight()})
    files = [names["image"], names["difference"], *(names[kind][step] for kind in ("noise", "predicted", "attention")
                                                    for step in ("1", "10"))]
    assert sorted(files) == sorted(path.name for path in tmp_path.glob("*"))
    assert Image.open(tmp_path / names["attention"]["10"]).size == (6, 4)
    difference = np.asarray(Image.open(tmp_path / names["difference"]))
    assert (difference[:, :16] == 128).all() and difference[:, 16:].std() > 0  # a photograph minus itself


def test_overview_is_the_same_bytes_twice_and_follows_the_data(tmp_path):
    first = figures.overview(pixels(2), sight(2), ["a", "b"], "ddim", tmp_path / "a.png").read_bytes()
    assert first == figures.overview(pixels(2), sight(2), ["a", "b"], "ddim", tmp_path / "b.png").read_bytes()
    other = sight(2)._replace(predicted=np.ones((2, 2, 3, 16, 16)))
    assert first != figures.overview(pixels(2), other, ["a", "b"], "ddim", tmp_path / "c.png").read_bytes()
