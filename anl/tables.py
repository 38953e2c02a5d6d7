"""CSV tables as HTML for the book: rounded, intervals beside their number, wide ones scroll."""

import csv
import html
import re
import shutil

from anl.errors import UserError
from anl.files import read_json, write_text
from anl.origins import FIGURES, details

NUMERIC = re.compile("(<b>)?[\N{MINUS SIGN}0-9.,]+( \\[[\N{MINUS SIGN}0-9., ]+\\])?(</b>)?")
CENTRES = ("mean", "difference", "value", "accuracy", "false_positive_rate", "ap_against_real", "ratio")
WORDS = {"n": "n", "psnr": "PSNR (dB)", "ap_against_real": "AP against real", "seen": "trained on", "unseen": "mean of unseen",
         "unseen_benchmark": "mean of unseen, benchmark", "unseen_further": "mean of unseen, further", "anl_minus_it": "ANL minus it",
         "raw": "untouched", "in_view": "View", "s_t": "s_t", "anl_minus_plain": "anl minus plain", "minus_plain": "minus plain",
         "TPR_at_1": "TPR at 1 % FPR", "TPR_at_5": "TPR at 5 % FPR", "accuracy_at_half": "Accuracy at 0.5",
         "noise": "Noise (grey levels)", "prior_rmse": "Prior RMSE (grey levels)", "gaussian_rmse": "Gaussian RMSE (grey levels)",
         "gaussian_width": "Gaussian width (pixels)", "explained": "Variance explained", "entropy": "Entropy (bits)",
         "jpeg_quality": "JPEG quality", "multiply_adds": "Multiply-adds", "peak_memory_mb": "Peak memory (MB)",
         "speed_over_pytorch": "Speed over PyTorch", "cpu_seconds_an_image": "Processor time an image (s)",
         "sd14": "Stable Diffusion 1.4", "AP_jpeg96": "AP, jpeg96"}
# written as everywhere in the book, at the head of a column too
NAMES = {"plain", "anl", "ddim", "ddpm", "flow", "vae", "vq", "latent", "dpm", "inpaint", "superres", "gan", "jpeg96"}
LEADING = ("unseen_AP", "unseen_AP_jpeg96", "seen_AP", "seen_AP_jpeg96")  # columns that come first, whatever the file's order
INTERVAL = "95\N{NO-BREAK SPACE}%"
NO_NUMBER = {"nan", "inf", "-inf"}
WORDY = 60  # letters; a table with longer cells turns into a list of cards on a phone
LINES, GROUPS = ("generator", "control"), ("method", "other", "attention")


def csv_table(path, keep=None, interval=INTERVAL, download="", mend=""):
    """A CSV file as an HTML table; `x, low, high` and `x, x_low, x_high` become one column `x [interval]`.

    keep: {column: value}; of a table with such a column only those rows are shown, without the column. A table of
    intervals per method becomes a column a method. download: where the page finds the file. mend: the command that makes
    it again. Raises UserError, naming file and line, on a value that is no number.
    """
    with open(path, newline="", encoding="utf-8") as stream:
        reader = csv.DictReader(stream)
        rows, columns = list(reader), list(reader.fieldnames or [])
    for line, row in enumerate(rows, 2):
        if wrong := next((name for name in columns if str(row[name]).lower() in NO_NUMBER), None):
            raise UserError(f"{path}, line {line}: '{wrong}' is '{row[wrong]}', not a number{f'; make it again with `{mend}`' if mend else ''}")
    for column, value in (keep or {}).items():
        if column in columns:
            rows = [row for row in rows if row[column] == value]
            columns.remove(column)
    if {"claim", "in_view", "verdict"} <= set(columns):
        return _verdicts_by_view(rows, download)
    columns = [columns[0], *(name for name in LEADING if name in columns[1:]),
               *(name for name in columns[1:] if name not in LEADING)]
    joined = _intervals(columns)
    hidden = {name for pair in joined.values() for name in pair}
    line = next((name for name in LINES if name in columns), None)
    group = next((name for name in GROUPS if name in columns), None)
    if line and group and {"low", "high"} <= hidden and len({row[group] for row in rows}) < len(rows):
        centre = next(key for key, pair in joined.items() if pair == ("low", "high"))
        return _crossed(rows, line, group, centre, download)
    shown = [column for column in columns if column not in hidden]
    head = [heading(column) + (f" [{interval}]" if column in joined else "") for column in shown]
    return html_table(head, [[_cell(row, column, joined) for column in shown] for row in rows], download=download)


def _cell(row, column, joined):
    text = number(row[column])
    if column in joined and all(row[name] for name in joined[column]):
        low, high = (number(row[name]) for name in joined[column])
        text = f"{text} [{low}, {high}]"
    return html.escape(text)


def _crossed(rows, line, group, centre, download):
    """A row per `line` (generator, control), a column per `group` (method), `centre` with its interval in each cell."""
    groups, lines = (list(dict.fromkeys(row[key] for row in rows)) for key in (group, line))
    cells = {(row[line], row[group]): _cell(row, centre, {centre: ("low", "high")}) for row in rows}
    before, after = "minus " if group == "other" else "", "" if centre in ("mean", "difference") else f": {centre}"
    baselines = {row.get("baseline") for row in rows} - {None}
    after = f" minus {baselines.pop()}" if len(baselines) == 1 else after.replace("_", " ")
    counts = [key for key in ("seeds", "n") if key in rows[0]]  # the same for every group
    sizes = {row[line]: [number(row[key]) for key in counts] for row in rows}
    head = [heading(line), *(html.escape(f"{before}{name}{after}") + f" [{INTERVAL}]" for name in groups), *map(heading, counts)]
    return html_table(head, [[html.escape(WORDS.get(name, name)), *(cells.get((name, key), "") for key in groups),
                              *sizes[name]] for name in lines], download=download)


def _verdicts_by_view(rows, download):
    """A row a claim, a column a view, in each the verdict and the number with its interval."""
    claims, views = (list(dict.fromkeys(row[key] for row in rows)) for key in ("claim", "in_view"))
    cells = {(row["claim"], row["in_view"]): f"{badge(row['verdict'])}<br><span class=\"value\">"
             f"{_cell(row, 'value', {'value': ('low', 'high')})}</span>" for row in rows}
    names = {row["claim"]: f"{html.escape(row['claim'])}<br><small>{row['seeds']} seeds, n = {row['n']}</small>" for row in rows}
    body = [[names[claim], *(cells.get((claim, view), "") for view in views)] for claim in claims]
    return html_table(["Claim", *(f"View {view} [{INTERVAL}]" for view in views)], body, "cards by-view", download)


def badge(verdict):
    """A verdict as HTML, in its colour."""
    return f'<span class="verdict {verdict.replace(" ", "-")}">{html.escape(verdict)}</span>'


def _intervals(columns):
    """{centre: (low column, high column)}."""
    found = {column: (f"{column}_low", f"{column}_high") for column in columns
             if {f"{column}_low", f"{column}_high"} <= set(columns)}
    if {"low", "high"} <= set(columns):
        before = columns[:columns.index("low")]
        centres = [column for column in before if column in CENTRES] or before[-1:]
        found |= {centres[-1]: ("low", "high")} if centres else {}
    return found


def heading(column):
    """A column's name in words: `ap_mean_colour` -> `AP mean colour`."""
    if column in WORDS or column in NAMES:
        return WORDS.get(column, column)
    words = column.replace("_", " ").strip()
    words = f"AP{words[2:]}" if words.startswith("ap ") else words
    return html.escape(words[:1].upper() + words[1:])


def number(text):
    """A cell as a page shows it: whole numbers as they are, others with three digits after the point."""
    try:
        value = float(text)
    except ValueError:
        return {"True": "yes", "False": "no", "": "\N{EN DASH}"}.get(text, text)
    if text.lstrip("-").isdigit():
        shown = f"{int(text):,}" if abs(int(text)) >= 10000 else text
    elif value and (abs(value) < 0.001 or abs(value) >= 1e6):
        shown = f"{value:.2g}"
    else:
        shown = f"{value:.3f}" if abs(value) < 100 else f"{value:.0f}"
    return signed(shown)


def signed(text):
    """Numbers in a text with a true minus sign, and none before a zero."""
    text = re.sub(r"(?<![\w.])-(0(?:\.0+)?)(?![\d.])", r"\1", text)
    return re.sub(r"(?<![\w.])-(?=\d)", "\N{MINUS SIGN}", text)


def prose(text):
    """A value's text as a page shows it."""
    return signed(str(text))


def copy_results(source, target, shown, origin, interval=INTERVAL):
    """Copy figures and tables from `source` to `target`, each with its origin: in X.html of a table, X.origin.html of a figure.

    shown: csv_table's keep; origin: anl.origins.Origin of the folder. Raises UserError on a figure without its table.
    """
    target.mkdir(parents=True, exist_ok=True)
    tables = sorted(path.name for path in source.glob("*.csv"))
    for path in sorted(source.iterdir()):
        if path.suffix in (".png", ".csv"):
            shutil.copyfile(path, target / path.name)
        if path.suffix == ".csv":
            table = csv_table(path, shown, interval, origin.link(path.name), origin.command)
            write_text(target / f"{path.stem}.html", table + details(origin, [path.name]))
        if path.suffix == ".png":
            behind = FIGURES.get(f"{source.name}/{path.name}", tables)
            if missing := set(behind) - set(tables):
                raise UserError(f"{source} lacks {min(missing)}, which {path.name} is drawn from; make it with `{origin.command}`")
            write_text(target / f"{path.stem}.origin.html", details(origin, behind))


def value_texts(path, mend):
    """{key: text} of a values.json. Raises UserError, with `mend`, on one that is no number."""
    texts = {key: prose(entry["text"]) for key, entry in read_json(path).items()}
    for key, text in texts.items():
        if re.search(r"\b(nan|None|inf)\b", text):
            raise UserError(f"{path}: '{key}' is '{text}', not a number; {mend}")
    return texts


def html_table(head, rows, kind="", download=""):
    """A table that scrolls sideways in its own box, its numbers aligned right; book/_static/tables.js makes it sortable.

    head: plain texts. rows: lists of cells, HTML already escaped. kind: classes; one with `cards` becomes a list of cards on a
    phone, each cell with its column's name, and so does a table with long texts. download: where the page finds it as CSV.
    """
    wordy = any(len(re.sub("<[^>]+>", "", cell)) > WORDY for row in rows for cell in row)
    kind = f"{kind} cards".strip() if wordy and not kind else kind
    link = f'<a class="csv" href="{html.escape(download, quote=True)}" download>CSV</a>' if download else ""
    cells = "".join(f'<th scope="col">{title}</th>' for title in head)
    lines = [f'<div class="results-block"><div class="table-tools">{link}</div>',
             '<div class="results-table pst-scrollable-table-container" tabindex="0" role="region" aria-label="Table">',
             f'<table class="table {kind}">', f"<thead><tr>{cells}</tr></thead>", "<tbody>"]
    for row in rows:
        names = [f' data-head="{title}"' if "cards" in kind.split() else "" for title in head]
        cells = (f"<td{name}{' class=num' if NUMERIC.fullmatch(cell) else ''}>{cell}</td>" for name, cell in zip(names, row, strict=True))
        total = ' class="sum"' if row and row[0].startswith("<b>") else ""
        lines.append(f"<tr{total}>{''.join(cells)}</tr>")
    return "\n".join([*lines, "</tbody></table></div></div>"]) + "\n"


def photo_anchor(sha256):
    """The fragment by which a photograph is found on the page of the data card."""
    return f"photo-{sha256[:12]}"


def card_table(photos, splits, download):
    """The data card: a row per photograph with author, licence, source, package and SHA-256."""
    rows = []
    for photo in photos:
        name = html.escape(photo.file)
        if photo.source.startswith("http"):
            name = f'<a href="{html.escape(photo.source, quote=True)}">{name}</a>'
        elif photo.source:
            name += f"<br><small>{html.escape(photo.source)}</small>"
        author = html.escape(photo.author or "author not stated by the package")
        terms = (f"{author}, {html.escape(photo.licence)}<br><small>package {html.escape(photo.package)}</small><br>"
                 f'<code class="hash">{photo.sha256}</code>')
        name = f'<span id="{photo_anchor(photo.sha256)}">{name}</span>'
        rows.append([f"{name}<br><small>{photo.width} x {photo.height} {photo.format}</small>", terms, splits[photo.id]])
    return html_table(["Photograph, with its source", "Author, licence, package, SHA-256", "Split"], rows, "photo-list cards", download)
