"""Rows of the table of peers that stay from an earlier run, so that a method can be added without training all others again."""

from pathlib import Path

import pandas as pd

from anl import notebooks
from anl.errors import UserError
from anl.files import rounded

TABLES = {"summary": "method", "anl_minus_other": "other", "controls": "method", "peers": "method"}
OWN = ("anl", "plain")
PLACE = ["method", "generator", "view", "metric"]
NUMBERS = ["mean", "low", "high", "seeds", "n"]


def earlier(folder, names, summary, tables=TABLES):
    """{table: [DataFrame]}: the rows of the methods `names` in the results that stood in `folder` before the running notebook; an
    empty list each where there are no names.

    tables: {name: the column that names a method}. summary: what was computed now. Differences are paired with the runs of ANL, so earlier ones hold only where those runs are
    the same: raises UserError where a row of ANL or the plain detector was another, or where a method has no rows.
    """
    if not names:
        return {name: [] for name in tables}
    before = notebooks.before(folder)
    try:
        stood = {name: pd.read_csv(before / f"{name}.csv") for name in tables}
    except FileNotFoundError as problem:
        raise UserError(f"there are no earlier results to keep ({Path(problem.filename).name} is missing); leave `keep` out, or "
                        f"`git checkout {folder}` and run again") from None
    now, then = (table[table["method"].isin(OWN)].set_index(PLACE)[NUMBERS] for table in (summary, stood["summary"]))
    now = now.map(rounded).reindex(then.index)
    if then.empty or not (now == then).all(axis=None):
        raise UserError(f"{folder} was made of other runs of ANL than there are now, so its differences to other methods do not "
                        "hold; leave `keep` out, which trains them all")
    for name in names:
        if not (stood["summary"]["method"] == name).any():
            raise UserError(f"{folder} has no rows of '{name}' to keep; add it to `others` instead")
    return {name: [table[table[tables[name]].isin(names)]] for name, table in stood.items()}
