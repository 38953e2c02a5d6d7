"""The figure of the attention study."""

import pandas as pd
from PIL import Image

from anl import figures_attention
from anl.attention_study import COMPARISONS

SUPPORT = pd.DataFrame([{"method": method, "patches": patches, "effective_support": 0.6, "effective_support_low": 0.5,
                         "effective_support_high": 0.8, "seeds": 3, "n": 33}
                        for method in ("none", "affinity") for patches in ("real", "generated")])
DIFFERENCES = pd.DataFrame([{"method": method, "curve": curve, "reference": reference, "difference": -0.1, "low": -0.2,
                             "high": 0.05, "seeds": 3, "n": 33}
                            for method in ("none", "affinity") for curve, reference in COMPARISONS])


def test_reach_is_a_white_png_with_the_same_bytes_for_the_same_data(tmp_path):
    first, second = (figures_attention.reach(SUPPORT, DIFFERENCES, tmp_path / name) for name in ("a.png", "b.png"))
    image = Image.open(first)
    assert image.format == "PNG" and 200 < image.width < 1600 and "Software" not in image.info
    assert image.convert("RGB").getpixel((0, 0)) == (255, 255, 255)
    assert first.read_bytes() == second.read_bytes()


def test_reach_shows_every_interval(tmp_path):
    """Moving any one end of any interval must move the picture."""
    plain = figures_attention.reach(SUPPORT, DIFFERENCES, tmp_path / "plain.png").read_bytes()
    for row in range(len(DIFFERENCES)):
        table = DIFFERENCES.copy()
        table.loc[row, "low"] = -0.3
        assert figures_attention.reach(SUPPORT, table, tmp_path / "moved.png").read_bytes() != plain
    table = SUPPORT.assign(effective_support_high=0.9)
    assert figures_attention.reach(table, DIFFERENCES, tmp_path / "moved.png").read_bytes() != plain
