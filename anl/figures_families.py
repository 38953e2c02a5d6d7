"""Figures of the further families: a row a family in its part of the set, and what a method reaches in each part."""

import numpy as np

from anl.figures import COLOURS, GREY, METHOD_COLOURS, draw, labels_above, points, sample_of


def by_family(means, differences, parts, path, names=None):
    """A row a family or mean with a point a method, and beside it the paired difference; a line between parts of the set.

    means, differences: rows of one metric, of anl.families_study.compared, with two methods. parts: {words: names of the
    families in it}, in the order of the rows. names: {family or mean: what its row is called}, where that is another.
    """
    def plot(figure, axes):
        left, right = axes[0]
        for index, method in enumerate(methods):
            rows = means[(means["method"] == method) & means["generator"].isin(place)]
            y = rows["generator"].map(place) + 0.14 * (len(methods) - 1 - 2 * index)
            points(left, rows["mean"], y, rows["low"], rows["high"], METHOD_COLOURS.get(method, COLOURS[index]))
        rows = differences[differences["generator"].isin(place)]
        points(right, rows["difference"], rows["generator"].map(place), rows["low"], rows["high"], COLOURS[0])
        left.axvline(0.5, color=GREY, linewidth=0.8, linestyle=":")
        right.axvline(0, color=GREY, linewidth=0.8, linestyle=":")
        labels_above(left, {name: METHOD_COLOURS.get(name, COLOURS[i]) for i, name in enumerate(methods)})
        metric = means["metric"].iloc[0].replace("_", " ")
        left.set(xlabel=f"{metric} (chance 0.5)\n{sample_of(means)}", yticks=list(place.values()), yticklabels=labels,
                 ylim=(min(place.values()) - 0.6, max(place.values()) + 0.6))
        right.set(xlabel=f"difference in {metric}", title=f"{rows['method'].iloc[0]} minus {rows['baseline'].iloc[0]}, paired")
        for words, members in parts.items():
            middle = np.mean([place[name] for name in members])
            right.annotate(words, (1.02, middle), xycoords=("axes fraction", "data"), va="center", color=GREY, fontsize="small",
                           annotation_clip=False)
            for axis in (left, right):
                axis.axhline(place[members[-1]] - 0.75, color="#d0d0d0", linewidth=0.8)
        for axis in (left, right):
            axis.tick_params(axis="y", length=0)

    methods = list(dict.fromkeys(means["method"]))
    place, y = {}, 0.0
    for members in parts.values():
        for name in members:
            place[name], y = y, y - 1
        y -= 0.5
    labels = [(names or {}).get(name, name) for name in place]
    return draw(path, plot, size=(9.5, 1.2 + 0.3 * -y), columns=2, sharey=True)


def by_method(table, columns, path):
    """A row a method, a point for each mean of families with its 95 % interval. table: DataFrame in the order of the rows;
    columns: {words: column of `table`}, with _low and _high beside."""
    def plot(figure, axes):
        axis, place = axes[0, 0], np.arange(len(table))[::-1]
        for index, column in enumerate(columns.values()):
            shift = 0.14 * (len(columns) - 1 - 2 * index)
            points(axis, table[column], place + shift, table[f"{column}_low"], table[f"{column}_high"], COLOURS[index])
        axis.axvline(0.5, color=GREY, linewidth=0.8, linestyle=":")
        labels_above(axis, {words: COLOURS[index] for index, words in enumerate(columns)})
        axis.set(xlabel=f"AP (chance 0.5)\n{sample_of(table)}", yticks=place, yticklabels=table["method"],
                 ylim=(-0.6, len(table) - 0.4))
        for label, name in zip(axis.get_yticklabels(), table["method"]):
            label.set_fontweight("bold" if name == "anl" else "normal")
        axis.hlines(place, *axis.get_xlim(), color="#e4e4e4", linewidth=0.6, zorder=0)
        axis.tick_params(axis="y", length=0)

    return draw(path, plot, size=(7.5, 1.2 + 0.36 * len(table)))
