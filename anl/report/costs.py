"""Measured and counted costs as rows that `anl.report.figures.forest` draws, and as texts for a page."""

import pandas as pd

from anl.report.experiments import glue, rows

NOT_MEASURED = "(not measured)"


def ratio_rows(table, column, panel, metric, **where):
    """A column of a table, with its quartiles where it has them, as rows for `forest`; None where nothing was measured."""
    found = rows(table, **where)
    if found is None:
        return None
    low, high = (found.get(f"{column}_{end}", found[column]) for end in ("low", "high"))
    return pd.DataFrame({"variant": found["variant"], "generator": panel, "view": "", "metric": metric, "mean": found[column],
                         "low": low, "high": high})


def together(*parts):
    """Concatenate the tables that are not None; None if all are."""
    parts = [part for part in parts if part is not None]
    return pd.concat(parts, ignore_index=True) if parts else None


def inference_costs(table, variants):
    """Multiply-adds of methods at inference relative to ANL, dict variant -> ratio; {} if `table` is None.

    table: section `peers` of `anl bench`. Methods that are not in it run the plain detector at inference, as ANL does.
    """
    if table is None:
        return {}
    counted = table.drop_duplicates("variant").set_index("variant")["multiply_adds_over_anl"]
    return {name: float(counted.get(name, 1.0)) for name in variants}


def glue_ratio(name, table, column, **where):
    """Make a ratio with its quartiles available to the prose."""
    found = ratio_rows(table, column, "", "", **where)
    if found is None:
        return glue(name, NOT_MEASURED)
    ratio = found.iloc[0]
    spread = f" [{ratio['low']:.2f}, {ratio['high']:.2f}]" if ratio["low"] < ratio["high"] else ""
    return glue(name, f"{ratio['mean']:.2f}{spread}")


def glue_number(name, table, column, **where):
    """Make a number available to the prose, with three significant digits."""
    found = rows(table, **where)
    glue(name, NOT_MEASURED if found is None else f"{float(f'{found[column].iloc[0]:.3g}'):,.15g}")
