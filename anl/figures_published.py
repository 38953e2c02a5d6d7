"""The figure of the study of a public data set."""

import numpy as np

from anl.figures import COLOURS, GREY, draw, labels_above, points, sample_of


def methods(accuracy, across, generators, path, reference=None):
    """A row a method: accuracy on the data set itself, and AUROC on each generator that no detector trained on.

    accuracy: DataFrame with method, accuracy with _low and _high, seeds, n, in the order of the rows. across: DataFrame
    with method and, for each of `generators`, its AUROC with _low and _high. reference: (accuracy, words) of a dotted line.
    """
    def plot(figure, axes):
        left, right = axes[0]
        place = np.arange(len(accuracy))[::-1]
        points(left, accuracy["accuracy"], place, accuracy["accuracy_low"], accuracy["accuracy_high"], COLOURS[0])
        if reference is not None:
            left.axvline(reference[0], color=GREY, linewidth=0.8, linestyle=":")
            labels_above(left, {reference[1]: GREY})
        left.set(xlabel=f"accuracy on the data set's own test images\n{sample_of(accuracy)}", yticks=place,
                 yticklabels=accuracy["method"], ylim=(-0.6, len(accuracy) - 0.4))
        for label, name in zip(left.get_yticklabels(), accuracy["method"]):
            label.set_fontweight("bold" if name == "anl" else "normal")
        rows = across.set_index("method").loc[accuracy["method"]]
        shifts = np.linspace(0.22, -0.22, len(generators))
        for name, shift, colour in zip(generators, shifts, COLOURS[1:]):
            points(right, rows[name], place + shift, rows[f"{name}_low"], rows[f"{name}_high"], colour)
        labels_above(right, dict(zip(generators, COLOURS[1:])))
        right.axvline(0.5, color=GREY, linewidth=0.8, linestyle=":")
        right.set(xlabel="AUROC on generators never trained on\n(chance 0.5)")
        for axis in (left, right):
            axis.hlines(place, *axis.get_xlim(), color="#e4e4e4", linewidth=0.6, zorder=0)
            axis.tick_params(axis="y", length=0)

    return draw(path, plot, size=(9, 1.4 + 0.36 * len(accuracy)), columns=2, sharey=True)
