"""Figures show what the table holds, refuse what it lacks, and are the same bytes twice."""

import numpy as np
import pandas as pd
import pytest

from anl.io import UserError
from anl.report import figures


def table(variants=("plain", "t=1", "t=10"), views=("raw",), shift=0.0):
    return pd.DataFrame([{"variant": name, "generator": generator, "view": view, "metric": "auroc",
                          "mean": 0.6 + 0.1 * index + shift, "low": 0.5 + 0.1 * index + shift,
                          "high": 0.75 + 0.1 * index + shift, "seeds": 3, "n": 33}
                         for view in views for generator in ("ddim", "unseen") for index, name in enumerate(variants)])


def lines(axis):
    return [tuple(np.ravel(line.get_xdata())) for line in axis.lines]


def test_a_forest_draws_each_mean_and_interval_and_the_reference_behind():
    figure = figures.forest(table(), baseline="plain")
    assert [axis.get_title(loc="left") for axis in figure.axes] == ["ddim", "unseen"]
    drawn = lines(figure.axes[0])
    for low, mean, high in ((0.5, 0.6, 0.75), (0.6, 0.7, 0.85), (0.7, 0.8, 0.95)):
        assert any(np.allclose(line, (low, high)) for line in drawn if len(line) == 2)
        assert any(np.allclose(line, (mean,)) for line in drawn if len(line) == 1)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["plain", "t=1", "t=10"]
    assert {axis.get_xscale() for axis in figure.axes} == {"linear"}
    reference = table(shift=0.02)
    reference.attrs["profile"] = "profile caltech"
    both = figures.forest(table(), reference=reference, log=True)
    assert {axis.get_xscale() for axis in both.axes} == {"log"} and "profile caltech" in both.get_supxlabel()
    assert any(np.allclose(line, (0.62,)) for line in lines(both.axes[0]) if len(line) == 1)
    assert figures.forest(table(), reference=table().assign(metric="ap")).get_supxlabel() == ""


def test_a_metric_against_cost_places_each_variant_and_names_it_once():
    near = table(variants=("plain", "t=1", "t=10", "t=100")).assign(mean=[0.6, 0.601, 0.7, 0.8] * 2)
    axis = figures.against_cost(near, {"plain": 1.0, "t=1": 1.0, "t=10": 30.0, "absent": 2.0}, xlabel="cost").axes[0]
    assert axis.get_xscale() == "log" and axis.get_xlabel() == "cost"
    points = [tuple(point) for line in axis.lines for point in line.get_xydata()]
    assert sorted(points) == [(1.0, 0.6), (1.0, 0.601), (30.0, 0.7)]
    names = {text.get_text(): text.get_position() for text in axis.texts}
    assert set(names) == {"plain", "t=1", "t=10"} and names["t=1"][1] - names["plain"][1] > 0.005  # do not overlap
    with pytest.raises(UserError, match="none of the variants absent"):
        figures.against_cost(near, {"absent": 2.0})


def test_a_curve_places_variants_by_their_number_and_the_baseline_as_a_line():
    figure = figures.curve(table(), baseline="plain", xlabel="diffusion step t")
    axis = figure.axes[0]
    assert axis.get_xscale() == "log" and axis.get_xlabel() == "diffusion step t"
    assert [text.get_text() for text in axis.get_xticklabels()] == ["1", "10"]
    line = next(line for line in axis.lines if list(line.get_xdata()) == [1, 10])
    assert np.allclose(line.get_ydata(), [0.7, 0.8])
    assert any(np.allclose(line.get_ydata(), 0.6) for line in axis.lines)
    with_zero = figures.curve(table(variants=("lambda=0", "lambda=0.3", "lambda=30"))).axes[0]
    places = with_zero.transData.transform([(value, 0.5) for value in (0, 0.3, 30)])[:, 0]
    assert np.diff(places).min() > 20  # pixels, so that no label covers another
    axis = figures.curve(table(variants=("plain", "lambda=1", "lambda=0.5")), log=False).axes[0]
    assert [text.get_text() for text in axis.get_xticklabels()] == ["0.5", "1"]


def test_a_curve_has_a_line_per_method():
    groups = {"plain": {"plain": 300}, "ANL": {"t=10": 2000, "t=1": 300}}
    axis = figures.curve(table(), groups, reference=table(variants=("plain",))).axes[0]
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["plain", "ANL"]
    line = next(line for line in axis.lines if list(line.get_xdata()) == [300, 2000])
    assert np.allclose(line.get_ydata(), [0.7, 0.8]) and line.get_color() == figures.colours(groups)["ANL"]
    assert figures.LIGHT in [line.get_color() for line in axis.lines if list(line.get_xdata()) == [300]]
    with pytest.raises(UserError, match="none of the variants absent"):
        figures.curve(table(), {"srm": {"absent": 1}})


def test_seen_against_unseen_has_a_line_per_method_in_the_order_of_steps():
    figure = figures.seen_against_unseen(table(), {"ANL": {"t=10": 2000, "t=1": 280}, "plain": {"plain": 280}}, seen="ddim")
    texts = {text.get_text() for text in figure.axes[0].texts}
    assert {"ANL", "plain", "2,000", "280"} <= texts
    assert "ddim" in figure.axes[0].get_xlabel()
    assert any(np.allclose(line.get_xdata(), [0.7, 0.8]) for line in figure.axes[0].lines if len(line.get_xdata()) == 2)


def test_a_heatmap_writes_the_numbers():
    figure = figures.heatmap(table())
    assert {text.get_text() for text in figure.axes[0].texts} == {"0.60", "0.70", "0.80"}


def test_reliability_and_image_grids_draw_what_they_are_given():
    bins = pd.DataFrame({"probability": [0.1, 0.9], "share": [0.2, 0.8], "low": [0.1, 0.7], "high": [0.3, 0.9], "n": [10, 10]})
    assert any(np.allclose(line.get_ydata(), [0.2, 0.8]) for line in figures.reliability({"anl": bins}).axes[0].lines)
    image = np.zeros((4, 4, 3), np.uint8)
    grid = figures.image_grid([[image, None], [image]], ["a", "b"], ["x", "y"])
    assert [len(axis.images) for axis in grid.axes] == [1, 0, 1, 0]


@pytest.mark.parametrize("draw, words", [
    (lambda: figures.forest(table(views=("raw", "jpeg96"))), "several views"),
    (lambda: figures.forest(table(), metric="auc"), "no metric 'auc'"),
    (lambda: figures.forest(table(), view="png"), "no view 'png'"),
    (lambda: figures.forest(table(), generators=["gan"]), "no generator 'gan'"),
    (lambda: figures.curve(table(variants=("plain",))), "none of the variants"),
    (lambda: figures.seen_against_unseen(table(), {"ANL": {"t=7": 1}}, seen="ddim"), "none of the variants"),
    (lambda: figures.seen_against_unseen(table(), {"ANL": {"t=1": 1}}, seen="gan"), "no generator 'gan'")])
def test_what_the_table_lacks_is_one_line(draw, words):
    with pytest.raises(UserError, match=words):
        draw()


def test_the_same_table_gives_the_same_bytes():
    first, second = (figures.to_png(figures.forest(table())) for _ in range(2))
    assert first == second and first[:8] == b"\x89PNG\r\n\x1a\n"


def test_a_sorted_forest_begins_with_the_highest_value():
    axis = figures.forest(table(), generators=["unseen"], sort=True).axes[0]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["t=10", "t=1", "plain"]


def test_differences_are_drawn_around_zero_and_need_a_baseline():
    paired = table().assign(difference=[np.nan, 0.1, -0.1] * 2, difference_low=[np.nan, 0.05, -0.2] * 2,
                            difference_high=[np.nan, 0.15, 0.1] * 2)
    figure = figures.forest(paired, value="difference")
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["t=1", "t=10"]
    assert any(np.allclose(line, (0, 0)) for line in lines(figure.axes[0]))
    with pytest.raises(UserError, match="no differences"):
        figures.forest(table().assign(difference=np.nan), value="difference")


def test_a_panel_per_perturbation_with_the_untouched_images_as_a_line():
    views = ("raw", "jpeg_90", "jpeg_50", "blur_1", "jpeg96")
    figure = figures.by_strength(table(variants=("plain", "anl"), views=views), baseline="plain")
    assert [axis.get_title(loc="left") for axis in figure.axes] == ["jpeg", "blur"]
    axis = figure.axes[0]
    assert axis.xaxis_inverted() and not figure.axes[1].xaxis_inverted()
    assert sum(list(line.get_xdata()) == [50, 90] for line in axis.lines) == 2
    assert any(np.allclose(line.get_ydata(), 0.7) and line.get_linestyle() == ":" for line in axis.lines)
    many = figures.by_strength(table(variants=tuple("abcde"), views=views))
    assert {text.get_text() for text in many.axes[0].texts} == set("abcde")
    reference = table(variants=("plain", "anl"), views=("raw", "jpeg_95", "jpeg_60", "webp_90"))
    behind = figures.by_strength(table(variants=("plain", "anl"), views=views), reference=reference)
    assert [axis.get_title(loc="left") for axis in behind.axes] == ["jpeg", "blur", "webp"]
    drawn = [list(line.get_xdata()) for line in behind.axes[0].lines if line.get_color() == figures.LIGHT]
    assert drawn.count([60, 95]) == 2 and "light grey" in behind.get_supxlabel()
    with pytest.raises(UserError, match="no perturbed images"):
        figures.by_strength(table())
