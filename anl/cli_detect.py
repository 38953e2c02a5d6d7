"""The commands that put a detector to use: `anl detect PATH...` and `anl card RUN_FOLDER`."""

import collections
import contextlib
import shutil
import sys

from anl.errors import UserError

LICENCE = "MIT, as the code; trained on the photographs of data/photos.csv, whose licences allow it."
STATUS = """exit status: 0 every picture was scored, whatever the verdicts; 1 some could not be read, each with its reason;
2 a mistake to mend; 130 interrupted"""


def add(command):
    """Add the commands; command: as `anl.cli.make_parser` defines it."""
    sub = command("detect", detect, "say of pictures how probably they are generated, and what the detector makes of it",
                  f"anl detect holiday/ downloads/*.png --json\n\n{STATUS}")
    sub.add_argument("paths", nargs="*", metavar="PATH", help="files, folders, patterns; - reads a list from standard input")
    sub.add_argument("--model", metavar="DIR|hf://ID", help="a detector's folder (see `anl card`), or hf://OWNER/NAME of the hub, "
                     "with --revision (default: models/detector)")
    sub.add_argument("--revision", metavar="COMMIT", help="the full commit of a detector of the hub")
    sub.add_argument("--json", action="store_true", help="one JSON object a line")
    sub.add_argument("--csv", action="store_true", help="CSV with a header")
    sub.add_argument("--resume", metavar="OUT", help="append JSON lines to this file, leaving out pictures already in it")
    sub.add_argument("--map", metavar="DIR", help="draw attention and predicted noise of each picture as a PNG in DIR")
    sub.add_argument("--explain", action="store_true", help="print what the detector is, how often it errs and its limits")
    sub.add_argument("--device", default=None, help="cpu or cuda (default: cuda where there is one)")
    sub.add_argument("--batch-size", type=int, default=32, help="crops computed at once (default: %(default)s)")
    sub.add_argument("--workers", type=int, default=2, help="threads that decode (default: %(default)s)")
    sub = command("card", card, "make a detector in use, with its card, of a trained run",
                  "anl card runs/small/main/prior-t1-affinity-s0 --out my_detector")
    sub.add_argument("run", metavar="RUN_FOLDER")
    sub.add_argument("--out", metavar="DIR", help="the folder to write, new or empty (default: models/NAME_OF_THE_RUN)")
    sub.add_argument("--replace", action="store_true", help="replace a detector that `anl card` wrote to that folder; anything "
                     "else is never deleted")
    sub.add_argument("--licence", default=LICENCE, help="of the weights, one sentence")
    sub = command("export", export, "write a detector in use as ONNX, for runtimes without PyTorch",
                  "anl export detector.onnx --int8")
    sub.add_argument("out", metavar="FILE.onnx")
    sub.add_argument("--model", metavar="DIR|hf://ID", help="as of `anl detect`")
    sub.add_argument("--revision", metavar="COMMIT", help="the full commit of a detector of the hub")
    sub.add_argument("--int8", action="store_true", help="write FILE.int8.onnx too, in 8 bits, and print what that loses on "
                     "the benchmark's test patches")


def export(options):
    from pathlib import Path

    out = Path(options.out)
    if out.suffix != ".onnx":
        raise UserError(f"{out}: the file's name must end in .onnx")
    from anl.detect import export, scorer
    from anl.params import load

    params = load(options.params) if options.int8 else None
    difference = export.export(scorer.load_detector(options.model, revision=options.revision), out)
    print(f"{out}: {out.stat().st_size:,} bytes, within {difference:.1e} of PyTorch")
    if options.int8:
        small = out.with_suffix(".int8.onnx")
        loss = export.quantise(out, small, params)
        print(f"{small}: {small.stat().st_size:,} bytes")
        print(loss.round(3).to_string(index=False))


def card(options):
    from pathlib import Path

    from anl.detect import card
    from anl.params import load

    out = Path(options.out or Path("models") / Path(options.run).resolve().name)
    made = card.make(options.run, load(options.params), out, options.licence, replace=options.replace)
    print(f"{out}: rule {made['rule']}, threshold {made['threshold']:.3f}, from {made['chosen_on']['n_real']} real and "
          f"{made['chosen_on']['n_fake']} generated validation photographs")


def detect(options):
    if not options.paths and not options.explain:
        raise UserError("name files or folders, or - for a list on standard input")
    if options.json and options.csv:
        raise UserError("choose one of --json and --csv")
    if options.batch_size < 1 or options.workers < 1:
        raise UserError("--batch-size and --workers must be at least 1")
    from anl.detect import explain, inputs, report, scorer

    detector = scorer.load_detector(options.model, _device(options.device), options.revision)
    if options.explain:
        print(explain.text(detector.card), file=sys.stderr if options.paths else sys.stdout)
    if not options.paths:
        return 0
    found = inputs.find(options.paths, sys.stdin.buffer if "-" in options.paths else ())
    counts, earlier = collections.Counter(), 0
    with contextlib.ExitStack() as stack:
        done, writers = {}, []
        if options.resume:
            done, file = report.resume(options.resume, detector.card.identity)
            writers.append(report.JsonLines(stack.enter_context(file)))
        writers.append(_writer(options))

        def wanted():
            nonlocal earlier
            for item in inputs.without(found, options.resume, options.map):
                if item[0] in done:
                    earlier += 1
                    counts[done[item[0]]] += 1
                else:
                    yield item

        try:
            for line in _lines(detector, wanted(), options):
                for writer in writers:
                    writer.add(line)
                counts[line["verdict"] or report.NOT_READ] += 1
        except KeyboardInterrupt:
            if options.resume:
                raise
            print("anl detect: interrupted; with --resume OUT a run can go on where it stopped", file=sys.stderr)
            return 130
    print(f"anl detect: {report.counted(counts, earlier, options.resume)}", file=sys.stderr)
    if not (options.json or options.csv or options.explain) and counts:
        print(explain.meaning(detector.card), file=sys.stderr)
    return int(counts[report.NOT_READ] > 0)


def _lines(detector, wanted, options):
    """Lines of the report in the order of `wanted`, (path, reason why not) pairs, with a bar on a terminal."""
    from tqdm import tqdm

    from anl.detect import lines

    # on a terminal the table itself shows how far it is
    bar = tqdm(unit=" pictures", file=sys.stderr, mininterval=1, disable=True if sys.stdout.isatty() else None)
    with bar:
        for line in lines.score(detector, wanted, options.batch_size, options.workers, options.map):
            yield line
            bar.update()


def _writer(options):
    from anl.detect import report

    if options.json:
        return report.JsonLines(sys.stdout)
    if options.csv:
        return report.Csv(sys.stdout)
    return report.Table(sys.stdout, shutil.get_terminal_size().columns)


def _device(name):
    import torch

    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"--device {name}: there is no GPU here; leave it out, or take cpu")
    try:
        return torch.device(name)
    except RuntimeError:
        raise UserError(f"--device {name}: choose cpu or cuda") from None
