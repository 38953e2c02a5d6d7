import pandas as pd
from PIL import Image

from anl import figures_published


def test_a_row_a_method_with_and_without_the_published_figure(tmp_path):
    accuracy = pd.DataFrame([{"method": name, "accuracy": 0.9, "accuracy_low": 0.85, "accuracy_high": 0.95, "seeds": 3, "n": 100}
                             for name in ("plain", "anl")])
    across = pd.DataFrame([{"method": name, "gan": 0.6, "gan_low": 0.5, "gan_high": 0.7} for name in ("anl", "plain", "npr")])
    paths = [figures_published.methods(accuracy, across, ["gan"], tmp_path / f"{i}.png", reference)
             for i, reference in enumerate((None, (0.93, "as published"), None))]
    first, referred, again = (path.read_bytes() for path in paths)
    assert first == again and first != referred
    assert Image.open(paths[0]).size[0] > 1000
