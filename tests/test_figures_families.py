import pandas as pd

from anl import figures_families

PARTS = {"trained on": ["ddim"], "further": ["dpm", "superres"]}


def rows(methods, centre, shift=0.0):
    return pd.DataFrame([{"method": method, "baseline": "plain", "metric": "AP", "generator": name, centre: 0.7 + shift, "low": 0.6,
                          "high": 0.8, "seeds": 3, "n": 480} for method in methods for name in ("ddim", "dpm", "superres")])


def test_families_in_their_parts(tmp_path):
    def draw(name, shift, parts=PARTS):
        means = rows(["plain", "anl"], "mean", shift)
        return figures_families.by_family(means, rows(["anl"], "difference"), parts, tmp_path / name).read_bytes()

    first = draw("a.png", 0)
    assert first == draw("b.png", 0) != draw("c.png", 0.05)
    assert draw("d.png", 0, {"trained on": ["ddim"], "further": ["dpm"]}) != first


def test_methods_in_the_order_of_the_table(tmp_path):
    table = pd.DataFrame([{"method": name, **{f"{part}{end}": 0.6 for part in ("one", "two") for end in ("", "_low", "_high")},
                           "seeds": 3, "n": 480} for name in ("npr", "anl")])
    columns = {"benchmark": "one", "further": "two"}
    first = figures_families.by_method(table, columns, tmp_path / "a.png").read_bytes()
    assert first == figures_families.by_method(table, columns, tmp_path / "b.png").read_bytes()
    assert first != figures_families.by_method(table.iloc[::-1].reset_index(drop=True), columns, tmp_path / "c.png").read_bytes()
