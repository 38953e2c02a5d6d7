"""The claims ledger: the paper's sentences, decided by rules from the numbers that the notebooks wrote."""

import json
import math
import subprocess
import sys
from pathlib import Path

import yaml

from anl.errors import UserError
from anl.files import read_json, write_csv, write_json, write_text

REPRODUCED, WITHIN_NOISE, NOT_REPRODUCED, NOT_RUN = "reproduced", "within noise", "not reproduced", "not run here"
VERDICTS = (REPRODUCED, WITHIN_NOISE, NOT_REPRODUCED, NOT_RUN)
LEAST_SEEDS = 3
KEYS = {"id", "title", "sentence", "quote", "stands", "notebook", "figure", "rules", "also", "profiles", "command",
        "answer", "deviations"}
RULE_KEYS = {"metric", "name", "above", "at_most"}
VIEWS = ("raw", "jpeg96")  # beside the headline view; a metric's number there has the view's name at its end
VIEW_COLUMNS = ["claim", "in_view", "verdict", "value", "low", "high", "n", "seeds"]
TABLE_COLUMNS = ["id", "title", "verdict", "measure", "value", "low", "high", "n", "seeds", "text", "rule"]
README_PROFILES = ("small", "full")  # the columns of the README's table
START, END = "<!-- claims:start -->", "<!-- claims:end -->"


def evaluate(results_folder, claims_path="claims.yaml"):
    """Judge every claim from `<results_folder>/<notebook>/values.json`; the folder's name is the profile.

    Returns a list of dicts in the order of the file: id, title, sentence, quote, stands, notebook, figure, command,
    deviations, profile, verdict, answer (one sentence), measures (the rules' numbers, each with value, low, high, n,
    seeds, text, rule and verdict), also (numbers beside them), views (the measures and verdict in other views, for claims
    decided by intervals). A claim's numbers may be missing where its rules do not apply. Raises UserError on an unknown
    metric, on missing results and on a number that is none.
    """
    folder = Path(results_folder)
    values = _Values(folder)
    return [_judge(claim, values, folder.name) for claim in read_claims(claims_path)]


def run(params, check=False, results="results", claims_path="claims.yaml", readme="README.md"):
    """Write results/<profile>/claims.json and claims.csv, and the README's table if it shows the profile.

    With `check`, write nothing: compare with the committed claims.json (or the one on disk, outside git) and print
    where a verdict differs or a value has left the committed 95 % interval. Returns an exit status, 1 on contradiction.
    """
    folder = Path(results) / params.profile
    judged = evaluate(folder, claims_path)
    if check:
        problems = contradictions(_committed(folder / "claims.json"), judged)
        for problem in problems:
            print(f"{folder}/claims.json is contradicted: {problem}", file=sys.stderr)
        return int(bool(problems))
    write_json(folder / "claims.json", judged)
    write_csv(folder / "claims.csv", table(judged), TABLE_COLUMNS)
    if params.profile in README_PROFILES:
        paths = {name: Path(results) / name / "claims.json" for name in README_PROFILES}
        fill_readme(readme, {name: read_json(path) for name, path in paths.items() if path.is_file()})
    for claim in judged:
        print(f"{claim['verdict']:<15} {claim['title']}")
    return 0


def read_claims(path):
    """The claims of a claims.yaml. Raises UserError on a missing file, a missing or an unknown key."""
    try:
        claims = yaml.safe_load(Path(path).read_text(encoding="utf-8"))["claims"]
    except FileNotFoundError:
        raise UserError(f"{path} is missing; restore it with `git checkout -- {path}`") from None
    except (yaml.YAMLError, KeyError, TypeError) as problem:
        raise UserError(f"{path} holds no list of claims ({' '.join(str(problem).split())})") from None
    for claim in claims:
        _check(claim, path)
    ids = [claim["id"] for claim in claims]
    if len(set(ids)) < len(ids):
        raise UserError(f"{path}: a claim's id stands twice in {', '.join(ids)}")
    return claims


def _check(claim, path):
    name = claim.get("id", "without id")
    for found, known in [(set(claim), KEYS)] + [(set(rule), RULE_KEYS) for rule in claim.get("rules", [])]:
        if found - known:
            raise UserError(f"{path}: claim {name} has the unknown key '{min(found - known)}'")
    if missing := KEYS - {"also"} - set(claim):
        raise UserError(f"{path}: claim {name} lacks '{min(missing)}'")
    for rule in claim["rules"]:
        if ("above" in rule) == ("at_most" in rule) or not {"metric", "name"} <= set(rule):
            raise UserError(f"{path}: claim {name}: a rule needs `metric`, `name` and one of `above` and `at_most`")
    if set(claim["answer"]) != set(VERDICTS):
        raise UserError(f"{path}: claim {name} needs an answer for each of {', '.join(VERDICTS)}")


class _Values:
    """Reads values.json of each notebook once."""

    def __init__(self, folder):
        self.folder, self.known = folder, {}

    def find(self, metric):
        """The number, or None where the notebook gives none of that name or was not run."""
        notebook, _, key = metric.partition(".")
        return self.known.get(notebook, {}).get(key)

    def get(self, metric, needed=True):
        """The number; where it is not needed and the notebook was not run, one without a value."""
        notebook, _, key = metric.partition(".")
        if notebook not in self.known:
            path = self.folder / notebook / "values.json"
            if not path.is_file() and not needed:
                return {"value": None, "text": NOT_RUN}
            if not path.is_file():
                raise UserError(f"{path} is missing; make it with `dvc repro {notebook}`")
            self.known[notebook] = read_json(path)
        if key not in self.known[notebook]:
            raise UserError(f"claims.yaml names the unknown metric '{metric}'; notebook {notebook} gives "
                            f"{', '.join(sorted(self.known[notebook]))}")
        number = self.known[notebook][key]
        if any(isinstance(item, float) and not math.isfinite(item) for item in number.values()):
            raise UserError(f"{self.folder / notebook / 'values.json'}: '{key}', which decides a claim, is not a number; make it "
                            f"again with `dvc repro {notebook}`")
        return number


def _judge(claim, values, profile):
    applies = profile in claim["profiles"]
    measures = [_measure(rule, values, applies) for rule in claim["rules"]]
    if not applies:
        for measure in measures:
            measure["verdict"] = NOT_RUN
    # the worst of the rules: a claim is as strong as its weakest part
    order = (NOT_RUN, NOT_REPRODUCED, WITHIN_NOISE, REPRODUCED)
    verdict = min((measure["verdict"] for measure in measures), key=order.index)
    also = [{**values.get(item["metric"], applies), "metric": item["metric"], "name": item["name"]}
            for item in claim.get("also", [])]
    kept = ("id", "title", "sentence", "quote", "stands", "notebook", "figure", "command", "deviations")
    return {**{key: claim[key] for key in kept}, "profile": profile, "verdict": verdict,
            "answer": claim["answer"][verdict], "measures": measures, "also": also,
            "views": _by_view(claim, values, verdict == NOT_RUN)}


def _by_view(claim, values, not_run):
    """{view: measure with its verdict} of the first rule, where it is decided by an interval."""
    rule, found = claim["rules"][0], {}
    for view in VIEWS:
        number = values.find(f"{rule['metric']}_{view}")
        if "above" in rule and number is not None:
            found[view] = _measure({**rule, "metric": f"{rule['metric']}_{view}"}, values)
            if not_run:
                found[view]["verdict"] = NOT_RUN
    return found


def _measure(rule, values, needed=True):
    number = values.get(rule["metric"], needed)
    exact = "at_most" in rule
    words = f"at most {rule['at_most']:g}" if exact else f"95 % interval above {rule['above']:g}"
    return {**{key: number.get(key) for key in ("value", "low", "high", "n", "seeds", "text")}, "metric": rule["metric"],
            "name": rule["name"], "rule": words, "verdict": _decide(number, rule)}


def _decide(number, rule):
    value, low, high = (number.get(key) for key in ("value", "low", "high"))
    if "at_most" in rule:
        return NOT_RUN if value is None else REPRODUCED if value <= rule["at_most"] else NOT_REPRODUCED
    if low is None or high is None or (number.get("seeds") or 0) < LEAST_SEEDS:
        return NOT_RUN
    if low > rule["above"]:
        return REPRODUCED
    return NOT_REPRODUCED if high < rule["above"] else WITHIN_NOISE


def table(judged):
    """One row per rule, for claims.csv and the tables of the book."""
    return [{"id": claim["id"], "title": claim["title"], "verdict": measure["verdict"], "measure": measure["name"],
             **{key: measure[key] for key in ("value", "low", "high", "n", "seeds", "text", "rule")}}
            for claim in judged for measure in claim["measures"]]


def view_table(judged, headline):
    """One row per claim and view, the headline view first: what holds only until both classes are re-encoded?"""
    return [{"claim": claim["title"], "id": claim["id"], "in_view": view, "text": measure["text"],
             **{key: measure[key] for key in ("verdict", "value", "low", "high", "n", "seeds")}}
            for claim in judged if claim["views"]
            for view, measure in {headline: claim["measures"][0], **claim["views"]}.items()]


def contradictions(committed, judged):
    """Lines that say where `judged` differs: another verdict, or a value outside the committed interval."""
    before = {claim["id"]: claim for claim in committed}
    problems = []
    for claim in judged:
        old = before.get(claim["id"])
        if old is None:
            problems.append(f"{claim['id']} is new; run `anl claims` and commit")
        elif old["verdict"] != claim["verdict"]:
            problems.append(f"{claim['id']} was '{old['verdict']}', is '{claim['verdict']}'")
        else:
            problems += [f"{claim['id']}: {new['name']} is {new['text']}, was {was['text']}"
                         for was, new in zip(old["measures"], claim["measures"]) if _left(was, new["value"])]
    return problems + [f"{name} has gone" for name in before if name not in {claim["id"] for claim in judged}]


def _left(was, value):
    if was["low"] is None or was["high"] is None or value is None or was["value"] is None:
        return was["value"] != value
    slack = 1e-5 * max(abs(was["low"]), abs(was["high"]), 1e-3)  # the file holds six digits
    return not was["low"] - slack <= value <= was["high"] + slack


def _committed(path):
    """claims.json as committed in git; outside git, or not yet committed, the file on disk."""
    shown = subprocess.run(["git", "show", f"HEAD:./{path.name}"], cwd=path.parent, capture_output=True, text=True,
                           check=False) if path.parent.is_dir() else None
    if shown is not None and shown.returncode == 0:
        return json.loads(shown.stdout)
    return read_json(path)


def fill_readme(path, judged):
    """Replace what stands between the README's claims markers by the table of verdicts; does nothing without README.

    judged: {profile: its claims as `evaluate` gives them}, a pair of columns each.
    """
    path = Path(path)
    if not path.is_file():
        return
    text = path.read_text(encoding="utf-8")
    if START not in text or END not in text.split(START)[1]:
        raise UserError(f"{path} lacks the markers {START} and {END}; put them where the table of claims belongs")
    head, rest = text.split(START, 1)
    tail = rest.split(END, 1)[1]
    filled = f"{head}{START}\n{markdown(judged)}\n{END}{tail}"
    if filled != text:
        write_text(path, filled)


def markdown(judged):
    """The verdicts as a Markdown table: a row a claim and what was measured, a column a profile."""
    names = [f"`{profile}`, {_seeds(claims)}" for profile, claims in judged.items()]
    lines = [" | ".join(["| Claim", "Measured", *names]) + " |", "|---" * (2 + len(names)) + "|"]
    by_profile = [{claim["id"]: claim for claim in claims} for claims in judged.values()]
    for claim in next(iter(judged.values()), []):
        for index, measure in enumerate(claim["measures"]):
            cells = [claim["title"] if index == 0 else "", measure["name"]]
            for known in by_profile:
                found = known.get(claim["id"], {"measures": []})["measures"][index:index + 1]
                cells.append(_cell(found[0]) if found else "-")
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(measure):
    text = "" if measure["text"] in (None, NOT_RUN) else f" {measure['text']}"
    return f"**{measure['verdict']}**{text}"


def _seeds(judged):
    counts = {measure["seeds"] for claim in judged for measure in claim["measures"]} - {None}
    return f"{max(counts)} seeds" if counts else "no seeds"
