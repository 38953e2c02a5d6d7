"""The figure of an experiment that varies an amount: a line a series, over a logarithmic axis."""

from anl.figures import COLOURS, GREY, METHOD_COLOURS, draw, labels_above, sample_of


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


def accuracy_and_cost(table, path):
    """AP on unseen generators against multiply-adds at inference, a named point a method.

    table: DataFrame with method, multiply_adds, frozen_parameters (0 where no frozen model is kept at inference), unseen_AP
    with _low and _high, seeds, n. Methods that keep a frozen model have an open point.
    """
    def plot(figure, axes):
        axis = axes[0, 0]
        for row in table.to_dict("records"):
            colour = METHOD_COLOURS.get(row["method"], COLOURS[1])
            axis.vlines(row["multiply_adds"], row["unseen_AP_low"], row["unseen_AP_high"], color=colour, linewidth=1.2)
            axis.plot(row["multiply_adds"], row["unseen_AP"], "o", color=colour,
                      markerfacecolor="white" if row["frozen_parameters"] else colour)
        # names right of their points, moved apart where methods of one cost lie close
        lowest = -1.0
        for row in table.sort_values("unseen_AP").to_dict("records"):
            lowest = max(lowest + 0.022, row["unseen_AP"])
            axis.annotate(row["method"], (row["multiply_adds"], row["unseen_AP"]), (row["multiply_adds"] * 1.09, lowest),
                          color=METHOD_COLOURS.get(row["method"], "black"), va="center", fontsize=8.5,
                          fontweight="bold" if row["method"] == "anl" else None)
        axis.axhline(0.5, color=GREY, linewidth=0.8, linestyle=":")
        axis.set(xscale="log", xlabel="multiply-adds for one image at inference (open: a frozen model is kept)\n"
                 + sample_of(table), ylabel="AP, mean of unseen generators")
        axis.set_xlim(table["multiply_adds"].min() * 0.6, table["multiply_adds"].max() * 3)

    return draw(path, plot, size=(9, 4.6))
