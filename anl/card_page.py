"""The book's page on the detector that comes with the repository: its card's errors and limits as tables and texts."""

import html
from pathlib import Path

from anl.detect.explain import CONDITIONS
from anl.errors import UserError
from anl.files import read_json, write_csv, write_text
from anl.origins import Origin, details
from anl.tables import html_table, signed


def write(folder, detector):
    """Write measured.html, its CSV and limits.html into `folder` from the card in the folder `detector`; returns {key: text}
    for the prose. Raises UserError if the card is missing."""
    from anl.runs import RunSpec  # imports torch, which the command line's other parts do without

    path = Path(detector) / "card.json"
    if not path.is_file():
        raise UserError(f"{path} is missing; get it with `make data`")
    card = read_json(path)
    write_csv(folder / "measured.csv", card["measured"])
    spec = card["trained_on"]["spec"]
    profile = card["trained_on"]["profile"]
    origin = Origin(folder.name, f"anl card runs/{profile}/main/{RunSpec(**spec).slug} --out models/detector "
                    "--replace", profile=profile, seeds=(spec["seed"],))
    write_text(folder / "measured.html", measured_table(card["measured"], origin.link("measured.csv"))
               + details(origin, ["measured.csv"]))
    write_text(folder / "limits.html", "<ul>" + "".join(f"<li>{html.escape(line)}</li>" for line in card["limits"]) + "</ul>\n")
    chosen, shares = card["chosen_on"], {(row["of"], row["condition"]): row for row in card["measured"]}
    files, seen = shares["real", "files"], shares[card["trained_on"]["generator"], "raw"]
    return {"threshold": signed(f"{card['threshold']:.2f}"), "lower": signed(f"{card['lower']:.2f}"), "rule": f"`{card['rule']}`",
            "size": str(card["size"]), "n_real": str(chosen["n_real"]), "n_fake": str(chosen["n_fake"]),
            "target_fpr": _percent(chosen["target_fpr"]), "target_miss": _percent(chosen["target_miss"]),
            "conditions": str(len(chosen["threshold_by_condition"])),
            "untouched_generated": _percent(chosen["files_above_untouched_threshold"]),
            "files_generated": _percent(files["called_generated"]), "files_undecided": _percent(files["called_undecided"]),
            "n_files": str(files["n"]), "seen_generated": _percent(seen["called_generated"]),
            "generators": f"`{card['trained_on']['generator']}`", "licence": card["licence"]}


def _percent(share):
    return f"{100 * share:.0f} %"


def measured_table(rows, download=""):
    """HTML: a row per generator and condition, reals first: shares of the verdicts, AP against the reals of that condition."""
    places = list(CONDITIONS)
    order = sorted(rows, key=lambda row: (row["of"] != "real", not row["seen"], row["of"],
                                          places.index(row["condition"]) if row["condition"] in places else len(places)))
    body = []
    for row in order:
        name = "real photographs" if row["of"] == "real" else f"{row['of']}, {'seen' if row['seen'] else 'not seen'}"
        body.append([html.escape(name), CONDITIONS.get(row["condition"], row["condition"]),
                     *(f"{row[f'called_{word}']:.2f}" for word in ("generated", "undecided", "real")),
                     "" if row["AP"] is None else f"{row['AP']:.2f}", str(row["n"])])
    return html_table(["Test photographs", "Condition", "Called generated", "Undecided", "Called real", "AP", "n"], body,
                      download=download)
