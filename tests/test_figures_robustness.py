import pandas as pd
from PIL import Image

from anl import figures_robustness


def table(kinds=("jpeg", "resize")):
    strengths = {"jpeg": (90, 50), "resize": (0.5, 1.5)}
    places = [("none", 0.0), *((kind, strength) for kind in kinds for strength in strengths[kind])]
    return pd.DataFrame([{"method": method, "perturbation": kind, "strength": strength, "mean": base - 0.05 * i,
                          "low": base - 0.05 * i - 0.02, "high": base - 0.05 * i + 0.03, "seeds": 3, "n": 480}
                         for method, base in (("plain", 0.6), ("anl", 0.8)) for i, (kind, strength) in enumerate(places)])


def test_same_data_same_bytes_and_other_data_another_picture(tmp_path):
    def draw(name, data, reference=0.5):
        return figures_robustness.by_strength({"AP": data, "accuracy": data}, tmp_path / name, reference)

    first, again, other = draw("a.png", table()), draw("b.png", table()), draw("c.png", table().assign(mean=0.65))
    assert first.read_bytes() == again.read_bytes() != other.read_bytes()
    assert draw("d.png", table(), None).read_bytes() != first.read_bytes()
    narrower = draw("e.png", table(("jpeg",)))
    assert Image.open(narrower).width < Image.open(first).width


def test_strengths_stand_from_mild_to_strong_and_untouched_where_it_belongs():
    rows = table()
    for kind, order in (("jpeg", [("none", 0), ("jpeg", 90), ("jpeg", 50)]),
                        ("resize", [("resize", 0.5), ("none", 0), ("resize", 1.5)])):
        places = figures_robustness._places(rows[rows["perturbation"].isin(["none", kind])], kind)
        assert list(places) == order and list(places.values()) == [0, 1, 2]


def test_reliability(tmp_path):
    rows = pd.DataFrame([{"method": method, "generators": where, "temperature": when, "probability": p, "mean": p / 2 + 0.2,
                          "low": p / 2, "high": p / 2 + 0.3} for method in ("plain", "anl") for where in ("seen", "unseen")
                         for when in ("before", "after") for p in (0.1, 0.5, 0.9)])
    first = figures_robustness.reliability(rows, tmp_path / "a.png")
    moved = figures_robustness.reliability(rows.assign(mean=0.5), tmp_path / "b.png")
    assert figures_robustness.reliability(rows, tmp_path / "c.png").read_bytes() == first.read_bytes() != moved.read_bytes()
