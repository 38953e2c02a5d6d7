"""The pictures of the gallery: sheets of small images for the reader's browser, and a figure for where scripts are off."""

import numpy as np
from matplotlib import colormaps
from PIL import Image

from anl.figures import difference_image, image_grid
from anl.files import whole_file

GAIN = 8  # what a difference in grey levels is multiplied by
SPREAD = 3.0  # standard deviations of the target at the ends of the noise's scale
LEVELS = 13  # of that scale: half a standard deviation each. More are not seen in noise, and make sheets twice as large
BRIGHTEST = 2.0  # times a uniform map's weight at the bright end of the attention's scale


def noise_pixels(noise):
    """Noise (..., C, h, w) in standard deviations as uint8 (..., h, w, 3): mid-grey is 0, the ends are +-SPREAD.

    Of a latent prior's channels the first three are shown.
    """
    share = np.moveaxis(np.asarray(noise, float)[..., :3, :, :], -3, -1) / (2 * SPREAD) + 0.5
    level = np.rint(share.clip(0, 1) * (LEVELS - 1))
    return np.rint(level * 255 / (LEVELS - 1)).astype(np.uint8)


def map_pixels(maps):
    """Attention maps (..., h, w), each summing to 1, as uint8 (..., h, w, 3): dark is 0, bright BRIGHTEST times uniform."""
    share = np.asarray(maps, float) * maps.shape[-1] * maps.shape[-2] / BRIGHTEST
    return np.rint(colormaps["viridis"](share.clip(0, 1))[..., :3] * 255).astype(np.uint8)


def differences(pixels):
    """Each regeneration minus its photograph, times GAIN around mid-grey; pixels: uint8 (G, K, H, W, 3), photographs first."""
    return np.stack([difference_image(fakes, pixels[0], GAIN) for fakes in pixels])


def sheet(tiles):
    """uint8 (G, K, h, w, 3) -> (K * h, G * w, 3): a column a generator, a row a patch."""
    columns, rows, height, width, _ = tiles.shape
    return tiles.transpose(1, 2, 0, 3, 4).reshape(rows * height, columns * width, 3)


def write_sheet(path, tiles):
    """Write a sheet of tiles as PNG, the same bytes for the same pixels; returns the path."""
    with whole_file(path) as temporary:
        Image.fromarray(sheet(tiles)).save(temporary, format="PNG", optimize=True)
    return path


def write_sheets(folder, pixels, sights):
    """Write all sheets into `folder`; returns {kind: file name, or {step: file name}}.

    pixels: uint8 (G, K, H, W, 3); sights: {step: anl.gallery.Sight}.
    """
    names = {"image": "images.png", "difference": "differences.png"}
    write_sheet(folder / names["image"], pixels)
    write_sheet(folder / names["difference"], differences(pixels))
    for kind, values_of in (("noise", lambda sight: noise_pixels(sight.noise)),
                            ("predicted", lambda sight: noise_pixels(sight.predicted)),
                            ("attention", lambda sight: map_pixels(sight.maps))):
        names[kind] = {str(step): f"{kind}-t{step}.png" for step in sights}
        for step, sight in sights.items():
            write_sheet(folder / names[kind][str(step)], values_of(sight))
    return names


def overview(pixels, sight, labels, generator, path):
    """A row a patch for one generator and step: both images, their difference, the prior's noise in both, and the detector's
    prediction and attention on the regeneration. pixels: uint8 (2, K, H, W, 3), the photographs and their regenerations;
    sight: anl.gallery.Sight of these; labels: a name a row."""
    apart = differences(pixels)[1]
    noise, predicted, maps = noise_pixels(sight.noise), noise_pixels(sight.predicted[1]), map_pixels(sight.maps[1])
    rows = [[*pixels[:, k], apart[k], *noise[:, k], predicted[k], maps[k]] for k in range(pixels.shape[1])]
    titles = ["photograph", generator, f"difference x {GAIN}", "prior's noise,\nphotograph", f"prior's noise,\n{generator}",
              f"predicted,\n{generator}", f"attention,\n{generator}"]
    return image_grid(rows, labels, titles, path)
