"""The field's methods on a public data set: accuracy against the cost of one image, and what the page says of them."""

import pandas as pd

from anl.analysis import UNSEEN, value
from anl.published.study import ACCURACY, RANKING

COSTS = ("parameters", "frozen_parameters", "multiply_adds")


def cost_table(costs, accuracy, across, rates, headline):
    """A row a method, the most accurate first.

    costs: {method: of one image at inference, see anl.baselines.costs}. accuracy: {view: table of anl.published.study.accuracy}.
    across: table of anl.published.study.across; rates: of anl.analysis.control_rates. Columns of other views than `headline` end in
    theirs; `worst_control` is the harmless processing with the most false positives.
    """
    rows, ranked = [], across.set_index("method")
    tables = {view: table.set_index("method") for view, table in accuracy.items()}
    for method, cost in costs.items():
        row = {"method": method}
        for view, table in tables.items():
            end = "" if view == headline else f"_{view}"
            row |= {f"{ACCURACY}{end}{bound}": table.loc[method, f"{ACCURACY}{bound}"] for bound in ("", "_low", "_high")}
        row |= {f"{UNSEEN}_{RANKING}{bound}": ranked.loc[method, f"{UNSEEN}{bound}"] for bound in ("", "_low", "_high")}
        worst = rates[rates["method"] == method].sort_values("false_positive_rate").iloc[-1]
        row |= {**{key: cost[key] for key in COSTS}, "worst_control": worst["control"], "false_positive_rate": worst["false_positive_rate"]}
        rows.append({**row, **tables[headline].loc[method, ["seeds", "n"]].astype(int)})
    return pd.DataFrame(rows).sort_values(ACCURACY, ascending=False, kind="stable", ignore_index=True)


def quoted(accuracy, over, own="anl"):
    """{key: value} for the page. accuracy: of the headline view, `own` first; over: RANKING of each method minus `own`, see
    anl.analysis.paired_difference."""
    found = {}
    others = accuracy[accuracy["method"] != own]
    unseen = over[(over["generator"] == UNSEEN) & (over["metric"] == RANKING)].set_index("method")
    for row in others.to_dict("records"):
        found[f"accuracy_{row['method']}_minus_{own}"] = value(row[f"minus_{own}"], row[f"minus_{own}_low"], row[f"minus_{own}_high"],
                                                               row["n"], row["seeds"])
        place = unseen.loc[row["method"]]
        found[f"unseen_{row['method']}_minus_{own}"] = value(place["difference"], place["low"], place["high"], int(place["n"]),
                                                             int(place["seeds"]))
    for row in accuracy.to_dict("records"):
        found[f"accuracy_{row['method']}"] = value(row["accuracy"], row["accuracy_low"], row["accuracy_high"], row["n"], row["seeds"])
    best = {"accuracy": others.loc[others["accuracy"].idxmax(), "method"], "unseen": unseen["difference"].idxmax()}
    for key, method in best.items():
        found[f"best_{key}"] = {**value(1), "text": f"`{method}`"}
        found[f"best_{key}_minus_{own}"] = found[f"{key}_{method}_minus_{own}"]
    beaten = {"accuracy": int((others[f"minus_{own}_high"] < 0).sum()), "unseen": int((unseen["high"] < 0).sum())}
    return found | {f"beaten_{key}": {**value(count), "text": f"{count} of {len(others)}"} for key, count in beaten.items()}
