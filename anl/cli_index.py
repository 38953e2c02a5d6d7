"""The commands that read published sets: `anl index DIR` and `anl audit MANIFEST`."""

from anl.errors import UserError


def add_index(command):
    """Add `anl index`; command: as `anl.cli.make_parser` defines it."""
    sub = command("index", index, "list a data set's images in a manifest: guesses the folders' layout, resumes after a kill",
                  "anl index data/cifake --out data/cifake.parquet")
    sub.add_argument("folder", metavar="DIR", help="the data set's root")
    sub.add_argument("--layout", help="the folders' layout, where it cannot be guessed (an unknown name prints the list)")
    sub.add_argument("--columns", metavar="IMAGE,LABEL[,GENERATOR]", help="the columns of a set in Parquet files, where they "
                     "cannot be found (0 and `real` are real, 1 and `fake` are generated)")
    sub.add_argument("--dataset", help="the set's name in the manifest (default: the layout's, or the folder's)")
    sub.add_argument("--out", metavar="MANIFEST.parquet", help="default: DIR.parquet, beside the folder")
    sub.add_argument("--headers", action="store_true", help="read headers only: faster, but damage inside a file and "
                     "near-duplicates are not found")
    sub.add_argument("--one-class", action="store_true", help="accept a set without real, or without generated, images")
    sub.add_argument("--workers", type=int, help="processes (default: one a core)")


def add_audit_arguments(sub):
    """Let `anl audit` take a manifest."""
    sub.add_argument("manifest", nargs="?", metavar="MANIFEST", help="a manifest of `anl index`: metadata that tells the "
                     "classes apart, duplicates, shared reals (default: the embedded benchmark's own audit)")
    sub.add_argument("--check", action="store_true", help="with MANIFEST: exit 1 where anything is suspect")


def index(options):
    import os
    from pathlib import Path

    from anl.data import indexing, parquet

    names = options.columns.split(",") if options.columns else None
    if names and (len(names) not in (2, 3) or not all(names)):
        raise UserError(f"--columns {options.columns}: give two names, IMAGE,LABEL, or three, IMAGE,LABEL,GENERATOR")
    columns = parquet.Columns(*names, *([None] if len(names) == 2 else [])) if names else None
    if options.workers is not None and options.workers < 1:
        raise UserError(f"--workers {options.workers}: give 1 or more")
    out = Path(options.out or f"{os.path.normpath(options.folder)}.parquet")
    found = indexing.index(options.folder, out, options.layout, options.dataset, expected_counts,
                           decode=not options.headers, workers=options.workers, one_class=options.one_class,
                           columns=columns)
    print(table_text(("split", "generator", "label", "images", "skipped", "expected"), found.rows))
    for note in found.notes:
        print(f"note: {note}")
    print(f"{out}: {found.images} images")
    print(f"{out}.skipped.csv: {found.skipped} left out, each with its reason")


def expected_counts(dataset):
    """{(split, generator, label): images} that the registry expects of a data set, None for all together; else {}."""
    from anl.data import registry
    from anl.data.generator_names import canonical
    from anl.data.layouts import SPLITS

    source = registry.load().get(dataset.lower().replace("_", "-"))
    return {(SPLITS.get(count.split, count.split), count.generator and canonical(count.generator), count.label): count.images
            for count in (source.counts if source else ())}


def audit(options):
    from anl import manifest_audit

    suspects = manifest_audit.run(options.manifest)
    return int(bool(suspects) and options.check)


def table_text(columns, rows):
    """Rows as aligned text, numbers to the right, None as a blank."""
    cells = [list(columns)] + [["" if cell is None else f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in row]
                               for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells)]
    numbers = [any(isinstance(row[i], (int, float)) for row in rows) for i in range(len(columns))]
    return "\n".join("  ".join(cell.rjust(width) if number else cell.ljust(width) for cell, width, number
                               in zip(line, widths, numbers)).rstrip() for line in cells)
