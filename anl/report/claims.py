"""The claims ledger: registered hypotheses, decided from rows of result tables by rules written down beforehand.

A claim names a table, the rows that decide it and a rule. The result tables are those of `anl.evaluation.compare`: tidy
rows with a mean, an interval and a paired difference. A rule with an interval has three outcomes: the interval lies above
the bound (`supported`), below it (`contradicted`), or contains it (`undecided`).
"""

import textwrap
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from scipy.stats import norm

from anl.evaluation.compare import holm
from anl.io import UserError, atomic_file, identity, read_json, write_json, write_text

SUPPORTED, UNDECIDED, CONTRADICTED, NOT_RUN = "supported", "undecided", "contradicted", "not run"
WORST_FIRST = (NOT_RUN, CONTRADICTED, UNDECIDED, SUPPORTED)
ANSWERS = {SUPPORTED: "Held", CONTRADICTED: "Did not hold", UNDECIDED: "Undecided"}
CONFIRMATORY = "confirmatory"
START, END = "<!-- claims:start -->", "<!-- claims:end -->"
WRAP = 62  # characters in a line of a figure's label
LEDGER_COLUMNS = ["claim", "title", "kind", "profile", "verdict", "measure", "row", "value", "low", "high", "seeds", "n", "rule"]


class Rule(BaseModel):
    """One measured number and the bound that decides it.

    Attributes
    ----------
    measure : str
        What the number is, in words.
    table : str
        Name of the result table, ``results/<profile>/tables/<table>.csv``.
    where : dict
        Column -> value (or list of values) that the rows must have.
    column : str
        The column that is read: ``difference``, whose interval is in ``difference_low`` and ``difference_high``, or another
        one, whose interval, if any, is in ``low`` and ``high``.
    above, below : float, optional
        The bound. The claim is supported if the interval lies above (below) it, and contradicted if it lies on the other
        side. With several rows the claim is about all of them: each must support it, and a single row on the
        other side contradicts it. ``below`` is for claims about a baseline: the differences of its rivals must be negative.
    at_most : float, optional
        Supported if the value is at most this: for counts, which have no interval.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    measure: str
    table: str
    where: dict[str, str | float | list[str | float]] = Field(default_factory=dict)
    column: str = "difference"
    above: float | None = None
    below: float | None = None
    at_most: float | None = None

    @model_validator(mode="after")
    def _one_bound(self):
        if [self.above, self.below, self.at_most].count(None) != 2:
            raise ValueError(f"rule '{self.measure}' needs exactly one of `above`, `below` and `at_most`")
        return self


class Claim(BaseModel):
    """A hypothesis, where it was stated, and the rules that decide it; its verdict is the worst of theirs.

    Attributes
    ----------
    kind : {'confirmatory', 'exploratory'}
        A confirmatory claim is registered before the runs that decide it.
    source : str
        Where the sentence comes from, for example ``abstract``; `quote` marks the source's own words.
    headline : bool
        Whether the claim is one of the few that a first page shows.
    correction : {'none', 'holm'}
        With ``holm`` a row contradicts the claim only if its p-value, corrected by Holm's method for the number of rows of
        the rule, is below 0.05. Support needs no correction, because all rows must support the claim. Only for rules about
        differences above or below 0.
    profiles : list of str
        Profiles whose results may decide it; elsewhere its verdict is ``not run``.
    seeds : int
        The smallest number of training seeds that may decide it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str
    title: str
    sentence: str
    source: str
    quote: bool = False
    headline: bool = False
    kind: Literal["confirmatory", "exploratory"]
    benchmark: str
    profiles: list[str]
    seeds: int = Field(default=3, ge=1)
    correction: Literal["none", "holm"] = "none"
    rules: list[Rule] = Field(min_length=1)
    limits: list[str] = Field(default_factory=list)

    @model_validator(mode="after")
    def _correctable(self):
        for rule in self.rules if self.correction == "holm" else []:
            if rule.column != "difference" or 0 not in (rule.above, rule.below):
                raise ValueError(f"correction 'holm' of rule '{rule.measure}' needs a difference above or below 0")
        return self


def read_claims(path="claims.yaml"):
    """The registered claims, a list of `Claim`.

    Raises UserError if the file is missing or not YAML, if a claim has an unknown or missing entry, or if an id is used twice.
    """
    try:
        entries = yaml.safe_load(Path(path).read_text(encoding="utf-8"))["claims"]
        claims = [Claim.model_validate(entry) for entry in entries]
    except FileNotFoundError:
        raise UserError(f"{path} is missing; restore it with `git checkout -- {path}`") from None
    except ValidationError as problem:
        first = problem.errors()[0]
        place = ".".join(map(str, first["loc"])) or "a claim"
        name = first["input"].get("id", "") if isinstance(first["input"], dict) else ""
        raise UserError(f"{path}: {f'claim {name}: ' if name else ''}{place}: {first['msg']}; correct the entry") from None
    except (yaml.YAMLError, KeyError, TypeError) as problem:
        raise UserError(f"{path} holds no list of claims ({' '.join(str(problem).split())}); give it a list `claims`") from None
    ids = [claim.id for claim in claims]
    if doubled := sorted({name for name in ids if ids.count(name) > 1}):
        raise UserError(f"{path}: the id '{doubled[0]}' is used twice; give each claim its own")
    return claims


def _registered(claims, profile):
    """dict id -> hash of the entries that decide its verdict, for the confirmatory claims of a profile."""
    return {claim.id: identity(claim.model_dump(include={"benchmark", "rules", "correction", "seeds"}))
            for claim in claims if claim.kind == CONFIRMATORY and profile in claim.profiles}


def register(claims, profile, path):
    """Record the confirmatory claims of a profile before its test images are scored for the first time.

    path: the JSON file. If it exists, nothing is done: the test images have been scored before.
    """
    found = _registered(claims, profile)
    if found and not Path(path).is_file():
        write_json(path, found)


def check_registered(claims, profile, path):
    """Raise UserError if a confirmatory claim was added, changed or withdrawn after `register`."""
    found = _registered(claims, profile)
    known = read_json(path, f"mark the claims of profile {profile} exploratory, or run `anl score`") if found or Path(path).is_file() else {}
    when = f"after the test images of profile {profile} were first scored ({path})"
    if late := [claim for claim, value in found.items() if known.get(claim) != value]:
        raise UserError(f"claim {late[0]} was added or changed {when}; restore it, or mark it exploratory under another id")
    if gone := [claim for claim in known if claim not in found]:
        raise UserError(f"claim {gone[0]} was withdrawn {when}; restore it as it was, confirmatory and for that profile")


def evaluate(claims, tables, profile):
    """Decide every claim from the result tables of one profile, dict name -> DataFrame.

    Claims whose table, or whose experiment in it, is missing are ``not run``.

    Returns
    -------
    DataFrame
        One row per rule with the columns of `LEDGER_COLUMNS`. ``verdict`` is that of the rule, not of the claim.

    Raises
    ------
    UserError
        If a rule names a column that its table lacks, or selects no row of a table that is there.
    """
    rows = [_decide(claim, rule, tables, profile) for claim in claims for rule in claim.rules]
    return pd.DataFrame(rows, columns=LEDGER_COLUMNS)


def read_tables(folder):
    """Result tables of a folder, dict name -> DataFrame; a table without rows, of an experiment not run, is left out."""
    tables = {path.stem: pd.read_csv(path) for path in sorted(Path(folder).glob("*.csv"))}
    return {name: table for name, table in tables.items() if len(table)}


def read_ledgers(results="results", first=None):
    """Ledgers of all profiles that have one, dict profile -> DataFrame, beginning with the profile `first`."""
    paths = sorted(Path(results).glob("*/claims.csv"), key=lambda path: (path.parent.name != first, path.parent.name))
    ledgers = {path.parent.name: read_ledger(path) for path in paths}
    return {profile: ledger for profile, ledger in ledgers.items() if list(ledger) == LEDGER_COLUMNS}


def verdicts(ledger):
    """dict claim id -> verdict: the worst of its rules, in the order not run, contradicted, undecided, supported."""
    return {claim: min(group["verdict"], key=WORST_FIRST.index)
            for claim, group in ledger.groupby("claim", sort=False)}


def _decide(claim, rule, tables, profile):
    row = {"claim": claim.id, "title": claim.title, "kind": claim.kind, "profile": profile, "verdict": NOT_RUN,
           "measure": rule.measure, "rule": _rule_text(claim, rule)}
    table = tables.get(rule.table, pd.DataFrame())
    measured = set(table.get("experiment", ()))
    if profile not in claim.profiles or table.empty or (measured and rule.where.get("experiment", "") not in measured | {""}):
        return row
    chosen = select(table, rule.where, rule.table)
    if rule.column not in chosen:
        raise UserError(f"claim {claim.id}: table {rule.table} has no column '{rule.column}'; it has "
                        f"{', '.join(chosen.columns)}")
    # "better than each of these" needs all of them; one that was not measured leaves the claim undecided
    listed = [(column, item) for column, values in rule.where.items() if isinstance(values, list) for item in values]
    missing = [item for column, item in listed if item not in set(chosen[column])]
    held = UNDECIDED if missing else SUPPORTED
    if missing:
        row["rule"] += f"; {len(missing)} of {len(listed)} not measured"
    value = chosen[rule.column].astype(float)
    if value.isna().any():
        raise UserError(f"claim {claim.id}: '{rule.column}' of table {rule.table} holds no number in a row that decides it; "
                        "make the table again")
    # sign: the side of the bound that supports the claim; near, far: the least and most favourable end of each row's interval
    sign, bound = (1, rule.above) if rule.above is not None else (-1, rule.below if rule.at_most is None else rule.at_most)
    ends = ["difference_low", "difference_high"] if rule.column == "difference" else ["low", "high"]
    known = rule.at_most is None and set(ends) <= set(chosen) and chosen[ends].notna().all(axis=None)
    near, far = (chosen[end].astype(float) if known else value for end in ends[::sign])
    margin = sign * (near - bound)
    worst = chosen.iloc[margin.argmin()]  # the claim is about all rows, so the least favourable one is shown
    several = [column for column, values in rule.where.items() if isinstance(values, list)]
    row |= {"row": _words(worst, several), "value": float(worst[rule.column]), "seeds": worst.get("seeds"), "n": worst.get("n")}
    if rule.at_most is not None:
        return row | {"verdict": held if margin.min() >= 0 else CONTRADICTED}
    if known:
        row |= {"low": float(worst[ends[0]]), "high": float(worst[ends[1]])}
    if not known or ("seeds" in chosen and chosen["seeds"].min() < claim.seeds):
        return row
    if margin.min() > 0:
        return row | {"verdict": held}
    against = sign * (far - bound) < 0
    if claim.correction == "holm":
        if "p" not in chosen:
            raise UserError(f"claim {claim.id}: table {rule.table} has no column 'p', which the correction needs; make it again "
                            "with anl.evaluation.compare")
        unknown = np.full(len(missing), np.nan)  # rivals that were not measured count as comparisons, too
        adjusted = holm(np.concatenate([chosen["p"].astype(float), unknown]))[:len(chosen)]
        against = (sign * (value - bound) < 0) & (adjusted < 0.05)
    if not against.any():
        return row | {"verdict": UNDECIDED}
    opposed = chosen[against].iloc[(sign * (value - bound))[against].argmin()]  # a row that contradicts, the furthest on its side
    return row | {"verdict": CONTRADICTED, "row": _words(opposed, several), "value": float(opposed[rule.column]), "low": float(opposed[ends[0]]),
                  "high": float(opposed[ends[1]]), "seeds": opposed.get("seeds"), "n": opposed.get("n")}


def _words(row, columns):
    """What tells a row from the others that a rule selects, such as `srm`; None if it selects one."""
    return " ".join(str(row[column]) for column in columns) or None


def _rule_text(claim, rule):
    if rule.at_most is not None:
        return f"at most {rule.at_most:g}"
    side, bound = ("above", rule.above) if rule.above is not None else ("below", rule.below)
    return f"95 % interval {side} {bound:g}" + (", contradicted after Holm's correction" if claim.correction == "holm" else "")


def select(table, where, name="the table"):
    """The rows of `table` whose columns have the given values. Raises UserError if a column is missing or no row fits."""
    chosen = table
    for column, value in where.items():
        if column not in table:
            raise UserError(f"{name} has no column '{column}'; it has {', '.join(table.columns)}")
        chosen = chosen[chosen[column].isin(value if isinstance(value, list) else [value])]
    if chosen.empty:
        words = ", ".join(f"{column} = {value}" for column, value in where.items())
        raise UserError(f"{name} has no row with {words}; it was made with other variants, or the rule has a typing error")
    return chosen


def detectable(ledger):
    """Distance from the bound at which a true effect would be supported in 80 % of repetitions; NaN where a rule is decided.

    From the width of the interval, taken as normal: (z(0.975) + z(0.8)) standard errors.
    """
    error = (ledger["high"] - ledger["low"]) / 2 / norm.ppf(0.975)
    return (norm.ppf(0.975) + norm.ppf(0.8)) * error.where(ledger["verdict"] == UNDECIDED)


def as_intervals(claims, ledger):
    """Rows of a ledger with an interval, as differences for `anl.report.figures.forest` whose positive side supports the claim.

    They are distances from the bound of the rule. A claim with several rules has a row for each, named by its measure.
    """
    rules = {(claim.id, rule.measure): rule for claim in claims for rule in claim.rules}
    rows = []
    for row in ledger[ledger["low"].notna()].to_dict("records"):
        rule = rules.get((row["claim"], row["measure"]))
        if rule is None:  # of an earlier claims.yaml
            continue
        sign, bound = (1, rule.above) if rule.above is not None else (-1, rule.below)
        ends = sorted(sign * (row[end] - bound) for end in ("low", "high"))
        several = [measure for claim, measure in rules if claim == row["claim"]]
        name = row["title"] if len(several) == 1 else row["measure"]
        rows.append({"variant": "\n".join(textwrap.wrap(name, WRAP)), "generator": row["profile"], "view": "",
                     "metric": "favour of the claim", "difference": sign * (row["value"] - bound), "difference_low": ends[0], "difference_high": ends[1]})
    return pd.DataFrame(rows)


def differences(reference, ledger):
    """Lines that say where a ledger disagrees with the reference one: another verdict, or a value outside its interval.

    Both are ledgers of `evaluate`, of one profile; the list is empty where they agree.
    """
    before, now = ({(row["claim"], row["measure"]): row for row in part.to_dict("records")} for part in (reference, ledger))
    problems = [f"{claim}: '{measure}' is no longer decided" for claim, measure in before if (claim, measure) not in now]
    for (claim, measure), row in now.items():
        old = before.get((claim, measure))
        if old is None:
            problems.append(f"{claim}: '{measure}' is new")
        elif old["verdict"] != row["verdict"]:
            problems.append(f"{claim}: '{measure}' was {old['verdict']}, is {row['verdict']}")
        elif _outside(old, row["value"]):
            problems.append(f"{claim}: '{measure}' is {text_of(row)}, was {text_of(old)}")
    return problems


def _outside(old, value):
    if pd.isna(old["value"]) or pd.isna(value):
        return pd.isna(old["value"]) != pd.isna(value)
    low, high = (old["value"], old["value"]) if pd.isna(old["low"]) else (old["low"], old["high"])
    slack = 1e-5 * max(abs(low), abs(high), 1e-3)  # files hold six digits
    return not low - slack <= value <= high + slack


def write_ledger(path, ledger):
    """Write a ledger as CSV with six significant digits."""
    with atomic_file(path) as temporary:
        ledger.to_csv(temporary, index=False, float_format="%.6g", lineterminator="\n")


def read_ledger(path):
    """Read a ledger. Raises UserError if it is missing."""
    try:
        return pd.read_csv(path)
    except FileNotFoundError:
        raise UserError(f"{path} is missing; make it with `anl claims`") from None


def fill_readme(path, ledgers, headline=()):
    """Replace the text between the claims markers of a README by `answers`. Raises UserError if the markers are missing."""
    text = Path(path).read_text(encoding="utf-8")
    head, found, rest = text.partition(START)
    _, closed, tail = rest.partition(END)
    if not (found and closed):
        raise UserError(f"{path} lacks the markers {START} and {END}; put them where the answers belong")
    filled = f"{head}{START}\n{chr(10).join(answers(ledgers, headline))}\n{END}{tail}"
    if filled != text:
        write_text(path, filled)


def decisions(ledgers):
    """The rule that decides each claim, dict claim id -> row of a ledger: the worst one, of the first profile that ran the claim.

    ledgers: dict profile -> ledger. Claims that no profile ran are missing.
    """
    found = {}
    for ledger in ledgers.values():
        for claim, verdict in verdicts(ledger).items():
            if verdict != NOT_RUN:
                found.setdefault(claim, ledger[(ledger["claim"] == claim) & (ledger["verdict"] == verdict)].iloc[0].to_dict())
    return found


def answers(ledgers, headline=()):
    """What held, what did not and what is undecided, as lines of Markdown.

    Parameters
    ----------
    ledgers : dict of str to DataFrame
        Profile -> ledger.
    headline : collection of str
        Ids of the claims that get a line with their number; by default, and where none of them was decided, all. The other
        confirmatory claims are counted in one more line.

    Returns
    -------
    list of str
        About the confirmatory claims that a profile has decided; about the exploratory ones if there is no such claim.
    """
    found = decisions(ledgers)
    kind = CONFIRMATORY if any(rule["kind"] == CONFIRMATORY for rule in found.values()) else "exploratory"
    found = {claim: rule for claim, rule in found.items() if rule["kind"] == kind}
    shown = [rule for claim, rule in found.items() if claim in headline] or list(found.values())
    lines = [f"- **{word}.** {_answer(rule)}" for verdict, word in ANSWERS.items() for rule in shown if rule["verdict"] == verdict]
    if len(shown) < len(found):
        reached = [rule["verdict"] for rule in found.values()]
        counts = ", ".join(f"{word.lower()}: {reached.count(verdict)}" for verdict, word in ANSWERS.items())
        lines.append(f"- **All {len(found)} {kind} claims.** {counts[0].upper()}{counts[1:]}")
    known = {claim for ledger in ledgers.values() for claim in ledger.loc[ledger["kind"] == CONFIRMATORY, "claim"]}
    waiting = len(known - set(decisions(ledgers)))
    return [*lines, f"- **Not measured yet.** {counted(waiting, 'confirmatory claim')}"] if waiting else lines


def _answer(rule):
    """`Title. Measure (here srm): 0.1 [0.05, 0.15] (profile, 10 seeds x 1,039 photographs)`; the row is the one that decides."""
    known = pd.notna(rule["seeds"]) and pd.notna(rule["n"]) and pd.notna(rule["low"])  # without an interval it was counted
    counts = f", {counted(rule['seeds'], 'seed')} x {int(rule['n']):,} photographs" if known else ""
    measure = rule["measure"][0].upper() + rule["measure"][1:]
    if known and pd.notna(rule["row"]):
        measure += f" (here {rule['row'].replace('_', ' ')})"
    return f"{rule['title']}. {measure}: {text_of(rule)} (`{rule['profile']}`{counts})"


def counted(number, noun):
    """`1 seed`, `10 seeds`."""
    return f"{int(number):,} {noun}{'' if number == 1 else 's'}"


def text_of(row, digits=3):
    """`0.041 [0.012, 0.070]` of a row with value, low and high; "" where nothing was measured."""
    if pd.isna(row["value"]):
        return ""
    if pd.isna(row["low"]) or pd.isna(row["high"]):
        return f"{row['value']:g}" if row["value"] == round(row["value"]) else f"{row['value']:.{digits}f}"
    return f"{row['value']:.{digits}f} [{row['low']:.{digits}f}, {row['high']:.{digits}f}]"
