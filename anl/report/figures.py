"""Figures of result tables: one theme, one function per figure, a DataFrame in, a matplotlib figure out.

Every figure draws its intervals, labels its series directly, and takes an optional reference table, whose results are
drawn in grey behind the reader's own. `save` writes a PNG whose bytes depend on the data alone.
"""

from pathlib import Path

import matplotlib
import numpy as np
import seaborn
from matplotlib.figure import Figure

from anl.io import UserError, atomic_file

DPI = 144
COLOURS = seaborn.color_palette("colorblind", 10).as_hex()
GREY, LIGHT = "#6b6b6b", "#b5b5b5"
THEME = {**seaborn.axes_style("ticks"), **seaborn.plotting_context("notebook", 0.85), "font.family": "DejaVu Sans",
         "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": GREY, "axes.titlelocation": "left",
         "axes.titlesize": 10, "figure.facecolor": "white", "axes.facecolor": "white", "savefig.facecolor": "white",
         "lines.markersize": 5}
METRIC_NAMES = {"auroc": "AUROC", "average_precision": "average precision", "pairwise_accuracy": "pairwise accuracy",
                "balanced_accuracy": "balanced accuracy", "ece": "expected calibration error"}


def save(figure, path):
    """Write a figure as PNG, whole or not at all; returns the path."""
    with matplotlib.rc_context(THEME), atomic_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=DPI, metadata={"Software": None})
    return Path(path)


def colours(variants, baseline=None):
    """dict variant -> colour: grey for the baseline, the colour-blind palette for the others, in their order."""
    others = [name for name in dict.fromkeys(variants) if name != baseline]
    chosen = {name: COLOURS[index % len(COLOURS)] for index, name in enumerate(others)}
    return chosen if baseline is None else {baseline: GREY, **chosen}


def forest(table, *, metric="auroc", generators=None, view=None, baseline=None, reference=None):
    """Forest plot: a row per variant, a panel per generator, means with 95 % intervals.

    Parameters
    ----------
    table : pandas.DataFrame
        Rows of `anl.evaluation.compare` (variant, generator, view, metric, mean, low, high, seeds, n).
    metric : str
        The metric that is drawn.
    generators : list of str, optional
        The panels, from left to right; default: all, in the order of the table.
    view : str, optional
        Which view; may be left out where the table holds only one.
    baseline : str, optional
        Drawn in grey, with a vertical line at its mean.
    reference : pandas.DataFrame, optional
        Committed results in the same columns, drawn in light grey behind.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    UserError
        If the table holds no such rows, or several views and none is chosen.
    """
    rows = _rows(table, metric, view)
    panels = list(dict.fromkeys(rows["generator"])) if generators is None else list(generators)
    variants = list(dict.fromkeys(rows["variant"]))
    behind = None if reference is None else _rows(reference, metric, view)
    colour = colours(variants, baseline)
    with matplotlib.rc_context(THEME):
        figure = Figure(figsize=(1.6 + 2.1 * len(panels), 0.9 + 0.32 * len(variants)), layout="constrained")
        axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axis, generator in zip(axes, panels):
            mine = rows[rows["generator"] == generator].set_index("variant")
            if mine.empty:
                raise UserError(f"the table has no generator '{generator}'; it has {', '.join(rows['generator'].unique())}")
            if baseline in mine.index:
                axis.axvline(mine.loc[baseline, "mean"], color=LIGHT, linewidth=0.8, zorder=0)
            if behind is not None:
                theirs = behind[behind["generator"] == generator].set_index("variant")
                for place, name in enumerate(variants):
                    if name in theirs.index:
                        _interval(axis, theirs.loc[name], place + 0.22, LIGHT, marker="D", size=3.5)
            for place, name in enumerate(variants):
                if name in mine.index:
                    _interval(axis, mine.loc[name], place, colour[name])
            axis.set(title=generator, xlabel=METRIC_NAMES.get(metric, metric), ylim=(len(variants) - 0.4, -0.6))
        axes[0].set_yticks(range(len(variants)), variants)
        for axis in axes[1:]:
            axis.tick_params(left=False)
        if behind is not None:
            figure.supxlabel("colour: this run; grey: reference results", fontsize=8, color=GREY)
    return figure


def curve(table, x, *, metric="auroc", generator="unseen", view=None, log=True, xlabel=None, baseline=None, reference=None):
    """A metric against a number that the variants differ in, for example the diffusion step.

    Parameters
    ----------
    table : pandas.DataFrame
        Rows of `anl.evaluation.compare`.
    x : dict of str to float
        Variant -> its place on the horizontal axis; variants that are missing here are left out.
    log : bool
        Whether the horizontal axis is logarithmic.
    baseline : str, optional
        A variant drawn as a horizontal line with its interval as a band.
    reference : pandas.DataFrame, optional
        Committed results, drawn in grey behind.

    Returns
    -------
    matplotlib.figure.Figure
    """
    rows = _rows(table, metric, view, generator)
    with matplotlib.rc_context(THEME):
        figure = Figure(figsize=(5.6, 3.4), layout="constrained")
        axis = figure.subplots()
        if baseline is not None:
            line = rows[rows["variant"] == baseline].iloc[0]
            axis.axhspan(line["low"], line["high"], color=LIGHT, alpha=0.35, linewidth=0)
            axis.axhline(line["mean"], color=GREY, linewidth=1)
            axis.annotate(f" {baseline}", (1, line["mean"]), xycoords=("axes fraction", "data"), color=GREY, va="center")
        if reference is not None:
            _line(axis, _rows(reference, metric, view, generator), x, LIGHT)
        drawn = _line(axis, rows, x, COLOURS[0])
        axis.set(ylabel=f"{METRIC_NAMES.get(metric, metric)}, {generator}", xlabel=xlabel or "", xscale="log" if log else "linear")
        axis.set_xticks(drawn, [f"{value:g}" for value in drawn])
        axis.minorticks_off()
    return figure


def seen_against_unseen(table, groups, *, seen, metric="auroc", view=None):
    """A metric on unseen generators against the same metric on the seen one: one line per method over training budgets.

    A regulariser helps at equal seen performance: its line lies above the other's at the same horizontal place. A faster
    learner only moves further along one and the same line (design, "Matched performance").

    Parameters
    ----------
    table : pandas.DataFrame
        Rows of `anl.evaluation.compare` with the generators ``unseen`` and `seen`.
    groups : dict of str to dict of str to int
        Method -> {variant: training steps}, one line each.

    Returns
    -------
    matplotlib.figure.Figure
    """
    across = _rows(table, metric, view, seen).set_index("variant")
    up = _rows(table, metric, view, "unseen").set_index("variant")
    colour = colours(groups)
    with matplotlib.rc_context(THEME):
        figure = Figure(figsize=(5.6, 4.4), layout="constrained")
        axis = figure.subplots()
        for method, variants in groups.items():
            names = sorted((name for name in variants if name in across.index and name in up.index), key=variants.get)
            if not names:
                raise UserError(f"the table holds none of the variants of '{method}': {', '.join(variants)}")
            x, y = across.loc[names], up.loc[names]
            axis.errorbar(x["mean"], y["mean"], xerr=_errors(x), yerr=_errors(y), color=colour[method], marker="o",
                          linewidth=1.2, elinewidth=0.6)
            for name in names:
                axis.annotate(f"{variants[name]:,}", (x.loc[name, "mean"], y.loc[name, "mean"]), xytext=(4, -9),
                              textcoords="offset points", fontsize=7, color=colour[method])
            axis.annotate(method, (x.loc[names[-1], "mean"], y.loc[names[-1], "mean"]), xytext=(5, 5),
                          textcoords="offset points", color=colour[method])
        name = METRIC_NAMES.get(metric, metric)
        axis.set(xlabel=f"{name}, seen generator ({seen})", ylabel=f"{name}, unseen generators")
    return figure


def heatmap(table, *, metric="auroc", view=None, centre=0.5):
    """Variants against generators as a heat map with the numbers written in; returns a matplotlib figure."""
    rows = _rows(table, metric, view)
    grid = rows.pivot_table(index="variant", columns="generator", values="mean", sort=False)
    with matplotlib.rc_context(THEME):
        figure = Figure(figsize=(1.8 + 0.75 * grid.shape[1], 1.0 + 0.34 * grid.shape[0]), layout="constrained")
        axis = figure.subplots()
        spread = max(float(np.nanmax(np.abs(grid.to_numpy() - centre))), 1e-6)
        seaborn.heatmap(grid, ax=axis, annot=True, fmt=".2f", cmap="RdBu", vmin=centre - spread, vmax=centre + spread,
                        linewidths=0.5, cbar_kws={"label": METRIC_NAMES.get(metric, metric)}, annot_kws={"size": 8})
        axis.set(xlabel="", ylabel="")
        axis.tick_params(length=0)
    return figure


def reliability(tables):
    """Reliability diagram: share of generated images against mean probability, one line per variant.

    Parameters
    ----------
    tables : dict of str to pandas.DataFrame
        Variant -> bins with the columns probability, share and n.

    Returns
    -------
    matplotlib.figure.Figure
    """
    colour = colours(tables)
    with matplotlib.rc_context(THEME):
        figure = Figure(figsize=(4.2, 4.0), layout="constrained")
        axis = figure.subplots()
        axis.plot([0, 1], [0, 1], color=LIGHT, linewidth=1)
        for name, bins in tables.items():
            axis.plot(bins["probability"], bins["share"], color=colour[name], marker="o")
            last = bins.iloc[-1]
            axis.annotate(name, (last["probability"], last["share"]), xytext=(5, 0), textcoords="offset points",
                          color=colour[name])
        axis.set(xlim=(0, 1), ylim=(0, 1), xlabel="mean predicted probability", ylabel="share of generated images", aspect="equal")
    return figure


def image_grid(rows, row_labels, column_labels, *, cell=1.1, limits=None):
    """Rows of small images.

    Parameters
    ----------
    rows : list of list of (numpy.ndarray or None)
        uint8 or float [0, 1] images (H, W, 3), or maps (H, W) drawn from 0 to `limits` (default: each map's largest value).
        None leaves a place empty.
    cell : float
        Side of one image in inches.

    Returns
    -------
    matplotlib.figure.Figure
    """
    widest = max(map(len, rows))
    label_width = 0.085 * max(map(len, row_labels)) + 0.2
    with matplotlib.rc_context(THEME):
        figure = Figure(figsize=(widest * cell + label_width, len(rows) * cell * 1.04 + 0.35), layout="constrained")
        axes = figure.subplots(len(rows), widest, squeeze=False)
        for line, images, label in zip(axes, rows, row_labels, strict=True):
            line[0].set_ylabel(label, rotation=0, ha="right", va="center")
            for axis, image in zip(line, [*images, *[None] * (widest - len(images))]):
                axis.set(xticks=[], yticks=[])
                seaborn.despine(ax=axis, left=True, bottom=True)
                if image is not None:
                    axis.imshow(image, cmap="viridis", vmin=0, vmax=limits, interpolation="nearest", aspect="equal")
        for axis, label in zip(axes[0], column_labels):
            axis.set_title(label, loc="center", fontsize=8.5)
    return figure


def _rows(table, metric, view, generator=None):
    """The rows of one metric and view (and generator). Raises UserError where there is none or the view is open."""
    rows = table[table["metric"] == metric]
    if rows.empty:
        raise UserError(f"the table has no metric '{metric}'; it has {', '.join(table['metric'].unique())}")
    views = list(rows["view"].unique())
    if view is None and len(views) > 1:
        raise UserError(f"the table has several views ({', '.join(views)}); choose one with view=")
    rows = rows if view is None else rows[rows["view"] == view]
    if rows.empty:
        raise UserError(f"the table has no view '{view}'; it has {', '.join(views)}")
    if generator is None:
        return rows
    known, rows = rows["generator"].unique(), rows[rows["generator"] == generator]
    if rows.empty:
        raise UserError(f"the table has no generator '{generator}'; it has {', '.join(known)}")
    return rows


def _interval(axis, row, place, colour, marker="o", size=5):
    axis.plot([row["low"], row["high"]], [place, place], color=colour, linewidth=1.4, solid_capstyle="butt")
    axis.plot([row["mean"]], [place], color=colour, marker=marker, markersize=size)


def _line(axis, rows, x, colour):
    """One line with error bars over the variants that have a place; returns their places."""
    rows = rows[rows["variant"].isin(x)].assign(place=lambda frame: frame["variant"].map(x)).sort_values("place")
    if rows.empty:
        raise UserError(f"the table holds none of the variants {', '.join(x)}")
    axis.errorbar(rows["place"], rows["mean"], yerr=_errors(rows), color=colour, marker="o", linewidth=1.2, capsize=2)
    return rows["place"].tolist()


def _errors(rows):
    """Lengths of the intervals below and above the means, (2, N), for matplotlib."""
    return np.clip(np.stack([rows["mean"] - rows["low"], rows["high"] - rows["mean"]]), 0, None)
