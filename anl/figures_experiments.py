"""The figures of further experiments: a line a series over a logarithmic axis, and methods with what they cost."""

import numpy as np

from anl.figures import COLOURS, GREY, METHOD_COLOURS, draw, labels_above, points, sample_of


def over_amount(table, path, series, x, xlabel, ylabel, reference=None):
    """Values with intervals against an amount.

    table: DataFrame with the columns `series` and `x` and mean, low, high, seeds, n. Series take turns in colour in
    the order of their first row, `plain` and `anl` have their own; those that end in `leaky` are dashed. reference: the height of a dotted line.
    """
    def plot(figure, axes):
        axis, labels = axes[0, 0], {}
        names = list(dict.fromkeys(table[series]))
        amounts = sorted(set(table[x]))
        for index, name in enumerate(names):
            rows = table[table[series] == name].sort_values(x)
            colour = METHOD_COLOURS.get(name, COLOURS[index])
            place = rows[x] * 1.05 ** (index - (len(names) - 1) / 2)  # side by side, so that intervals do not hide
            axis.plot(place, rows["mean"], color=colour, marker="o", linewidth=1.5,
                      linestyle="--" if name.endswith("leaky") else "-")
            axis.vlines(place, rows["low"], rows["high"], color=colour, linewidth=1.5)
            labels[name] = colour
        if reference is not None:
            axis.axhline(reference, color=GREY, linewidth=0.8, linestyle=":")
        labels_above(axis, labels)
        axis.set(xscale="log", xlabel=f"{xlabel}\n{sample_of(table)}", ylabel=ylabel)
        axis.set_xlim(min(amounts) * 0.75, max(amounts) / 0.75)
        axis.set_xticks(amounts, [f"{amount:g}" for amount in amounts])
        axis.minorticks_off()

    return draw(path, plot, size=(9, 3.6))


def accuracy_and_cost(table, path, measure="unseen_AP", words="AP, mean of unseen generators"):
    """A row a method: a measure, at the headline view and through JPEG, and multiply-adds at inference.

    table: DataFrame in the order of the rows, with method, multiply_adds, frozen_parameters (0 where no frozen model is kept
    at inference), `measure` and `measure`_jpeg96 with _low and _high, seeds, n. words: what the measure is.
    """
    def plot(figure, axes):
        left, right = axes[0]
        place = np.arange(len(table))[::-1]
        views = {"through JPEG 96": (f"{measure}_jpeg96", COLOURS[1], -0.13), "as it is": (measure, COLOURS[0], 0.13)}
        for key, colour, shift in views.values():
            points(left, table[key], place + shift, table[f"{key}_low"], table[f"{key}_high"], colour)
        labels_above(left, {name: colour for name, (_, colour, _) in views.items()})
        left.axvline(0.5, color=GREY, linewidth=0.8, linestyle=":")
        left.set(xlabel=f"{words} (chance 0.5)\n{sample_of(table)}", yticks=place,
                 yticklabels=table["method"], ylim=(-0.6, len(table) - 0.4))
        for label, name in zip(left.get_yticklabels(), table["method"]):
            label.set_fontweight("bold" if name == "anl" else "normal")
        kept = table["frozen_parameters"] > 0
        for chosen, face in ((~kept, GREY), (kept, "white")):
            right.plot(table["multiply_adds"][chosen], place[chosen], "o", color=GREY, markerfacecolor=face)
        right.set(xscale="log", xlabel="multiply-adds for one image\n(open: a frozen model is kept)")
        for axis in (left, right):
            axis.hlines(place, *axis.get_xlim(), color="#e4e4e4", linewidth=0.6, zorder=0)
            axis.tick_params(axis="y", length=0)

    return draw(path, plot, size=(9, 1.2 + 0.42 * len(table)), columns=2, sharey=True)
