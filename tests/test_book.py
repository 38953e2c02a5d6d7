import dataclasses
import json
import re
import shutil
from html.parser import HTMLParser
from urllib.parse import unquote, urlsplit

import pytest

from anl import book, claims, tables
from anl.errors import UserError
from anl.files import sha256_of, write_csv, write_json
from tests import synthetic

OURS = ["index", "paper", "method", "protocol", "data_card", "sources", "claims", "cross_generator", "step_t", "attention",
        "targets", "peers", "families", "cifake", "robustness", "calibration", "detector", "gallery", "cost", "data", "prior",
        "demo", "use", "limits", "rerun", "scale", "scale_launch", "glossary", "bibliography"]


class Page(HTMLParser):
    """What a page links to, loads, names, shows and says."""

    def __init__(self, path):
        super().__init__()
        self.links, self.loads, self.ids, self.images, self.text, self.silent = [], [], set(), [], [], 0
        self.feed(path.read_text(encoding="utf-8"))
        self.text = " ".join(" ".join(self.text).split())

    def handle_starttag(self, tag, attributes):
        got = dict(attributes)
        self.ids |= {got[key] for key in ("id", "name") if got.get(key)}
        self.silent += tag in ("script", "style")
        if tag == "a" and got.get("href"):
            self.links.append(got["href"])
        if tag == "link" and got.get("rel") not in ("next", "prev", "search", "index", "canonical"):
            self.loads.append(got.get("href", ""))
        if tag in ("script", "img", "iframe", "source", "video", "audio", "embed") and got.get("src"):
            self.loads.append(got["src"])
        if tag == "img":
            self.images.append((got.get("src"), got.get("alt")))

    def handle_endtag(self, tag):
        self.silent -= tag in ("script", "style")

    def handle_data(self, data):
        if not self.silent:
            self.text.append(data)


@pytest.fixture(scope="module")
def pages(built_book):
    return {path.relative_to(built_book).as_posix(): Page(path) for path in sorted(built_book.rglob("*.html"))
            if "_static" not in path.parts}


def test_every_page_is_there_with_the_banner(pages):
    for name in [f"{page}.html" for page in OURS] + [f"generated/notebooks/{name}.html" for name in book.NOTEBOOKS]:
        assert "Numbers of profile small , 3 seeds." in pages[name].text, name
        assert "speak of the mechanism, not of the paper's tables" in pages[name].text


def test_text_holds_no_leftovers(pages):
    for name, page in pages.items():
        text = re.sub(r"\\\[.*?\\\]|\\\(.*?\\\)", "", page.text)  # formulas may hold }}
        found = re.search(r"\{\{|\}\}|\bnan\b|\bNone\b|Traceback", text)
        assert not found, f"{name}: {found} in ...{text[max(0, found.start() - 60):found.end() + 60]}"


def test_numbers_are_substituted(pages):
    assert "0.021 [0.004, 0.038]" in pages["index.html"].text
    assert "\N{MINUS SIGN}0.004 [\N{MINUS SIGN}0.024, 0.016]" in pages["cross_generator.html"].text


def test_internal_links_and_anchors_resolve(pages, built_book):
    dead = []
    for name, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (built_book / name).parent / unquote(parts.path) if parts.path else built_book / name
            key = target.resolve().relative_to(built_book.resolve()).as_posix()
            if not target.exists() or (parts.fragment and key in pages
                                       and unquote(parts.fragment) not in pages[key].ids):
                dead.append(f"{name} -> {link}")
    assert not dead


def test_nothing_is_loaded_from_elsewhere(pages, built_book):
    for name, page in pages.items():
        for source in page.loads:
            parts = urlsplit(source)
            assert parts.scheme in ("", "data") and not parts.netloc, f"{name} loads {source}"
            if not parts.scheme:
                assert ((built_book / name).parent / unquote(parts.path)).exists(), f"{name} lacks {source}"
    for path in built_book.rglob("*.css"):
        found = re.search(r"(url\(|@import)\s*[\"']?(https?:)?//", path.read_text(encoding="utf-8"))
        assert not found, f"{path.name} loads from elsewhere"


def test_images_have_alt_text_that_says_what_to_see(pages):
    for name in OURS:
        for source, alt in pages[f"{name}.html"].images:
            assert alt and len(alt) > 40, f"{name}: {source}"


def test_front_page_says_how_to_cite(pages):
    text = pages["index.html"].text
    assert "Cite this" in text and "as a reproducible paper" in text and "{The authors of anl}" in text


def test_data_card_lists_every_photograph(pages):
    text = pages["data_card.html"].text
    card = (synthetic.ROOT / "data/photos.csv").read_text(encoding="utf-8").splitlines()[1:]
    assert len(re.findall(r"\b[0-9a-f]{64}\b", text)) == len(card)


def test_prepare_writes_the_same_bytes_twice(tmp_path):
    copy, _ = synthetic.prepared_book(tmp_path)
    first = sha256_of(copy / "generated")
    synthetic.prepared_book(tmp_path)
    assert sha256_of(copy / "generated") == first
    assert not (copy / ".generated.new").exists()


def test_unknown_key_and_unprepared_book_stop_the_build(tmp_path):
    copy, _ = synthetic.prepared_book(tmp_path)
    with open(copy / "limits.md", "a", encoding="utf-8") as page:
        page.write("\n{{ cross_generator.no_such }}\n")
    done = synthetic.build(copy)
    assert done.returncode != 0
    assert re.search(r"limits.md:\d+: cross_generator.no_such", done.stdout + done.stderr)
    (copy / "generated/values.json").unlink()
    done = synthetic.build(copy)
    assert done.returncode != 0 and "run `anl book`" in done.stdout + done.stderr


def prepare(tmp_path, settings, results):
    return book.prepare(settings, results=results, book=tmp_path / "book", claims_path=synthetic.ROOT / "claims.yaml",
                        provenance=tmp_path / "provenance", pipeline=synthetic.ROOT / "dvc.yaml",
                        notebooks=synthetic.ROOT / "notebooks", citation=synthetic.ROOT / "CITATION.cff",
                        cache=synthetic.ROOT / ".cache/anl")


def test_missing_broken_and_nan_results_are_named(tmp_path):
    copy, settings = synthetic.prepared_book(tmp_path)
    before, results = sha256_of(copy / "generated"), tmp_path / "results"
    notebook = results / "small/step_t/step_t.ipynb"
    synthetic.write_notebook(notebook, "step_t", error=True)
    with pytest.raises(UserError, match="cell 2 ended in an error.*dvc repro step_t"):
        prepare(tmp_path, settings, results)
    notebook.unlink()
    with pytest.raises(UserError, match="step_t.ipynb, which is missing.*dvc repro step_t"):
        prepare(tmp_path, settings, results)
    synthetic.write_results(tmp_path)
    (results / "small/cross_generator/controls.png").unlink()
    with pytest.raises(UserError, match="cross_generator.md shows .*controls.png.*dvc repro cross_generator"):
        prepare(tmp_path, settings, results)
    synthetic.write_results(tmp_path)
    values = json.loads((results / "small/cross_generator/values.json").read_text())
    values["seen_AP_anl"]["text"] = "nan"
    write_json(results / "small/cross_generator/values.json", values)
    with pytest.raises(UserError, match="'seen_AP_anl' is 'nan'"):
        prepare(tmp_path, settings, results)
    assert sha256_of(copy / "generated") == before  # a failed call leaves the last good one


def test_smoke_banner_says_that_its_numbers_mean_nothing(tmp_path):
    _, settings = synthetic.prepared_book(tmp_path)
    assert "mean nothing" in book.banner(dataclasses.replace(settings, profile="smoke"))


def test_every_figure_and_table_tells_where_it_comes_from(built_book):
    for name in OURS:
        text = (built_book / f"{name}.html").read_text(encoding="utf-8")
        figures = re.findall(r"</figure>\s*(?:<div.*?</div>\s*)?(<details class=\"origin\">)?", text)
        assert name == "demo" or all(figures), name  # its figures are drawn from the reader's own picture
        tables = re.findall(r"</table></div></div>\s*(<details class=\"origin\">)?", text)
        assert name in ("data_card", "sources", "scale") or all(tables), name


def test_csv_table_of_methods_has_a_column_each(tmp_path):
    write_csv(tmp_path / "t.csv", synthetic.tables()["cross_generator"]["summary"])
    text = tables.csv_table(tmp_path / "t.csv", {"metric": "AP", "view": "matched"})
    assert "plain [95\N{NO-BREAK SPACE}%]" in text and "anl [95\N{NO-BREAK SPACE}%]" in text and text.count("<tr>") == 5
    assert '<th scope="col">Seeds</th><th scope="col">n</th>' in text and text.count(">800</td>") == 4
    assert "mean of unseen" in text and "balanced" not in text


@pytest.mark.parametrize("text, shown", [("-0.25", "\N{MINUS SIGN}0.250"), ("-0.0001", "\N{MINUS SIGN}0.0001"),
                                         ("-0.0", "0.000"), ("4632624", "4,632,624"), ("", "\N{EN DASH}"),
                                         ("t100", "t100"), ("True", "yes"), ("12345.6", "12346")])
def test_number(text, shown):
    assert tables.number(text) == shown


def test_signed():
    assert tables.signed("-0.000 [-0.010, -0.000] jpeg-96") == "0.000 [\N{MINUS SIGN}0.010, 0.000] jpeg-96"


def test_csv_table_joins_intervals_and_escapes(tmp_path):
    write_csv(tmp_path / "t.csv", [{"method": "<anl>", "mean": -0.25, "low": -0.5, "high": 0.1, "n": 40,
                                    "ap_colour": 0.5, "ap_colour_low": 0.4, "ap_colour_high": 0.6}])
    text = tables.csv_table(tmp_path / "t.csv")
    assert "&lt;anl&gt;" in text and "\N{MINUS SIGN}0.250 [\N{MINUS SIGN}0.500, 0.100]" in text
    assert "AP colour [95\N{NO-BREAK SPACE}%]" in text and "0.500 [0.400, 0.600]" in text and ">40<" in text
    assert text.count("<th") == 5  # head's own tag and four columns


def test_a_table_cell_that_is_no_number_is_named_by_its_line(tmp_path):
    (tmp_path / "t.csv").write_text("method,mean\nplain,0.5\nanl,nan\n")
    with pytest.raises(UserError, match="t.csv, line 3: 'mean' is 'nan', not a number; make it again with `dvc repro x`"):
        tables.csv_table(tmp_path / "t.csv", mend="dvc repro x")


def test_long_texts_turn_into_cards_that_name_their_columns():
    text = tables.html_table(["Method", "What"], [["a", "x" * 80]])
    assert '<table class="table cards">' in text and '<td data-head="What">' in text
    assert "data-head" not in tables.html_table(["Method", "What"], [["a", "<b>x</b>"]])


def test_verdicts_by_view_have_a_row_a_claim(tmp_path):
    write_csv(tmp_path / "t.csv", synthetic.tables()["claims"]["by_view"])
    text = tables.csv_table(tmp_path / "t.csv")
    assert text.count("<tr>") == 2 and text.count('class="verdict reproduced"') == 3 and "3 seeds, n = 800" in text
    assert "View jpeg96" in text and text.count("0.100 [0.050, 0.200]") == 3


def test_the_claims_of_the_active_profile_stand_beside_the_stored_ones(tmp_path):
    results = synthetic.write_results(tmp_path)
    judged = claims.evaluate(results / "small", synthetic.ROOT / "claims.yaml")
    stored = json.loads((synthetic.ROOT / "results/full/claims.json").read_text())
    text = book.verdict_table(judged, stored=stored)
    assert "Profile small, 3 seeds" in text and "Profile full, 5 seeds" in text
    first = re.search(r"<tbody>\n<tr>.*?</tr>", text, re.DOTALL)[0]  # decided in `full` alone
    other = next(claim for claim in stored if claim["id"] == judged[0]["id"])
    assert first.count('class="verdict') == 2 and "not run here" in first and other["verdict"] in first
    assert tables.prose(other["measures"][0]["text"]) in first and "not run here</b>" not in first
    assert "holds up to 5 %" in book.verdict_table(stored) and "holds if its 95 % interval lies above 0" in text
    ledger = book.ledger(judged, stored)
    assert f"as stored: **{other['verdict']}**" in ledger and f"```bash\n{judged[0]['command']}\n```" in ledger
    assert "Profile full" not in book.verdict_table(judged)


FAULTS = {"a dead page": ("[x](no_such_page.md)", "no_such_page.md"), "a dead anchor": ("{ref}`no-such-label`", "no-such-label"),
          "a figure without words": ("```{figure} shown.png\nA caption.\n```", "tiny.md shows shown.png without alternative text"),
          "an unknown work": ("{cite:p}`nobody2020`", "nobody2020"), "an unknown number": ("{{ step_t.no_such }}", "tiny.md:3: step_t.no_such")}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_a_page_stops_the_build_and_is_named(built_book, tmp_path, fault):
    text, message = FAULTS[fault]
    source, copy = built_book.parents[1], tmp_path / "book"
    (copy / "generated").mkdir(parents=True)
    for name in ("_config.yml", "references.bib", "generated/values.json"):
        shutil.copyfile(source / name, copy / name)
    shutil.copytree(source / "_static", copy / "_static", ignore=shutil.ignore_patterns("vendor"))
    synthetic.draw_figure(copy / "shown.png")
    (copy / "_toc.yml").write_text("format: jb-book\nroot: tiny\n")
    (copy / "tiny.md").write_text(f"# Tiny\n\n{text}\n")
    done = synthetic.build(copy)
    assert done.returncode != 0 and message in done.stdout + done.stderr, (done.stdout + done.stderr)[-1500:]
