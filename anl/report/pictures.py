"""Images, noise and curves for the notebooks about data, prior and detector."""

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from anl.data import REAL
from anl.report.figures import GREY, THEME, colours

GAIN = 8  # amplification of a difference between two images
DEVIATIONS = 3  # standard deviations of the noise at either end of the grey scale


def evenly(rows, count):
    """At most `count` rows of a table, evenly spaced, so that none is picked by eye."""
    return rows.iloc[np.unique(np.linspace(0, len(rows) - 1, count).round().astype(int))] if len(rows) else rows


def partners(rows, generator, count):
    """Pairs of rows (real or None, generated) of a generator: at most `count`, evenly spaced.

    rows: manifest rows; `pair` joins a real image and its regenerations, "" where there is none.
    """
    real = rows[(rows["generator"] == REAL) & (rows["pair"] != "")].drop_duplicates("pair").set_index("pair", drop=False)
    chosen = evenly(rows[rows["generator"] == generator], count)
    return [(real.loc[row["pair"]] if row["pair"] in real.index else None, row) for _, row in chosen.iterrows()]


def difference_image(image, other):
    """`image` minus `other`, times 8 around mid-grey: uint8 (H, W, 3) of uint8 (H, W, 3)."""
    return np.clip(128 + GAIN * (image.astype(int) - other), 0, 255).astype(np.uint8)


def noise_image(noise, deviation=None):
    """Noise (C, h, w) as uint8 (h, w, 3): mid-grey is zero, the ends are three standard deviations (default: its own).

    The first three channels of a latent prior's noise are shown.
    """
    values = np.asarray(noise, np.float64)[:3].transpose(1, 2, 0)
    deviation = values.std() if deviation is None else float(deviation)
    return np.clip(128 + 127 * values / (DEVIATIONS * max(deviation, 1e-12)), 0, 255).astype(np.uint8)


@matplotlib.rc_context(THEME)
def lines(table, x, y, by=None, *, low="low", high="high", xlabel="", ylabel="", log=False, level=None):
    """Lines with bands between the columns `low` and `high`, where the table has them.

    `x`, `y` and `by` are columns; each value of `by` has a line, named at its end. `level`: height of a horizontal
    line, such as chance.
    """
    groups = {"": table} if by is None else dict(iter(table.groupby(by, sort=False)))
    colour = colours(groups)
    figure = Figure(figsize=(6.0, 3.4), layout="constrained")
    axis = figure.subplots()
    if level is not None:
        axis.axhline(level, color=GREY, linewidth=0.8, linestyle=":")
    ends = []
    for name, rows in groups.items():
        rows = rows.dropna(subset=[x, y]).sort_values(x)
        if rows.empty:
            continue
        axis.plot(rows[x], rows[y], color=colour[name], linewidth=1.4, marker="o" if len(rows) < 20 else None, markersize=3)
        if {low, high} <= set(rows):
            axis.fill_between(rows[x], rows[low], rows[high], color=colour[name], alpha=0.15, linewidth=0)
        ends.append((float(rows[y].iloc[-1]), name, float(rows[x].iloc[-1])))
    axis.set(xlabel=xlabel, ylabel=ylabel, xscale="log" if log else "linear")
    bottom, top = axis.get_ylim()
    places = apart([value for value, _, _ in sorted(ends)], 0.055 * (top - bottom), top)
    for place, (value, name, last) in zip(places, sorted(ends)):
        axis.annotate(name, (last, value), xytext=(axis.get_xlim()[1], place), textcoords="data", color=colour[name],
                      va="center", fontsize=8, annotation_clip=False)
    return figure


def apart(values, least, top):
    """Rising values moved so that neighbours are at least `least` apart and the last is at most `top`, if they fit."""
    places = []
    for value in values:
        places.append(max(value, places[-1] + least) if places else value)
    limit = top
    for index in range(len(places) - 1, -1, -1):
        places[index] = min(places[index], limit)
        limit = places[index] - least
    return places
