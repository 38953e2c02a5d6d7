"""The book's tables of the field's data sets, from the registry: what and how, traps, expected counts."""

import html

from anl.data import registry
from anl.files import write_text
from anl.tables import html_table


def write(folder):
    """Write sources.html, traps.html and counts.html into `folder`; returns {key: text} for the prose."""
    sources = list(registry.load().values())
    write_text(folder / "sources.html", source_table(sources))
    write_text(folder / "traps.html", trap_table(sources))
    write_text(folder / "counts.html", count_table(sources))
    verified = [f"`{source.id}`" for source in sources if source.verified]
    return {"count": str(len(sources)), "verified": ", ".join(verified) or "none",
            **{access: str(sum(source.access == access for source in sources)) for access in registry.ACCESS}}


def source_table(sources):
    """HTML: a row per data set; its id links to its page."""
    rows = [[f'<a href="{html.escape(source.home)}"><code>{source.id}</code></a>',
             f"{html.escape(source.title)}<br><small>{html.escape(source.contents)}</small>",
             registry.ACCESS[source.access], source.size, html.escape(source.licence), "yes" if source.verified else "no"]
            for source in sources]
    return html_table(["Id", "Data set", "How", "Size", "Licence", "Verified"], rows)


def trap_table(sources):
    """HTML: what goes wrong with each set's formats, and what to cite."""
    rows = [[f"<code>{source.id}</code>", html.escape(source.trap), html.escape(source.citation),
             html.escape(source.evidence)] for source in sources]
    return html_table(["Id", "Format trap", "Cite", "Known from"], rows)


def count_table(sources):
    """HTML: the expected number of images, per set, split, generator and label; only what is known."""
    labels = {0: "real", 1: "generated", None: "both"}
    rows = [[f"<code>{source.id}</code>", count.split or "all", html.escape(count.generator or "all"), labels[count.label],
             f"{count.images:,}"] for source in sources for count in source.counts]
    return html_table(["Id", "Split", "Generator", "Label", "Images"], rows)
