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
