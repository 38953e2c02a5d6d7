"""The figures of the notebooks and the book: one theme, one function a figure, arrays or DataFrames in, a PNG out.

Intervals are always drawn, series are named in their own colour above the axes rather than in a legend, and the same
data give the same bytes.
"""

import base64
import html
from pathlib import Path

import matplotlib
import numpy as np
import seaborn
from IPython.display import HTML
from matplotlib.figure import Figure

from anl.files import whole_file

DPI = 144
COLOURS = seaborn.color_palette("colorblind", 8).as_hex()
GREY = "#6b6b6b"
METHOD_COLOURS = {"plain": GREY, "anl": COLOURS[0]}
VERDICT_COLOURS = {"reproduced": COLOURS[2], "within noise": COLOURS[1], "not reproduced": COLOURS[3],
                   "not run here": GREY}
STATISTICS = {"mean_colour": "mean colour", "contrast": "contrast", "high_frequency": "high frequencies",
              "spectrum": "spectrum"}
THEME = {**seaborn.axes_style("ticks"), **seaborn.plotting_context("notebook", 0.85), "font.family": "DejaVu Sans",
         "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": GREY, "axes.titlelocation": "left",
         "axes.titlesize": 10, "figure.facecolor": "white", "axes.facecolor": "white", "savefig.facecolor": "white",
         "lines.markersize": 5}


def show(path, alt):
    """A saved figure as an HTML image with alternative text, its bytes inside the notebook."""
    data = base64.b64encode(Path(path).read_bytes()).decode()
    return HTML(f'<img src="data:image/png;base64,{data}" alt="{html.escape(alt, quote=True)}" style="max-width:100%">')


def draw(path, plot, *arguments, size, columns=1, rows=1, **options):
    """Call `plot(figure, axes, *arguments)` under the theme and save it as `path`. size: inches (width, height)."""
    with matplotlib.rc_context(THEME):
        figure = Figure(figsize=size, layout="constrained")
        plot(figure, figure.subplots(rows, columns, squeeze=False, **options), *arguments)
        with whole_file(path) as temporary:
            figure.savefig(temporary, format="png", dpi=DPI, metadata={"Software": None})
    return path


def image_grid(rows, row_labels, column_labels, path, cell=1.1, limits=None):
    """Rows of small images: uint8 (H, W, 3), float (H, W, 3) in [0, 1], or maps (H, W) drawn from 0 to the largest.

    limits: upper end of the maps' scale (default: each map's own). A missing image is None.
    """
    def plot(figure, axes):
        for line, images, label in zip(axes, rows, row_labels, strict=True):
            line[0].set_ylabel(label, rotation=0, ha="right", va="center")
            for axis, image in zip(line, [*images, *[None] * (len(line) - len(images))]):
                axis.set(xticks=[], yticks=[])
                seaborn.despine(ax=axis, left=True, bottom=True)
                if image is not None:
                    axis.imshow(image, cmap="viridis", vmin=0, vmax=limits, interpolation="nearest", aspect="equal")
        for axis, label in zip(axes[0], column_labels):
            axis.set_title(label, loc="center", fontsize=8.5)

    widest = max(map(len, rows))
    label_width = 0.085 * max(map(len, row_labels)) + 0.2
    return draw(path, plot, size=(widest * cell + label_width, len(rows) * cell * 1.04 + 0.35), rows=len(rows),
                columns=widest)


def difference_image(fake, real, gain=8):
    """fake - real in uint8 pixels, amplified by `gain` around mid-grey, as uint8."""
    return np.clip(128 + gain * (np.asarray(fake, float) - np.asarray(real, float)), 0, 255).astype(np.uint8)


def noise_image(noise, spread=3.0):
    """Noise (3, H, W) in standard deviations as a picture in [0, 1]: mid-grey is 0, the ends are +-`spread`."""
    return np.clip(np.moveaxis(np.asarray(noise, float), 0, -1) / (2 * spread) + 0.5, 0, 1)


def statistics(table, path):
    """AP of classifiers on simple statistics, one panel each. table: results/<profile>/audit/family_statistics.csv."""
    def plot(figure, axes):
        place = np.arange(len(table))[::-1]
        for axis, (key, title) in zip(axes[0], STATISTICS.items()):
            points(axis, table[f"ap_{key}"], place, table[f"ap_{key}_low"], table[f"ap_{key}_high"], COLOURS[0])
            axis.axvline(0.5, color=GREY, linewidth=0.8, linestyle=":")
            axis.set(title=title, xlim=(0.3, 1.02), xlabel="AP (chance 0.5)", yticks=place,
                     yticklabels=_family_labels(table["family"], table["seen"]))
            axis.label_outer()
        axes[0, 0].set_ylim(-0.6, len(table) - 0.4)

    return draw(path, plot, size=(9, 0.9 + 0.36 * len(table)), columns=len(STATISTICS), sharey=True)


def denoising(table, path):
    """Error of prior and Gaussian filter per step, and their ratio. table: anl.prior_study.denoising_table."""
    def plot(figure, axes):
        left, right = axes[0]
        for key, colour in (("gaussian", GREY), ("prior", COLOURS[0])):
            center, low, high = (table[f"{key}_rmse{end}"] for end in ("", "_low", "_high"))
            _band(left, table["step"], center, low, high, colour)
        labels_above(left, {"prior": COLOURS[0], "best Gaussian filter": GREY})
        left.set(xscale="log", yscale="log", xlabel="diffusion step t", ylabel="error left (grey levels, RMS)")
        _band(right, table["step"], table["ratio"], table["ratio_low"], table["ratio_high"], COLOURS[0])
        right.axhline(1, color=GREY, linewidth=0.8, linestyle=":")
        right.set(xscale="log", xlabel="diffusion step t", ylabel="error, prior / filter",
                  title="below 1 the prior wins")
        for axis in (left, right):
            _step_ticks(axis, table["step"])
        left.yaxis.set_major_formatter("{x:g}")

    return draw(path, plot, size=(9, 3.3), columns=2)


def curves(tables, path):
    """Losses against the training step. tables: dict method -> anl.tracking.read of a run."""
    def plot(figure, axes):
        for method, table in tables.items():
            colour = METHOD_COLOURS[method]
            for axis, key in zip(axes[0], ("classification_loss", "noise_loss", "val_AP")):
                line = table[["step", key]].dropna()
                if len(line):
                    axis.plot(line["step"], line[key], color=colour, marker="o" if key == "val_AP" else None)
        axes[0, 1].axhline(1, color=GREY, linewidth=0.8, linestyle=":")
        axes[0, 0].set(ylabel="classification loss (nats)")
        axes[0, 1].set(ylabel="noise loss (target variance 1)", ylim=(0, None))
        axes[0, 2].set(ylabel="validation AP, seen generator")
        labels_above(axes[0, 0], {method: METHOD_COLOURS[method] for method in tables})
        for axis in axes[0]:
            axis.set_xlabel("training step")

    return draw(path, plot, size=(10, 3), columns=3)


def by_generator(summary, path, metric="AP", differences=None):
    """A row a generator with a point a method, and beside it the paired difference.

    summary: analysis.summary; differences: analysis.paired_difference with one method besides the baseline.
    """
    def plot(figure, axes):
        table = summary[summary["metric"] == metric]
        names = list(dict.fromkeys(table["generator"]))
        names = [*sorted(names, key=lambda name: (not _seen(table, name), name == "unseen"))]
        place = dict(zip(names, np.arange(len(names))[::-1]))
        methods = list(dict.fromkeys(table["method"]))
        for index, method in enumerate(methods):
            rows = table[table["method"] == method]
            shift = 0.14 * (len(methods) - 1 - 2 * index)
            y = rows["generator"].map(place) + shift
            colour = METHOD_COLOURS.get(method, COLOURS[index])
            points(axes[0, 0], rows["mean"], y, rows["low"], rows["high"], colour)
        axes[0, 0].set(xlabel=f"{metric.replace('_', ' ')} (chance 0.5)\n{sample_of(table)}", yticks=list(place.values()),
                       yticklabels=["mean of unseen" if name == "unseen" else
                                    f"{name} (trained on)" if _seen(table, name) else name for name in names])
        axes[0, 0].axvline(0.5, color=GREY, linewidth=0.8, linestyle=":")
        labels_above(axes[0, 0], {name: METHOD_COLOURS.get(name, COLOURS[i]) for i, name in enumerate(methods)})
        if differences is not None:
            rows = differences[differences["metric"] == metric]
            y = rows["generator"].map(place)
            points(axes[0, 1], rows["difference"], y, rows["low"], rows["high"], COLOURS[0])
            axes[0, 1].axvline(0, color=GREY, linewidth=0.8, linestyle=":")
            axes[0, 1].set(xlabel=f"difference in {metric.replace('_', ' ')}",
                           title=f"{rows['method'].iloc[0]} minus {rows['baseline'].iloc[0]}, paired")
        for axis in axes[0]:
            axis.axhline(0.5, color="#d0d0d0", linewidth=0.8)
            axis.set_ylim(-0.6, len(names) - 0.4)
            axis.tick_params(axis="y", length=0)

    return draw(path, plot, size=(9, 3.9), columns=1 if differences is None else 2, sharey=True)


def controls(table, path, target):
    """False-positive rates on harmlessly processed reals. table: analysis.control_rates; target: the aimed-at rate."""
    def plot(figure, axes):
        axis = axes[0, 0]
        names, methods = (list(dict.fromkeys(table[key])) for key in ("control", "method"))
        place = dict(zip(names, np.arange(len(names))[::-1]))
        for index, method in enumerate(methods):
            rows = table[table["method"] == method]
            y = rows["control"].map(place) + 0.14 * (len(methods) - 1 - 2 * index)
            colour = METHOD_COLOURS.get(method, COLOURS[index])
            points(axis, 100 * rows["false_positive_rate"], y, 100 * rows["low"], 100 * rows["high"], colour)
        axis.axvline(100 * target, color=GREY, linewidth=0.8, linestyle=":")
        labels_above(axis, {name: METHOD_COLOURS.get(name, COLOURS[i]) for i, name in enumerate(methods)})
        labels = ["untouched" if name == "raw" else name for name in names]
        axis.set(xlabel=f"real test patches called generated (%); dotted: {100 * target:g} % aimed at\n"
                        f"{sample_of(table)}",
                 yticks=list(place.values()), yticklabels=labels, ylim=(-0.6, len(names) - 0.4))
        axis.set_xlim(left=min(-1, axis.get_xlim()[0]))

    return draw(path, plot, size=(6.5, 3))


def by_step(tables, path, reference=None, headline=None):
    """AP on unseen generators against the step, a line a view.

    tables: DataFrame with step, view, mean, low, high, seeds, n. reference: (mean, low, high) of the plain detector.
    """
    def plot(figure, axes):
        axis = axes[0, 0]
        views = list(dict.fromkeys(tables["view"]))
        steps, labels = sorted(set(tables["step"])), {}
        for index, view in enumerate(views):
            rows = tables[tables["view"] == view].sort_values("step")
            colour = COLOURS[0] if view == headline else COLOURS[index + 1]
            x = rows["step"] * 1.06 ** (index - (len(views) - 1) / 2)  # side by side, so that intervals do not hide
            axis.plot(x, rows["mean"], color=colour, marker="o", linewidth=1.5)
            axis.vlines(x, rows["low"], rows["high"], color=colour, linewidth=1.5)
            labels[f"view {view}"] = colour
        if reference is not None:
            mean, low, high = reference
            axis.axhspan(low, high, color=GREY, alpha=0.12, linewidth=0)
            axis.axhline(mean, color=GREY, linewidth=1, linestyle="--")
            labels[f"plain detector, view {headline}"] = GREY
        labels_above(axis, labels)
        axis.set(xscale="log", xlabel=f"diffusion step t of the noise target\n{sample_of(tables)}",
                 ylabel="AP, mean of unseen generators")
        axis.set_xlim(min(steps) * 0.7, max(steps) / 0.7)
        _step_ticks(axis, steps)

    return draw(path, plot, size=(7, 3.6))


def by_variant(summary, differences, path):
    """AP of each variant of a method (its attention, its target) on seen and unseen generators, and the gain over one.

    summary, differences: analysis.summary and analysis.paired_difference, their generators reduced to `seen` and
    `unseen`.
    """
    def plot(figure, axes):
        methods = list(dict.fromkeys(summary["method"]))
        place = dict(zip(methods, np.arange(len(methods))[::-1]))
        for axis, table, key in ((axes[0, 0], summary, "mean"), (axes[0, 1], differences, "difference")):
            for index, (where, colour) in enumerate((("seen", COLOURS[1]), ("unseen", COLOURS[0]))):
                rows = table[table["generator"] == where]
                points(axis, rows[key], rows["method"].map(place) + 0.12 - 0.24 * index, rows["low"], rows["high"],
                        colour)
        labels_above(axes[0, 0], {"seen": COLOURS[1], "unseen": COLOURS[0]})
        axes[0, 0].set(xlabel=f"AP (chance 0.5)\n{sample_of(summary)}", yticks=list(place.values()), yticklabels=methods,
                       ylim=(-0.6, len(methods) - 0.4))
        axes[0, 1].axvline(0, color=GREY, linewidth=0.8, linestyle=":")
        axes[0, 1].set(xlabel="difference in AP", title=f"minus {differences['baseline'].iloc[0]}, paired")

    return draw(path, plot, size=(9, max(2.9, 1.1 + 0.36 * summary["method"].nunique())), columns=2, sharey=True)


def verdicts(table, path):
    """The claims' deciding numbers with their interval and limit. table: claim, verdict, value, low, high, limit."""
    def plot(figure, axes):
        axis = axes[0, 0]
        place = np.arange(len(table))[::-1]
        for y, row in zip(place, table.to_dict("records")):
            colour = VERDICT_COLOURS[row["verdict"]]
            if row["value"] == row["value"]:
                low, high = (row[key] if row[key] == row[key] else row["value"] for key in ("low", "high"))
                points(axis, [row["value"]], [y], [low], [high], colour)
            axis.plot([row["limit"]] * 2, [y - 0.3, y + 0.3], color="black", linewidth=1)
            axis.annotate(row["verdict"], (1.02, y), xycoords=("axes fraction", "data"), color=colour, va="center",
                          fontweight="bold", annotation_clip=False)
        axis.set(yticks=place, yticklabels=table["claim"], ylim=(-0.6, len(table) - 0.4),
                 xlabel="value with 95 % interval; the black stroke is the rule's limit")

    return draw(path, plot, size=(9.5, 1 + 0.42 * len(table)))


def sample_of(table):
    """How much a table's intervals stand on: seeds and images."""
    least, most, seeds = table["n"].min(), table["n"].max(), table["seeds"].max()
    images = f"{least:,}" if least == most else f"{least:,} to {most:,}"
    return f"{seeds} {'seed' if seeds == 1 else 'seeds'}, n = {images} images"


def points(axis, x, y, low, high, colour):
    # not as an error bar, whose arms start at the point: a percentile interval may leave its point out
    axis.hlines(np.asarray(y, float), low, high, color=colour, linewidth=1.5)
    axis.plot(np.asarray(x, float), np.asarray(y, float), "o", color=colour)


def _band(axis, x, y, low, high, colour):
    axis.plot(x, y, color=colour, marker="o")
    axis.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)


def labels_above(axis, colours):
    """Name the series above the axes, each in its colour: {text: colour}."""
    place = 0
    for text, colour in colours.items():
        axis.annotate(text, (0, 1), (place, 5), xycoords="axes fraction", textcoords="offset points", color=colour,
                      fontweight="bold")
        place += 7 * len(text) + 12


def _step_ticks(axis, steps):
    axis.set_xticks(list(steps), [str(step) for step in steps])
    axis.minorticks_off()


def _seen(table, name):
    return bool(table.loc[table["generator"] == name, "seen"].iloc[0])


def _family_labels(names, seen):
    return [f"{name} (trained on)" if known else name for name, known in zip(names, seen)]
