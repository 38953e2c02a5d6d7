"""Figures of robustness and calibration: a panel a perturbation, mild to strong; reliability diagrams."""

import numpy as np
import pandas as pd

from anl.figures import COLOURS, GREY, METHOD_COLOURS, draw, labels_above, sample_of

# kind: (axis label, where `none` stands among its strengths, whether a smaller strength is the stronger perturbation)
KINDS = {"jpeg": ("JPEG quality", 101, True), "webp": ("WebP quality", 101, True), "blur": ("blur (pixels)", 0, False),
         "resize": ("resize (times)", 1, False), "crop": ("crop (share)", 1, True), "noise": ("noise (grey levels)", 0, False)}


def by_strength(tables, path, reference=None):
    """A row a quantity, a column a perturbation, a line a method with its 95 % intervals, from untouched (`none`) on.

    tables: {label of the row: DataFrame with method, perturbation, strength, mean, low, high, seeds, n}; perturbation
    `none` is the untouched test set. reference: height of a dotted line.
    """
    def plot(figure, axes):
        for line, (label, table) in zip(axes, tables.items()):
            for axis, kind in zip(line, kinds):
                rows = table[table["perturbation"].isin(["none", kind])]
                place = _places(rows, kind)
                for index, method in enumerate(methods):
                    mine = rows[rows["method"] == method]
                    x = np.array([place[key] for key in zip(mine["perturbation"], mine["strength"])], float)
                    order = np.argsort(x)
                    x = x[order] + 0.09 * (2 * index - len(methods) + 1)  # side by side
                    mine, colour = mine.iloc[order], METHOD_COLOURS.get(method, COLOURS[index])
                    axis.plot(x, mine["mean"], color=colour, marker="o", linewidth=1.5)
                    axis.vlines(x, mine["low"], mine["high"], color=colour, linewidth=1.5)
                names = ["none" if kind == "none" else f"{strength:g}" for kind, strength in place]
                axis.set_xticks(list(place.values()), names)
                axis.margins(x=0.12)
                if reference is not None:
                    axis.axhline(reference, color=GREY, linewidth=0.8, linestyle=":")
            line[0].set_ylabel(label)
        for axis, kind in zip(axes[-1], kinds):
            axis.set_xlabel(KINDS[kind][0])
        labels_above(axes[0, 0], {name: METHOD_COLOURS.get(name, COLOURS[i]) for i, name in enumerate(methods)})
        figure.supxlabel(sample_of(pd.concat(tables.values())), fontsize="small")

    first = next(iter(tables.values()))
    methods = list(dict.fromkeys(first["method"]))
    kinds = [kind for kind in dict.fromkeys(first["perturbation"]) if kind in KINDS]
    return draw(path, plot, size=(1.1 + 1.75 * len(kinds), 0.6 + 2.2 * len(tables)), rows=len(tables),
                columns=len(kinds), sharey="row")


def _places(rows, kind):
    """{(perturbation, strength): place on the axis} from the mildest to the strongest, `none` where it belongs."""
    _, neutral, falling = KINDS[kind]
    keys = dict.fromkeys(zip(rows["perturbation"], rows["strength"]))
    ordered = sorted(keys, key=lambda key: neutral if key[0] == "none" else key[1], reverse=falling)
    return {key: place for place, key in enumerate(ordered)}


def reliability(table, path):
    """How often an image is generated against the probability given to it; before and after the temperature.

    table: anl.calibration_study.reliability. A row for seen and one for unseen generators, a column a method.
    """
    def plot(figure, axes):
        for line, where in zip(axes, sets):
            for axis, method in zip(line, methods):
                axis.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle=":")
                for when, colour in colours.items():
                    rows = table[(table["method"] == method) & (table["generators"] == where)
                                 & (table["temperature"] == when)]
                    axis.plot(rows["probability"], rows["mean"], color=colour, marker="o", linewidth=1.2)
                    axis.vlines(rows["probability"], rows["low"], rows["high"], color=colour, linewidth=1.2)
                axis.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xticks=[0, 0.5, 1], yticks=[0, 0.5, 1])
            line[0].set_ylabel(f"{where}: share generated")
        for axis, method in zip(axes[-1], methods):
            axis.set_xlabel(f"{method}: probability of being generated")
        labels_above(axes[0, 0], {f"{when} temperature": colour for when, colour in colours.items()})

    methods, sets = (list(dict.fromkeys(table[key])) for key in ("method", "generators"))
    colours = {"before": COLOURS[1], "after": COLOURS[0]}
    return draw(path, plot, size=(3.6 * len(methods), 3 * len(sets)), rows=len(sets), columns=len(methods))
