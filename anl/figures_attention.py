"""The figure of the attention study, in the theme of anl.figures."""

import numpy as np

from anl.figures import COLOURS, GREY, draw, labels_above, points

PATCH_COLOURS = {"real": GREY, "generated": COLOURS[0]}
CURVE_COLOURS = {"deletion": COLOURS[3], "insertion": COLOURS[2]}
WORDS = {"random": "random order", "rising": "least attended first"}


def reach(support, differences, path):
    """How much of the image each attention listens to, and whether the logit hangs on the places it listens to.

    support, differences: the tables of anl.attention_study.study. Left the effective support of the maps; then the areas
    under deletion and insertion in falling order, less random and less rising order.
    """
    def plot(figure, axes):
        left, middle, right = axes[0]
        methods = list(dict.fromkeys(support["method"]))
        place = dict(zip(methods, np.arange(len(methods))[::-1]))
        for index, (patches, colour) in enumerate(PATCH_COLOURS.items()):
            rows = support[support["patches"] == patches]
            points(left, rows["effective_support"], rows["method"].map(place) + 0.12 - 0.24 * index,
                    rows["effective_support_low"], rows["effective_support_high"], colour)
        labels_above(left, PATCH_COLOURS)
        seeds, pairs = support["seeds"].max(), support["n"].max()
        left.set(xlabel=f"effective support (1: uniform)\n{seeds} {'seed' if seeds == 1 else 'seeds'}, n = {pairs} pairs",
                 xlim=(0, 1.05), yticks=list(place.values()), yticklabels=methods, ylim=(-0.6, len(methods) - 0.4))
        left.axvline(1, color=GREY, linewidth=0.8, linestyle=":")
        ends = [0, *differences["low"], *differences["high"]]
        margin = 0.06 * (max(ends) - min(ends)) or 1
        for axis, reference in ((middle, "random"), (right, "rising")):
            table = differences[differences["reference"] == reference]
            curves = [name for name in CURVE_COLOURS if name in set(table["curve"])]
            for index, curve in enumerate(curves):
                rows = table[table["curve"] == curve]
                shift = 0.12 * (len(curves) - 1 - 2 * index)
                points(axis, rows["difference"], rows["method"].map(place) + shift, rows["low"], rows["high"],
                        CURVE_COLOURS[curve])
            axis.axvline(0, color=GREY, linewidth=0.8, linestyle=":")
            labels_above(axis, {curve: CURVE_COLOURS[curve] for curve in curves})
            axis.set(xlabel=f"area (logits): most attended first\nminus {WORDS[reference]}",
                     xlim=(min(ends) - margin, max(ends) + margin))  # one scale: the two are compared

    return draw(path, plot, size=(10, 3), columns=3, sharey=True)
