import pandas as pd
from PIL import Image

from anl import figures_experiments


def table():
    return pd.DataFrame([{"method": name, "pairs": pairs, "mean": mean, "low": mean - 0.02, "high": mean + 0.03, "seeds": 5,
                          "n": 480} for name, base in (("plain", 0.6), ("anl", 0.7))
                         for pairs, mean in ((60, base), (240, base + 0.05))])


def test_same_data_same_bytes_and_other_data_another_picture(tmp_path):
    def draw(name, data, reference=0.5):
        return figures_experiments.over_amount(data, tmp_path / name, "method", "pairs", "training pairs", "AP", reference)

    first, again, other = draw("a.png", table()), draw("b.png", table()), draw("c.png", table().assign(mean=0.65))
    assert first.read_bytes() == again.read_bytes() != other.read_bytes()
    assert draw("d.png", table(), None).read_bytes() != first.read_bytes()
    assert Image.open(first).width > 1000


def test_every_method_has_a_row(tmp_path):
    costs = pd.DataFrame([{"method": name, "multiply_adds": cost, "frozen_parameters": frozen, "unseen_AP": ap,
                           "unseen_AP_low": ap - 0.02, "unseen_AP_high": ap + 0.02, "unseen_AP_jpeg96": ap - 0.1,
                           "unseen_AP_jpeg96_low": ap - 0.12, "unseen_AP_jpeg96_high": ap - 0.08, "seeds": 5, "n": 480}
                          for name, cost, frozen, ap in (("anl", 3e7, 0, 0.7), ("plain", 2.8e7, 0, 0.6), ("dire", 9e9, 9, 0.6))])
    path = figures_experiments.accuracy_and_cost(costs, tmp_path / "a.png")
    other = figures_experiments.accuracy_and_cost(costs.assign(frozen_parameters=0), tmp_path / "b.png")
    assert path.read_bytes() != other.read_bytes() and Image.open(path).width > 1000
