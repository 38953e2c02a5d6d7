from anl import source_tables
from anl.data import registry


def test_every_set_has_its_row_and_the_prose_its_numbers(tmp_path):
    values = source_tables.write(tmp_path)
    sources = registry.load()
    for name in ("sources.html", "traps.html"):
        text = (tmp_path / name).read_text()
        assert all(text.count(f"<code>{source}</code>") == 1 for source in sources)
    assert values["count"] == str(len(sources)) and values["verified"] == "`cifake`"
    assert sum(int(values[access]) for access in registry.ACCESS) == len(sources)
    assert "<td>cifake" not in text and "<td class=num>50,000</td>" in (tmp_path / "counts.html").read_text()


def test_nothing_of_the_registry_is_taken_for_html(tmp_path):
    source = registry.get("genimage")
    assert '"' in source.trap and "&quot;overlapped components&quot;" in source_tables.trap_table([source])
