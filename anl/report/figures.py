"""Figures of result tables: one theme, one function per figure, a DataFrame in, a matplotlib figure out.

Most figures draw intervals, label their series directly, and take an optional reference table, whose results are drawn in
light grey behind. The functions raise `UserError` if a table lacks the selected rows.
"""

import io
import re

import matplotlib
import numpy as np
import seaborn
from matplotlib.figure import Figure

from anl.data.processing import parse
from anl.io import UserError
from anl.report import DPI

CELL = 1.1  # inches, side of an image of a grid
COLOURS = seaborn.color_palette("colorblind", 10).as_hex()
GREY, LIGHT = "#6b6b6b", "#b5b5b5"
THEME = {**seaborn.axes_style("ticks"), **seaborn.plotting_context("notebook", 0.85), "font.family": "DejaVu Sans",
         "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": GREY, "axes.titlelocation": "left",
         "axes.titlesize": 10, "figure.facecolor": "white", "axes.facecolor": "white", "savefig.facecolor": "white",
         "lines.markersize": 5}
METRIC_NAMES = {"auroc": "AUROC", "average_precision": "average precision", "pairwise_accuracy": "pairwise accuracy",
                "balanced_accuracy": "balanced accuracy", "ece": "expected calibration error", "fpr": "false-positive rate",
                "effective_support": "effective support"}
STRENGTHS = {"jpeg": "JPEG quality", "webp": "WebP quality", "blur": "radius in pixels", "resize": "factor",
             "crop": "share of each side", "noise": "grey levels"}


def to_png(figure):
    """A figure as the bytes of a PNG, the same for the same data."""
    stream = io.BytesIO()
    with matplotlib.rc_context(THEME):
        figure.savefig(stream, format="png", dpi=DPI, metadata={"Software": None})
    return stream.getvalue()


def colours(variants, baseline=None):
    """dict variant -> colour: grey for the baseline, the colour-blind palette for the others, in their order."""
    others = [name for name in dict.fromkeys(variants) if name != baseline]
    chosen = {name: COLOURS[index % len(COLOURS)] for index, name in enumerate(others)}
    return chosen if baseline is None else {baseline: GREY, **chosen}


@matplotlib.rc_context(THEME)
def forest(table, *, metric="auroc", generators=None, view=None, baseline=None, value="mean", sort=False, log=False,
           reference=None):
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
        The view that is drawn; may be left out if the table holds only one.
    baseline : str, optional
        Drawn in grey, with a vertical line at its mean.
    value : {"mean", "difference"}
        `difference` draws the paired differences from the baseline of the table, with a line at zero.
    sort : bool
        Whether to sort the variants by their values in the first panel, the highest at the top.
    log : bool
        Whether the horizontal axis is logarithmic, for ratios that span powers of ten.
    reference : pandas.DataFrame, optional
        Committed results in the same columns, drawn in light grey behind.
    """
    rows = _value(_rows(table, metric, view), value)
    panels = list(dict.fromkeys(rows["generator"])) if generators is None else list(generators)
    variants = list(dict.fromkeys(rows["variant"]))
    if sort:
        first = rows[rows["generator"] == panels[0]].set_index("variant")["mean"]
        variants.sort(key=lambda name: -first.get(name, -np.inf))
    behind = _behind(reference, metric, view)
    behind = None if behind is None else _value(behind, value)
    colour = colours(variants, baseline)
    lines = [name.split("\n") for name in variants]  # of the labels
    beside, row = max(1.6, 0.4 + 0.075 * max(len(line) for label in lines for line in label)), max(0.32, 0.18 * max(map(len, lines)))
    figure = Figure(figsize=(beside + 2.1 * len(panels), 0.9 + row * len(variants)), layout="constrained")
    axes = figure.subplots(1, len(panels), sharex=True, sharey=True, squeeze=False)[0]
    for axis, generator in zip(axes, panels):
        mine = rows[rows["generator"] == generator].set_index("variant")
        if mine.empty:
            raise UserError(f"the table has no generator '{generator}'; it has {', '.join(rows['generator'].unique())}")
        if value == "difference":
            axis.axvline(0, color=LIGHT, linewidth=0.8, zorder=0)
        elif baseline in mine.index:
            axis.axvline(mine.loc[baseline, "mean"], color=LIGHT, linewidth=0.8, zorder=0)
        if behind is not None:
            theirs = behind[behind["generator"] == generator].set_index("variant")
            for place, name in enumerate(variants):
                if name in theirs.index:
                    _interval(axis, theirs.loc[name], place + 0.22, LIGHT, marker="D", size=3.5)
        for place, name in enumerate(variants):
            if name in mine.index:
                _interval(axis, mine.loc[name], place, colour[name])
        name = METRIC_NAMES.get(metric, metric)
        axis.set(title=generator, xlabel=f"difference in {name}" if value == "difference" else name,
                 ylim=(len(variants) - 0.4, -0.6), xscale="log" if log else "linear")
    axes[0].set_yticks(range(len(variants)), variants)
    for axis in axes[1:]:
        axis.tick_params(left=False)
    _name_reference(figure, behind)
    return figure


@matplotlib.rc_context(THEME)
def curve(table, groups=None, *, metric="auroc", generator="unseen", view=None, log=True, xlabel=None, baseline=None, reference=None):
    """A metric against a number in which the variants differ, for example the diffusion step.

    The number is read from the end of a variant's name, as in `t=10`; variants without one are left out. `groups` has one line
    per method instead, method -> {variant: number}. `baseline` names a variant that is drawn as a horizontal line, with its
    interval as a band. See `forest` for the other parameters. A logarithmic axis is linear between 0, if that is drawn, and the
    smallest other number.
    """
    rows = _rows(table, metric, view, generator)
    lines = groups or {"": _numbers(rows["variant"])}
    colour = colours(lines)
    figure = Figure(figsize=(5.6, 3.4), layout="constrained")
    axis = figure.subplots()
    if baseline in set(rows["variant"]):
        line = rows[rows["variant"] == baseline].iloc[0]
        axis.axhspan(line["low"], line["high"], color=LIGHT, alpha=0.35, linewidth=0)
        axis.axhline(line["mean"], color=GREY, linewidth=1)
        axis.annotate(f" {baseline}", (1, line["mean"]), xycoords=("axes fraction", "data"), color=GREY, va="center")
    behind = _behind(reference, metric, view, generator)
    theirs = {} if behind is None else groups or {"": _numbers(behind["variant"])}
    theirs = {method: variants for method, variants in theirs.items() if behind["variant"].isin(variants).any()}
    behind = behind if theirs else None
    drawn = {place for variants in theirs.values() for place in _line(axis, behind, variants, LIGHT)}
    drawn |= {place for method, variants in lines.items() for place in _line(axis, rows, variants, colour[method], method)}
    drawn = sorted(drawn)
    if groups:
        axis.legend(frameon=False)
    _name_reference(figure, behind)
    axis.set(ylabel=f"{METRIC_NAMES.get(metric, metric)}, {generator}", xlabel=xlabel or "")
    if log and drawn[0] == 0:
        axis.set_xscale("symlog", linthresh=next(value for value in drawn if value > 0))
    elif log:
        axis.set_xscale("log")
    axis.set_xticks(drawn, [f"{value:g}" for value in drawn])
    axis.minorticks_off()
    return figure


@matplotlib.rc_context(THEME)
def seen_against_unseen(table, groups, *, seen, metric="auroc", view=None, reference=None):
    """A metric on unseen generators against the same metric on the seen one: one line per method over training budgets.

    At the same value on the seen generator, a regulariser's line lies above the other one. A method that only learns faster
    moves along the same line.

    groups: method -> {variant: training steps}, one line each.
    """
    across = _rows(table, metric, view, seen).set_index("variant")
    up = _rows(table, metric, view, "unseen").set_index("variant")
    colour = colours(groups)
    figure = Figure(figsize=(5.6, 4.4), layout="constrained")
    axis = figure.subplots()
    behind = {generator: _behind(reference, metric, view, generator) for generator in (seen, "unseen")}
    if all(part is not None for part in behind.values()):
        x, y = (part.drop_duplicates("variant").set_index("variant") for part in behind.values())
        x, y = x[x.index.isin(y.index)], y[y.index.isin(x.index)]
        axis.errorbar(x["mean"], y.loc[x.index, "mean"], xerr=_errors(x), yerr=_errors(y.loc[x.index]), color=LIGHT, marker="o",
                      linewidth=0, elinewidth=0.6, zorder=0)
        _name_reference(figure, behind[seen])
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


@matplotlib.rc_context(THEME)
def against_cost(table, costs, *, metric="auroc", view=None, generator="unseen", xlabel="", reference=None):
    """A metric against the cost of a variant, on a logarithmic axis: a named point per variant.

    costs: dict variant -> cost; variants without one are left out.
    """
    rows, behind = _rows(table, metric, view, generator), _behind(reference, metric, view, generator)
    rows = rows[rows["variant"].isin(costs)].sort_values("mean")
    if rows.empty:
        raise UserError(f"the table holds none of the variants {', '.join(costs)}")
    figure = Figure(figsize=(5.6, 4.8), layout="constrained")
    axis = figure.subplots()
    axis.set(xscale="log", xlabel=xlabel, ylabel=f"{METRIC_NAMES.get(metric, metric)}, {generator}")
    axis.margins(x=0.25)
    behind = behind if behind is None else behind[behind["variant"].isin(costs)]
    for part, colour in ((behind, LIGHT), (rows, COLOURS[0])):
        if part is not None:
            axis.errorbar(part["variant"].map(costs), part["mean"], yerr=_errors(part), color=colour, marker="o", linestyle="", elinewidth=0.6)
    apart = np.ptp(axis.get_ylim()) / 32  # the height of a name: names at similar costs must not overlap
    cost = rows["variant"].map(costs)
    for _, points in rows.groupby((4 * np.log10(cost)).round()):
        height, right = -np.inf, 1.12 * cost[points.index].max()
        for name, mean in zip(points["variant"], points["mean"]):
            height = max(mean, height + apart)
            axis.annotate(name, (right, height), va="center", fontsize=7, color=GREY)
    _name_reference(figure, behind)
    return figure


@matplotlib.rc_context(THEME)
def by_strength(table, *, metric="auroc", generator="unseen", baseline=None, reference=None):
    """A metric against the strength of each kind of perturbation: a panel per kind, a line per variant.

    The views of the table are `raw`, drawn as a dotted line, and perturbations such as `jpeg_90`. Kinds that only the
    reference has get a panel, too.
    """
    rows, behind = (None if part is None else _strengths(part[(part["metric"] == metric) & (part["generator"] == generator)])
                    for part in (table, reference))
    if behind is not None and behind.empty:
        behind = None
    kinds = [kind for kind in dict.fromkeys([*rows["kind"], *([] if behind is None else behind["kind"])]) if kind != "raw"]
    if not set(rows["kind"]) - {"raw"}:
        raise UserError(f"the table has no perturbed images with {metric} of generator '{generator}'; score them first")
    colour = colours(rows["variant"], baseline)
    columns = min(3, len(kinds))
    figure = Figure(figsize=(2.9 * columns, 2.5 * -(-len(kinds) // columns)), layout="constrained")
    axes = figure.subplots(-(-len(kinds) // columns), columns, sharey=True, squeeze=False).ravel()
    for axis, kind in zip(axes, kinds):
        for part, paint in ((behind, dict.fromkeys(colour, LIGHT)), (rows, colour)):
            for name in paint if part is not None else ():
                mine = part[part["variant"] == name]
                line = mine[mine["kind"] == kind].sort_values("strength")
                axis.errorbar(line["strength"], line["mean"], yerr=_errors(line), color=paint[name], marker="o",
                              linewidth=1.2, elinewidth=0.6)
                for untouched in mine.loc[mine["kind"] == "raw", "mean"]:
                    axis.axhline(untouched, color=paint[name], linewidth=0.8, linestyle=":")
        if kind in ("jpeg", "webp", "crop"):  # lower is stronger
            axis.invert_xaxis()
        axis.set(title=kind, xlabel=STRENGTHS[kind])
    for axis in axes[len(kinds):]:
        axis.remove()
    for number, name in enumerate(colour):
        axes[0].annotate(name, (0.03, 0.02 + 0.1 * number), xycoords="axes fraction", color=colour[name])
    figure.supylabel(f"{METRIC_NAMES.get(metric, metric)}, {generator}", fontsize=9)
    _name_reference(figure, behind)
    return figure


@matplotlib.rc_context(THEME)
def heatmap(table, *, metric="auroc", view=None):
    """Heat map of variants and generators, with colours centred on 0.5 and the numbers written into the cells."""
    rows = _rows(table, metric, view)
    grid = rows.pivot_table(index="variant", columns="generator", values="mean", sort=False)
    figure = Figure(figsize=(1.8 + 0.75 * grid.shape[1], 1.0 + 0.34 * grid.shape[0]), layout="constrained")
    axis = figure.subplots()
    spread = max(float(np.nanmax(np.abs(grid.to_numpy() - 0.5))), 1e-6)
    seaborn.heatmap(grid, ax=axis, annot=True, fmt=".2f", cmap="RdBu", vmin=0.5 - spread, vmax=0.5 + spread,
                    linewidths=0.5, cbar_kws={"label": METRIC_NAMES.get(metric, metric)}, annot_kws={"size": 8})
    axis.set(xlabel="", ylabel="")
    axis.tick_params(length=0)
    return figure


@matplotlib.rc_context(THEME)
def reliability(tables):
    """Reliability diagram: share of generated images against mean probability, one line per variant.

    tables: variant -> bins with the columns probability, share, low and high.
    """
    colour = colours(tables)
    figure = Figure(figsize=(4.2, 4.0), layout="constrained")
    axis = figure.subplots()
    axis.plot([0, 1], [0, 1], color=LIGHT, linewidth=1)
    for name, bins in tables.items():
        lengths = np.clip([bins["share"] - bins["low"], bins["high"] - bins["share"]], 0, None)
        axis.errorbar(bins["probability"], bins["share"], yerr=lengths, color=colour[name], marker="o", capsize=2)
        last = bins.iloc[-1]
        axis.annotate(name, (last["probability"], last["share"]), xytext=(5, 0), textcoords="offset points",
                      color=colour[name])
    axis.set(xlim=(0, 1), ylim=(0, 1), xlabel="mean predicted probability", ylabel="share of generated images", aspect="equal")
    return figure


@matplotlib.rc_context(THEME)
def image_grid(rows, row_labels, column_labels, *, limits=None):
    """Rows of small images.

    Parameters
    ----------
    rows : list of list of (numpy.ndarray or None)
        uint8 or float [0, 1] images (H, W, 3), or maps (H, W) drawn from 0 to `limits` (default: each map's largest value).
        None leaves a place empty.
    """
    widest = max(map(len, rows))
    label_width = 0.085 * max(map(len, row_labels)) + 0.2
    figure = Figure(figsize=(widest * CELL + label_width, len(rows) * CELL * 1.04 + 0.35), layout="constrained")
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
    """The rows of one metric and view (and generator). Raises UserError if there is none, or several views and no choice."""
    rows = table
    for column, value in (("metric", metric), ("view", view), ("generator", generator)):
        known = rows[column].unique()
        if column == "view" and value is None and len(known) > 1:
            raise UserError(f"the table has several views ({', '.join(known)}); choose one with view=")
        rows = rows if value is None else rows[rows[column] == value]
        if rows.empty:
            raise UserError(f"the table has no {column} '{value}'; it has {', '.join(known)}")
    return rows


def _numbers(variants):
    """Variant -> the number that ends its name; variants without one are left out."""
    found = {name: re.search(r"=([\d.]+)$", name) for name in variants}
    return {name: float(match[1]) for name, match in found.items() if match}


def _value(rows, value):
    """Rows whose mean and interval are the ones to draw: those of the metric, or of its difference from the baseline."""
    if value == "mean":
        return rows
    chosen = rows[rows["difference"].notna()]
    if chosen.empty:
        raise UserError("the table has no differences; compare the variants with a baseline")
    return chosen.assign(mean=chosen["difference"], low=chosen["difference_low"], high=chosen["difference_high"])


def _behind(reference, metric, view, generator=None):
    """The rows of a reference table to draw behind a figure; None if it, being older or smaller, has none."""
    if reference is None:
        return None
    try:
        return _rows(reference, metric, view, generator)
    except UserError:
        return None


def _name_reference(figure, behind):
    if behind is not None:
        figure.supxlabel(f"colour: this run; light grey: {behind.attrs.get('profile', 'reference results')}", fontsize=8, color=GREY)


def _strengths(rows):
    """Rows with the columns kind and strength of their view; other views are left out."""
    known = rows[rows["view"].map(lambda view: view == "raw" or view.partition("_")[0] in STRENGTHS)]
    parsed = [parse(view) for view in known["view"]]
    return known.assign(kind=[kind for kind, _ in parsed], strength=[strength for _, strength in parsed])


def _interval(axis, row, place, colour, marker="o", size=5):
    axis.plot([row["low"], row["high"]], [place, place], color=colour, linewidth=1.4, solid_capstyle="butt")
    axis.plot([row["mean"]], [place], color=colour, marker=marker, markersize=size)


def _line(axis, rows, x, colour, label=None):
    """One line with error bars over the variants in `x`, a dict variant -> place on the axis; returns the places."""
    rows = rows[rows["variant"].isin(x)].assign(place=lambda frame: frame["variant"].map(x)).sort_values("place")
    if rows.empty:
        raise UserError(f"the table holds none of the variants {', '.join(x)}")
    axis.errorbar(rows["place"], rows["mean"], yerr=_errors(rows), color=colour, marker="o", linewidth=1.2, capsize=2, label=label)
    return rows["place"].tolist()


def _errors(rows):
    """Lengths of the intervals below and above the means, (2, N), for matplotlib."""
    return np.clip(np.stack([rows["mean"] - rows["low"], rows["high"] - rows["mean"]]), 0, None)
