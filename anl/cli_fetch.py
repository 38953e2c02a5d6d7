"""`anl fetch`: the list of data sets, what one of them is and allows, and getting it."""

import json
import sys
import textwrap
from dataclasses import asdict

from anl.errors import UserError

WIDTH = 110


def add(command):
    """Register the subcommand; `command` is that of anl.cli."""
    sub = command("fetch", fetch, "list the field's public data sets, or get one of them",
                  "anl fetch cifake --from archive.zip --accept-licence")
    sub.add_argument("id", nargs="?", metavar="ID", help="a data set of the list; none prints the list")
    sub.add_argument("--accept-licence", action="store_true", help="you have read the licence and the terms, and take them")
    sub.add_argument("--from", dest="source", metavar="PATH", help="an archive, a folder of the archives, or a folder of the "
                     "data (then indexed where it is), instead of a download")
    sub.add_argument("--to", metavar="DIR", help="the data set's folder (default: data/sources/ID)")
    sub.add_argument("--revision", metavar="COMMIT", help="another commit of a data set of the hub")
    sub.add_argument("--json", action="store_true", help="print the list, or all that is known of one, as JSON; gets nothing")


def fetch(options):
    from anl.data import registry

    if options.json:
        chosen = [registry.get(options.id)] if options.id else registry.load().values()
        rows = [asdict(source) for source in chosen]
        print(json.dumps(rows[0] if options.id else rows, indent=1))
        return
    if options.id is None:
        if options.source or options.to or options.accept_licence or options.revision:
            raise UserError("which data set? write `anl fetch ID ...`; `anl fetch` alone lists them")
        print(listing(registry.load().values()))
        return
    source = registry.get(options.id)
    print(card(source))
    if source.steps and options.source is None:
        print("\n" + steps(source))
    if not options.accept_licence:
        raise UserError(f"nothing was fetched: read the licence and the terms above, then add --accept-licence{_how(source)}")
    sys.stdout.flush()
    _get(source, options)


def _get(source, options):
    from anl.data import fetch as fetching

    done = fetching.fetch(source, options.to, options.source, options.revision)
    where = "was there already, in" if done.already else \
        "stays where it is, in" if done.record.parent != done.folder else "is in"
    print(f"\n{source.id} {where} {done.folder}: {done.images:,} images, {done.bytes:,} bytes; recorded in {done.record}")
    if source.images is None:
        print("how many images it should have is unknown to the registry")
    elif source.images != done.images:
        print(f"anl fetch: the registry expects {source.images:,} images: this is another edition, or a part", file=sys.stderr)
    else:
        print("as many as the registry expects")
    if done.note:
        print(f"anl fetch: {done.note}", file=sys.stderr)
    print(f"now run `anl index {done.folder}`")


def listing(sources):
    """A table of all data sets for a terminal: id, size, access, licence."""
    from anl.data.registry import ACCESS

    rows = [("id", "size", "how", "licence")]
    rows += [(source.id, source.size, ACCESS[source.access], source.licence) for source in sources]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = ["  ".join([*(cell.ljust(width) for cell, width in zip(row, widths)), row[3]]).rstrip() for row in rows]
    return "\n".join([*lines, "", "`anl fetch ID` tells more of one of them: terms, format trap, citation"])


def card(source):
    """All that a person should read before taking a data set."""
    from anl.data.registry import ACCESS, UNKNOWN, size_text

    lines = [f"{source.id}: {source.title}"]

    def line(name, text):
        lines.append(textwrap.fill(text, WIDTH, initial_indent=f"  {name:12}", subsequent_indent=" " * 14,
                                   break_long_words=False, break_on_hyphens=False))

    line("contents", source.contents)
    line("page", source.home)
    line("lies at", f"{source.host} ({ACCESS[source.access]})")
    line("size", source.size + (f", {size_text(source.unpacked_bytes)} unpacked" if source.bytes and source.unpacked_bytes
                                else ""))
    line("licence", source.licence)
    line("terms", source.terms)
    for file in source.files:
        known = [f"SHA-256 {file.sha256}" if file.sha256 else "", f"MD5 {file.md5}" if file.md5 else "",
                 f"{file.bytes:,} bytes" if file.bytes else ""]
        line("file", f"{file.name}: {', '.join(filter(None, known)) or 'size and hash ' + UNKNOWN}")
    if not source.files:
        line("hash", f"{UNKNOWN}: what you get is recorded, and cannot be compared"
             if source.hub is None else f"the commit says it: {source.hub.revision or UNKNOWN + ', give --revision'}")
    line("tree", source.tree)
    if source.counts:
        line("images", "; ".join(map(_count, source.counts)) + ("" if source.counts_complete else "; others unknown"))
    else:
        line("images", UNKNOWN)
    line("format trap", source.trap)
    line("cite", source.citation)
    line("known from", source.evidence + ("" if source.verified else "; not verified by us: the page is what counts"))
    return "\n".join(lines)


def steps(source):
    """What a person has to do, step by step."""
    numbered = [textwrap.fill(step, WIDTH, initial_indent=f"  {number}. ", subsequent_indent="     ", break_long_words=False,
                              break_on_hyphens=False) for number, step in enumerate(source.steps, 1)]
    last = f"  {len(numbered) + 1}. anl fetch {source.id} --from PATH --accept-licence"
    head = "No program may download it" if source.access == "agreement" else "No program can download it"
    return "\n".join([f"{head}; by hand, from the page above:", *numbered, last])


def _how(source):
    return "" if source.access in ("direct", "hub") else " and --from PATH"


def _count(count):
    what = [count.split, count.generator if count.generator != "real" else None,
            {0: "real", 1: "generated", None: None}[count.label]]
    return f"{count.images:,} {' '.join(filter(None, what)) or 'in all'}"
