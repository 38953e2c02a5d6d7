"""No result is typed into the prose: numbers that equal one must come from `results/` by their key."""

import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = [*sorted((ROOT / "book").glob("*.md")), *sorted((ROOT / "book/committed").rglob("*.md.txt")), ROOT / "README.md"]
NUMBER = re.compile(r"(?<![\w.])[\u2212-]?\d+\.\d{2,}(?![\w.]*\d)")
# what only happens to equal a result: page, number, and what it is
CHANCE = {
    ("calibration.md", "0.693"): "the logarithm of 2, a constant",
}


def significant(text):
    """Whether a decimal has two significant digits after the point, so that equality is hardly chance."""
    return len(text.partition(".")[2].lstrip("0")) >= 2


def results():
    """The decimals of every value of every stored notebook: as their text says, and rounded to fewer digits."""
    found = set()
    for path in (ROOT / "results").glob("*/*/values.json"):
        for entry in json.loads(path.read_text(encoding="utf-8")).values():
            texts = NUMBER.findall(entry["text"])
            texts += [f"{entry[key]:.{digits}f}" for key in ("value", "low", "high") for digits in (2, 3, 4)
                      if isinstance(entry.get(key), float)]
            found |= {text.lstrip("\u2212-") for text in texts if significant(text)}
    return found


def typed(text):
    """Decimals a person typed: not of placeholders, code, formulas, or what `anl claims` writes into the README."""
    for pattern in (r"<!-- claims:start -->.*?<!-- claims:end -->", r"```bash\n.*?```", r"\{\{.*?\}\}", r"`[^`\n]*`",
                    r"\$\$.*?\$\$", r"\$[^$\n]*\$"):
        text = re.sub(pattern, " ", text, flags=re.DOTALL)
    return [number for number in NUMBER.findall(text) if significant(number)]


def test_prose_holds_no_result_that_was_typed():
    known = results()
    assert len(known) > 500
    found = [(page.name, number) for page in PAGES for number in typed(page.read_text(encoding="utf-8"))
             if number.lstrip("\u2212-") in known]
    assert set(found) <= set(CHANCE), sorted(set(found) - set(CHANCE))


def test_a_typed_result_is_found_and_a_substituted_one_is_not():
    assert typed("gains \u22120.144 [0.086, 0.21], `0.123` and {{ a.b }}; $0.125$ of 10.5") == [
        "\u22120.144", "0.086", "0.21"]
    assert "0.144" in results()


def test_exceptions_are_still_needed():
    for page, number in CHANCE:
        path = next(path for path in PAGES if path.name == page)
        assert number in typed(path.read_text(encoding="utf-8")) and number in results(), (page, number)
