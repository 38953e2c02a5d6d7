import copy
import dataclasses

import pytest
import yaml

from anl import prior_presets
from anl.data import registry
from anl.errors import UserError

GOOD = {"tiny-set": {
    "title": "Tiny", "contents": "x", "home": "https://example.org", "host": "example.org", "access": "direct",
    "licence": "CC0", "terms": "none", "layout": "binary", "tree": "*", "trap": "none", "citation": "nobody",
    "evidence": "made up", "verified": False, "files": [{"name": "a.zip", "url": "https://example.org/a.zip"}],
    "counts": [{"split": "train", "label": 0, "images": 3}, {"split": "train", "label": 1, "images": 4}]}}


def load(entries, tmp_path):
    (tmp_path / "registry.yaml").write_text(yaml.safe_dump(entries))
    return registry.load(tmp_path / "registry.yaml")


def changed(**fields):
    """GOOD with fields set, or taken out where None."""
    entries = copy.deepcopy(GOOD)
    entries["tiny-set"] |= fields
    for name in [name for name, value in fields.items() if value is None]:
        del entries["tiny-set"][name]
    return entries


def test_the_fields_sets_are_there():
    asked = {"cifake", "forensynths", "genimage", "tiny-genimage", "diffusionforensics", "univfd", "drct-2m", "synthbuster",
             "wildrf", "aigibench", "community-forensics", "openfake", "chameleon", "faceforensics", "celeb-df", "df40",
             "diff"}
    assert asked <= set(registry.load())


def test_what_is_by_agreement_can_never_be_downloaded():
    for source in registry.load().values():
        if source.access in ("agreement", "manual"):
            assert source.steps and source.hub is None and not any(file.url for file in source.files), source.id
    assert registry.get("chameleon").access == "agreement"


def test_only_what_was_opened_is_verified():
    """Whoever opens another set counts it, and adds it here."""
    assert [source.id for source in registry.load().values() if source.verified] == ["cifake"]


def test_cifake_adds_up():
    source = registry.get("cifake")
    by = {(count.split, count.label): count.images for count in source.counts}
    assert by == {("train", 0): 50000, ("train", 1): 50000, ("test", 0): 10000, ("test", 1): 10000}
    assert source.images == 120_000 and source.size == "111 MB unpacked"


def test_the_priors_warnings_name_sets_that_exist():
    """anl.prior_presets: a benchmark there is a data set here, or a part of one."""
    ids = set(registry.load())
    for preset in prior_presets.PRESETS.values():
        for benchmark in preset.overlaps:
            assert benchmark in ids or benchmark.rsplit("-", 1)[0] in ids, benchmark


def test_the_table_has_a_row_each_and_unknown_stays_unknown():
    table = registry.table().set_index("id")
    assert list(table.index) == list(registry.load())
    assert table.loc["forensynths", "size"] == "20.1 GB" and table.loc["synthbuster", "size"] == "unknown"
    assert table["images"].isna().any() and table.loc["tiny-genimage", "images"] == 35000


def test_a_good_file_is_typed(tmp_path):
    source = load(GOOD, tmp_path)["tiny-set"]
    assert source.files == (registry.File("a.zip", "https://example.org/a.zip"),) and source.bytes is None
    assert source.counts[1] == registry.Count(4, "train", None, 1)
    assert source.images is None  # not said to be complete
    with pytest.raises(dataclasses.FrozenInstanceError):
        source.licence = "another"


@pytest.mark.parametrize("fields, words", [
    ({"licence": None}, "tiny-set: 'licence' is missing"), ({"lisence": "x"}, "unknown field 'lisence'"),
    ({"licence": " "}, r"tiny-set.licence: a text is needed"), ({"licence": 4}, "a text is needed, not 4"),
    ({"bytes": -1}, "a whole number above 0"), ({"bytes": 1.5}, "a whole number"), ({"bytes": True}, "a whole number"),
    ({"bytes": "20 GB"}, "a whole number"), ({"verified": "yes"}, "true or false"), ({"access": "ftp"}, "choose one of direct"),
    ({"layout": "heap"}, "layout is 'heap'; choose one of binary"), ({"files": None}, "`files` with a `url` each"),
    ({"files": [{"name": "a.zip"}]}, "`files` with a `url` each"), ({"files": "a.zip"}, "a list is needed"),
    ({"files": ["a.zip"]}, "files is not a mapping"), ({"access": "manual", "steps": ["x"]}, "access has to be direct, not manual"),
    ({"access": "manual", "files": None}, "`steps` for a person"), ({"access": "hub", "files": None}, "`hub` goes with access"),
    ({"hub": {"repo": "a/b"}}, "`hub` goes with access hub"), ({"counts": [{"label": 0}]}, "'images' is missing"),
    ({"counts": [{"images": 3, "label": 2}]}, r"label: 0 \(real\) or 1"), ({"counts": [{"images": 0}]}, "above 0"),
    ({"counts_complete": True, "counts": None}, "counts_complete without counts"), ({"steps": "x"}, "a list of texts"),
    ({"files": [{"name": "../a", "url": "https://x/a"}]}, "no plain file name"),
    ({"files": [{"name": "a", "url": "http://x/a"}]}, "no https address"),
    ({"files": [{"name": "a", "url": "https://x/a", "into": "../b"}]}, "leaves the data set's folder"),
    ({"files": [{"name": "a", "url": "https://x/a", "sha256": "abc"}]}, "64 lower-case hex digits"),
    ({"files": [{"name": "a", "url": "https://x/a", "md5": "A" * 32}]}, "32 lower-case hex digits"),
    ({"files": [{"name": "a", "url": "https://x/1"}, {"name": "a", "url": "https://x/2"}]}, "two files have one name"),
    ({"access": "hub", "files": None, "hub": {"repo": "a/b", "revision": "main"}}, "40 lower-case hex digits"),
    ({"access": "hub", "files": None, "layout": "parquet", "hub": {"repo": "a/b"}}, "image, label and generator columns"),
])
def test_a_bad_entry_names_the_set_and_the_field(fields, words, tmp_path):
    with pytest.raises(UserError, match=words) as problem:
        load(changed(**fields), tmp_path)
    assert "registry.yaml: tiny-set" in str(problem.value)


@pytest.mark.parametrize("text, words", [("", "holds no data sets"), ("[1]", "holds no data sets"), ("a: [", "as YAML"),
                                         ("a: 3", "a is not a mapping"), ("A b: {}", "lower-case letters")])
def test_files_that_are_no_registry(text, words, tmp_path):
    (tmp_path / "registry.yaml").write_text(text)
    with pytest.raises(UserError, match=words):
        registry.load(tmp_path / "registry.yaml")
    with pytest.raises(UserError, match="cannot be read"):
        registry.load(tmp_path / "none.yaml")


def test_an_unknown_id_names_those_there_are():
    with pytest.raises(UserError, match="no data set 'cifar'; choose one of cifake, forensynths"):
        registry.get("cifar")


@pytest.mark.parametrize("count, text", [(5, "5 B"), (999, "999 B"), (1500, "1.5 kB"), (110_717_853, "111 MB"),
                                         (8_360_000_000, "8.36 GB"), (1_100_000_000_000, "1.1 TB")])
def test_sizes_in_words(count, text):
    assert registry.size_text(count) == text
