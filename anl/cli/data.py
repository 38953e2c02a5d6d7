"""`anl data`: list, fetch, index and audit public data sets."""

import dataclasses
import json
import os
import sys
from pathlib import Path

import typer

from anl.cli.console import configuration, print_frame, print_table, result, write_csv
from anl.io import UserError, pick

app = typer.Typer(help="Public data sets: list, fetch, index and audit them.")


@app.command("list")
def data_list(as_json: bool = typer.Option(False, "--json", help="Print all that is known, as JSON.")):
    """List the field's public data sets: size, how to get them, licence."""
    from anl.data.registry import ACCESS, load

    sources = load().values()
    if as_json:
        return print(json.dumps([dataclasses.asdict(source) for source in sources], indent=1))
    print_table(("id", "size", "access", "licence"),
                [(source.id, source.size, ACCESS[source.access], source.licence) for source in sources])
    print("\n`anl data fetch ID` shows more about one of them: terms, format trap, citation")


@app.command("fetch")
def data_fetch(name: str = typer.Argument(metavar="ID", help="A data set of `anl data list`."),
               accept: bool = typer.Option(False, "--accept-licence", help="You have read and accept the licence and terms."),
               source: Path = typer.Option(None, "--from", metavar="PATH", help="An archive, a folder of the archives, "
                                           "or a folder of the data (used where it is), instead of a download."),
               to: Path = typer.Option(None, metavar="DIR", help="Destination; default: data/sources/ID."),
               revision: str = typer.Option(None, metavar="COMMIT", help="Another commit of a data set of the hub.")):
    """Show a data set's licence and terms and, with --accept-licence, fetch it. An interrupted download continues."""
    from anl.data import fetch, registry

    known = registry.load()
    item = known[pick("data set", name, known)]
    print_table((), source_card(item))
    if item.steps and source is None:
        verb = "may" if item.access == "agreement" else "can"
        print(f"\nNo program {verb} download it; by hand, from the page above:")
        steps = [*item.steps, f"anl data fetch {item.id} --from PATH --accept-licence"]
        print_table((), [(f"  {place}.", step) for place, step in enumerate(steps, 1)])
    if not accept:
        how = "" if item.access in ("direct", "hub") else " and --from PATH"
        raise UserError(f"nothing was fetched: read the licence and the terms above, then add --accept-licence{how}")
    sys.stdout.flush()
    done = fetch.fetch(item, to, source, revision)
    place = ("was there already, in" if done.already else
             "stays where it is, in" if done.record.parent != done.folder else "is in")
    print(f"\n{item.id} {place} {done.folder}: {done.images:,} images, {done.bytes:,} bytes; recorded in {done.record}")
    if item.images is None:
        print("the registry does not know how many images it should have")
    elif item.images != done.images:
        print(f"the registry expects {item.images:,} images: this is another edition, or a part of it", file=sys.stderr)
    if done.note:
        print(done.note, file=sys.stderr)
    print(f"next: anl data index {done.folder}")


def source_card(source):
    """(field, text) rows of all that a person should read before fetching a data set."""
    from anl.data.registry import ACCESS, UNKNOWN, size_text

    def counted(count):
        label = {0: "real", 1: "generated", None: None}[count.label]
        words = [count.split, count.generator if count.generator != "real" else None, label]
        return f"{count.images:,} {' '.join(filter(None, words)) or 'in all'}"

    def described(file):
        known = [file.sha256 and f"SHA-256 {file.sha256}", file.md5 and f"MD5 {file.md5}",
                 file.bytes and f"{file.bytes:,} bytes"]
        return f"{file.name}: {', '.join(filter(None, known)) or f'size and hash {UNKNOWN}'}"

    files = [("file", described(file)) for file in source.files] or [
        ("hash", f"commit {source.hub.revision or UNKNOWN}" if source.hub else f"{UNKNOWN}: nothing to compare with")]
    unpacked = f", {size_text(source.unpacked_bytes)} unpacked" if source.bytes and source.unpacked_bytes else ""
    images = "; ".join([*map(counted, source.counts), *([] if source.counts_complete else ["others unknown"])])
    return [("data set", f"{source.id}: {source.title}"), ("contents", source.contents), ("page", source.home),
            ("host", f"{source.host} ({ACCESS[source.access]})"), ("size", source.size + unpacked),
            ("licence", source.licence), ("terms", source.terms), *files, ("tree", source.tree),
            ("images", images if source.counts else UNKNOWN), ("format trap", source.trap), ("cite", source.citation),
            ("evidence", source.evidence + ("" if source.verified else "; not verified by us: trust the page"))]


@app.command("index")
def data_index(folder: Path = typer.Argument(metavar="FOLDER", help="The data set's root."),
               layout: str = typer.Option(None, help="Layout of the folders, if it cannot be guessed."),
               columns: str = typer.Option(None, metavar="IMAGE,LABEL[,GENERATOR]", help="Columns of a set in Parquet "
                                           "files, if they cannot be found (0, `real`: real; 1, `fake`: generated)."),
               dataset: str = typer.Option(None, help="Name in the manifest; default: the layout's, or the folder's."),
               out: Path = typer.Option(None, metavar="FILE.parquet", help="Default: FOLDER.parquet, next to it."),
               headers: bool = typer.Option(False, "--headers", help="Read headers only: faster, but damage inside a "
                                            "file and near-duplicates are not found."),
               one_class: bool = typer.Option(False, "--one-class", help="Accept a set of one class."),
               workers: int = typer.Option(None, min=1, help="Processes; default: up to 16, one for a small set.")):
    """Write a manifest of a folder of images. An interrupted run continues."""
    from anl.data import indexing, parquet, registry

    names = columns.split(",") if columns else None
    if names and (len(names) not in (2, 3) or not all(names)):
        raise UserError(f"--columns {columns}: give IMAGE,LABEL or IMAGE,LABEL,GENERATOR")
    out = out or Path(f"{os.path.normpath(folder)}.parquet")
    found = indexing.index(folder, out, layout, dataset, registry.expected_counts, decode=not headers, workers=workers,
                           one_class=one_class, columns=parquet.Columns(*names) if names else None)
    print_table(("split", "generator", "label", "images", "skipped", "expected"), found.rows)
    print(f"{out}: {found.images} images\n{out}.skipped.csv: {found.skipped} left out, each with its reason")


@app.command("audit")
def data_audit(ctx: typer.Context,
               manifest: Path = typer.Argument(None, help="Written by `anl data index`; default: the profile's benchmark."),
               out: Path = typer.Option(None, metavar="DIR", help="Default: MANIFEST.audit, or results/PROFILE/audit."),
               check: bool = typer.Option(False, "--check", help="Exit with status 1 if anything is suspect.")):
    """Report what could separate the classes without a detector: formats, images shared by splits, similar images."""
    import pandas as pd
    from pyarrow import parquet as pq

    from anl.data import audit, embedded
    from anl.data import manifest as manifests

    if manifest is None:
        config = configuration(ctx)
        rows, out = embedded.read_embedded(config.benchmark.folder), out or result(config, "audit")
    else:
        rows, out = manifests.read(manifest), out or manifest.with_name(f"{manifest.name}.audit")
        extra = [name for name in ("image_id", "group", "pair") if name in pq.read_schema(manifest).names]
        rows = pd.concat([rows, pq.read_table(manifest, columns=extra).to_pandas()], axis=1) if extra else rows
    if rows.empty:
        raise UserError(f"{manifest} lists no images; index the data set again" if manifest else
                        f"{config.benchmark.folder} holds no images; make it with `anl make benchmark`")
    tables = audit.audit(rows)
    for name, table in tables.items():
        write_csv(out / f"{name}.csv", table.head(100_000))
    keys = ["split", "generator", "label"]
    print_frame(rows.groupby(keys, observed=True).size().rename("images").reset_index(), "images")
    print_frame(tables["format_probe"], "classifier that sees metadata only (chance 0.5)")
    print_frame(tables["shared_reals"], "sets of reals")
    unhashed = len(rows) if "phash" not in rows else int(rows["phash"].isna().sum())
    equal, similar = len(tables["duplicates"]), len(tables["near_duplicates"])
    print(f"{equal} images with equal bytes; {similar} pairs of similar images across splits or classes "
          f"({unhashed} images have no perceptual hash)")
    findings = audit.findings(tables)
    print(*(f"suspect: {line}" for line in findings or ["nothing"]), f"tables: {out}", sep="\n")
    return int(bool(findings) and check)
