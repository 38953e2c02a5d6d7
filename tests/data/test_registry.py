import copy

import pytest
import yaml

from anl.data import registry
from anl.io import UserError

GOOD = {"tiny-set": {
    "title": "Tiny", "contents": "x", "home": "https://example.org", "host": "example.org", "access": "direct",
    "licence": "CC0", "terms": "none", "layout": "binary", "tree": "*", "trap": "none", "citation": "nobody",
    "evidence": "made up", "verified": False,
    "files": [{"name": "a.zip", "url": "https://example.org/a.zip", "md5": "0" * 32}],
    "counts": [{"split": "train", "label": 0, "images": 3}, {"split": "train", "label": 1, "images": 4}]}}


def load(entries, tmp_path):
    (tmp_path / "registry.yaml").write_text(yaml.safe_dump(entries))
    return registry.load(tmp_path / "registry.yaml")


def changed(**fields):
    """GOOD with fields changed, or removed if None."""
    entries = copy.deepcopy(GOOD)
    entries["tiny-set"] = {name: value for name, value in (entries["tiny-set"] | fields).items() if value is not None}
    return entries


def test_the_committed_registry():
    sources = registry.load()
    assert {"cifake", "forensynths", "genimage", "synthbuster", "aigibench", "community-forensics"} <= set(sources)
    for source in sources.values():  # data sets under an agreement are never downloaded
        if source.access in ("agreement", "manual"):
            assert source.steps and source.hub is None and not any(file.url for file in source.files), source.id
    assert sources["chameleon"].access == "agreement"
    assert [source.id for source in sources.values() if source.verified] == ["cifake"]  # opened and counted by us
    assert sources["cifake"].images == 120_000 and sources["cifake"].size == "111 MB unpacked"
    assert sources["forensynths"].size == "20.1 GB" and sources["synthbuster"].size == "unknown"
    assert registry.expected_counts("cifake")["train", "sd14", 1] == 50000 and registry.expected_counts("none") == {}
    assert all(file.url is None or file.url.startswith("https://") for source in sources.values() for file in source.files)


def test_entries_are_typed(tmp_path):
    source = load(GOOD, tmp_path)["tiny-set"]
    assert source.files == (registry.File("a.zip", "https://example.org/a.zip", md5="0" * 32),) and source.bytes is None
    assert source.images is None and load(changed(counts_complete=True), tmp_path)["tiny-set"].images == 7


@pytest.mark.parametrize("fields, words", [
    ({"licence": None}, "licence: "), ({"colour": "red"}, "colour: "), ({"title": " "}, "title: "),
    ({"bytes": "12"}, "bytes: "),
    ({"bytes": 0}, "bytes: "), ({"verified": "yes"}, "verified: "), ({"access": "free"}, "access: "),
    ({"layout": "tree"}, "layout: .*choose one of binary"), ({"files": None}, "`files` need a `url` and"),
    ({"access": "manual", "steps": ["x"]}, "a file has a `url`"), ({"access": "manual", "files": None}, "`steps` are needed"),
    ({"hub": {"repo": "a/b"}}, "`hub` is needed with access hub"), ({"counts": [{"label": 0}]}, "counts.0.images: "),
    ({"counts": [{"images": 3, "label": 2}]}, "counts.0.label: "),
    ({"counts_complete": True, "counts": None}, "needs `counts`"),
    ({"steps": "x"}, "steps: "), ({"files": [{"name": "../a", "url": "https://x/a"}]}, "files.0.name: "),
    ({"files": [{"name": "a", "url": "https://x/a"}]}, "`files` need a `url` and a `sha256` or `md5`"),
    ({"files": [{"name": "a", "url": "https://x/a", "into": "../b"}]}, "leaves the data set's folder"),
    ({"files": [{"name": "a", "url": "https://x/a", "sha256": "abc"}]}, "files.0.sha256: "),
    ({"access": "manual", "steps": ["x"], "files": [{"name": "a"}, {"name": "a"}]}, "two files have the same name"),
    ({"access": "hub", "files": None, "hub": {"repo": "a/b", "revision": "main"}}, "hub.revision: "),
    ({"access": "hub", "files": None, "layout": "parquet", "hub": {"repo": "a/b"}}, "image, label and generator columns")])
def test_invalid_entries_are_named(fields, words, tmp_path):
    with pytest.raises(UserError, match=f"registry.yaml: tiny-set.*{words}") as problem:
        load(changed(**fields), tmp_path)
    assert "\n" not in str(problem.value)


@pytest.mark.parametrize("text, words", [("", "no registry"), ("[1]", "no registry"), ("a: [", "no registry"),
                                         ("a: 3", "no registry"), ("A b: {}", "A b.id: "),
                                         (None, "no registry .*No such file")])
def test_other_files_are_refused(text, words, tmp_path):
    if text is not None:
        (tmp_path / "registry.yaml").write_text(text)
    with pytest.raises(UserError, match=words):
        registry.load(tmp_path / "registry.yaml")


@pytest.mark.parametrize("count, text", [(5, "5 B"), (1500, "1.5 kB"), (110_717_853, "111 MB"), (1_100_000_000_000, "1.1 TB")])
def test_sizes_as_text(count, text):
    assert registry.size_text(count) == text
