"""The figure of leaving one generator out: each family under both protocols, and the gain of noise learning under either."""

from anl.figures import COLOURS, GREY, METHOD_COLOURS, draw, labels_above, points, sample_of

METHODS = {"plain": "plain", "anl": "anl", "plain_one": "plain, one family", "anl_one": "anl, one family"}
SERIES = dict(zip(METHODS, (METHOD_COLOURS["plain"], METHOD_COLOURS["anl"], "#b8b8b8", COLOURS[1]), strict=True))
GAINS = {"gain": ("all others", SERIES["anl"]), "gain_one": ("one family", SERIES["anl_one"])}


def by_left_out(means, differences, path, names):
    """A row a left-out family or mean: left every method under both protocols, right the two paired gains.

    means, differences: of anl.leave_one_out_study.compared, of one view and metric. names: {family or mean: what its row is
    called}, in the order of the rows.
    """
    def plot(figure, axes):
        left, right = axes[0]
        for index, (method, words) in enumerate(METHODS.items()):
            _series(left, means[means["method"] == method], "mean", 0.12 * (len(METHODS) - 1 - 2 * index), SERIES[method])
        for index, (what, (_, colour)) in enumerate(GAINS.items()):
            _series(right, differences[differences["what"] == what], "difference", 0.14 - 0.28 * index, colour)
        metric = means["metric"].iloc[0].replace("_", " ")
        left.axvline(0.5, color=GREY, linewidth=0.8, linestyle=":")
        right.axvline(0, color=GREY, linewidth=0.8, linestyle=":")
        labels_above(left, {words: SERIES[method] for method, words in METHODS.items()})
        labels_above(right, dict(GAINS.values()))
        left.set(xlabel=f"{metric} (chance 0.5)\n{sample_of(means)}", yticks=list(place.values()), yticklabels=list(names.values()),
                 ylim=(-0.6, len(names) - 0.4))
        right.set(xlabel=f"gain of noise learning in {metric}, paired")
        for axis in (left, right):
            axis.hlines([row + 0.5 for row in place.values()][1:], *axis.get_xlim(), color="#e4e4e4", linewidth=0.8, zorder=0)
            axis.tick_params(axis="y", length=0)

    def _series(axis, rows, centre, shift, colour):
        rows = rows[rows["generator"].isin(place)]
        points(axis, rows[centre], rows["generator"].map(place).astype(float) + shift, rows["low"], rows["high"], colour)

    place = {name: row for name, row in zip(names, range(len(names) - 1, -1, -1))}
    return draw(path, plot, size=(10, 1.3 + 0.55 * len(names)), columns=2, sharey=True)
