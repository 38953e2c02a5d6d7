"""Measured and counted costs as rows that `anl.report.figures.forest` draws, and as texts for a page."""

import pandas as pd

from anl.report.experiments import rows

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


def ratio_text(table, column, **where):
    """A ratio with its quartiles, as text; `NOT_MEASURED` if no row fits."""
    found = ratio_rows(table, column, "", "", **where)
    if found is None:
        return NOT_MEASURED
    ratio = found.iloc[0]
    spread = f" [{ratio['low']:.2f}, {ratio['high']:.2f}]" if ratio["low"] < ratio["high"] else ""
    return f"{ratio['mean']:.2f}{spread}"


def number_text(table, column, **where):
    """A number with three significant digits, as text; `NOT_MEASURED` if no row fits."""
    found = rows(table, **where)
    return NOT_MEASURED if found is None else f"{float(f'{found[column].iloc[0]:.3g}'):,.15g}"


def measured(*sentences):
    """Those of the sentences that state no missing number, as one text."""
    return " ".join(sentence for sentence in sentences if NOT_MEASURED not in sentence) or "Not measured yet; anl bench does so."
