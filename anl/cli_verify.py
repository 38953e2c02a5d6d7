"""The command that proves results by a second run: `anl verify [STAGE ...]`."""

import contextlib
import signal
import sys

STATUS = """exit status: 0 every output is identical or equal within tolerance; 1 one is different, or could not be verified;
2 a mistake to mend; 130 interrupted"""


def add(command):
    """Add the command; command: as `anl.cli.make_parser` defines it."""
    sub = command("verify", verify, "run stages again in a temporary clone with an empty cache, and compare with what is "
                  "committed", f"anl verify cross_generator\n\n{STATUS}")
    sub.add_argument("stages", nargs="*", metavar="STAGE", help="of dvc.yaml, with what it needs (default: all of the active "
                     "profile); what was made once and is kept by DVC is pulled unless it is named")
    sub.add_argument("--profile", help="instead of the committed params.yaml's; one whose results are not in git is run twice "
                     "and compared with itself")
    sub.add_argument("--keep", metavar="DIR", help="work in this folder and leave it; the same command again goes on there")
    sub.add_argument("--dirty", action="store_true", help="take uncommitted changes of tracked files along")
    sub.add_argument("--relative", type=float, default=1e-3, help="tolerance of numbers, relative (default: %(default)s)")
    sub.add_argument("--absolute", type=float, default=1e-4, help="and absolute, both added (default: %(default)s)")
    sub.add_argument("--json", action="store_true", help="print the report as JSON")


def verify(options):
    import dataclasses
    import json

    from anl import verify
    from anl.errors import UserError
    from anl.verify_compare import Tolerance, varying

    if min(options.relative, options.absolute) < 0:
        raise UserError("--relative and --absolute cannot be negative")
    tolerance = Tolerance(options.relative, options.absolute)
    with _unwinding():
        report = verify.run(stages=options.stages, profile=options.profile, keep=options.keep, dirty=options.dirty,
                            tolerance=tolerance, say=lambda line: print(line, file=sys.stderr, flush=True))
    if options.json:
        value = {**dataclasses.asdict(report), "verdict": report.verdict, "left_out": varying()}
        print(json.dumps(value, indent=1, sort_keys=True))
    else:
        print("\n".join(lines(report)))
    return 0 if report.passed else 1


@contextlib.contextmanager
def _unwinding():
    """Let a polite kill, and a terminal that closes, end us as Ctrl-C does: the stage that runs is stopped, temporary clones go."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    for number, handler in kept.items():
        if handler == signal.SIG_DFL:  # nohup, for one, has it ignored
            signal.signal(number, lambda number, _: sys.exit(128 + number))
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


def lines(report):
    """The report as lines of text: a table, what was tolerated and left out, and the verdict."""
    from anl.verify_compare import varying

    header = ("stage", "output", "compared with", "old", "new", "verdict")
    table = [header] + [(row.stage, row.output, row.against or "-", row.old[:10] or "-", row.new[:10] or "-", row.verdict)
                        for row in report.rows]
    widths = [max(len(row[column]) for row in table) for column in range(len(header))]
    found = []
    for cells, note in zip(table, ["", *(row.note for row in report.rows)]):
        found.append("  ".join(cell.ljust(width) for cell, width in zip(cells, widths)).rstrip())
        found += [f"    {note}"] if note else []
    counts = {verdict: sum(row.verdict == verdict for row in report.rows) for verdict in
              dict.fromkeys(row.verdict for row in report.rows)}
    against = "two runs of the same commit, since nothing asked for is kept in git" if report.twice else "what is committed"
    return [*found, "", f"tolerance: {report.tolerance}", f"left out: {varying()}",
            f"commit {report.commit[:10]}{' with uncommitted changes' if report.dirty else ''}, profile {report.profile}, "
            f"{against}, {report.seconds:.0f} s: " + ", ".join(f"{count} {verdict}" for verdict, count in counts.items()),
            f"verdict: {report.verdict}"]
