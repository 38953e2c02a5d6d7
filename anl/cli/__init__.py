"""The command line: every command is a library call. Commands import libraries when they run, so that help is fast."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Literal

import typer

from anl.cli import data
from anl.cli.console import (
    Options,
    configuration,
    has_configuration,
    parse_seeds,
    print_frame,
    print_table,
    result,
    write_csv,
)
from anl.io import UserError, pick, reason, write_text

CELL_TIMEOUT = 12 * 3600  # seconds; a notebook's cell may have to train detectors first
REGISTERED = "registered.json"  # confirmatory claims at the time when a profile's test images were first scored
STAGES = ("prior", "generator", "benchmark", "train", "score", "claims")  # commands whose inputs must not change while they run
# errors of paths and permissions, which the user can correct
MISTAKES = (errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.EROFS, errno.ENAMETOOLONG)

app = typer.Typer(add_completion=False, help="Attention-guided Noise Learning, end to end. Run every command from the "
                  "repository's root. Exit status: 0 done, 1 a check failed, 2 a mistake to correct, 130 interrupted.")
make_app = typer.Typer(help="Make what detectors are trained on: priors, generators, benchmark, noise targets.")
app.add_typer(data.app, name="data")
app.add_typer(make_app, name="make")

EXPERIMENT = typer.Argument(metavar="EXP", help="A key of the profile's `experiments`.")
REVISION = typer.Option(None, metavar="COMMIT", help="Full commit of a detector of the hub.")


@app.callback()
def options(ctx: typer.Context,
            profile: str = typer.Option(None, metavar="NAME", help="A packaged profile, instead of params.yaml."),
            limit: int = typer.Option(None, metavar="N", min=2, help="At most N images per class, generator and split, "
                                      "about N training steps, one seed. Results are kept apart, as NAME-limitN."),
            settings: list[str] = typer.Option([], "--set", metavar="KEY=VALUE", help="Change a setting, for example "
                                               "method.step=10; may be repeated. Results are kept apart.")):
    ctx.obj = Options(profile, limit, tuple(settings))


@app.command()
def profile(ctx: typer.Context, name: str = typer.Argument(None, metavar="NAME", help="The profile to activate.")):
    """Show the active and the packaged profiles, or activate one: write it, complete, to params.yaml."""
    from anl import config

    if name:
        print(f"profile {name} is {'now' if config.activate(name) else 'already'} active")
        return
    about = {known: config.PROFILES.joinpath(f"{known}.yaml").read_text("utf-8").partition("\n")[0].lstrip("# ")
             for known in config.profiles()}
    active = configuration(ctx).profile if has_configuration(ctx) else "none; choose one with `anl profile NAME`"
    print(f"active: {active}")
    print_table(("profile", "what it is"), about.items())


# ---- make ------------------------------------------------------------------------------------------------------------
@make_app.command("prior")
def make_prior(ctx: typer.Context,
               name: str = typer.Argument(None, help="`prior`, or a key of other_priors; default: all.")):
    """Train the diffusion prior and those it is compared with (half an hour each). Continues an interrupted run."""
    config = configuration(ctx, making=("run.models",))
    names = name and [pick("prior", name, ["prior", *config.other_priors])]
    from anl.training import generators

    made = generators.make_priors(config, names)
    print(*made.values(), sep="\n")


@make_app.command("generator")
def make_generator(ctx: typer.Context, name: str = typer.Argument(None, help="A key of `models`; default: all.")):
    """Train the benchmark's generators (20 to 60 minutes each). Continues an interrupted run."""
    config = configuration(ctx, making=("run.models",))
    names = name and [pick("generator", name, config.models)]
    from anl.training import generators

    made = generators.make_generators(config, names)
    print(*made.values(), sep="\n")


@make_app.command("benchmark")
def make_benchmark(ctx: typer.Context):
    """Write the benchmark: real images, and those of every generator."""
    config = configuration(ctx, making=("benchmark.folder",))
    from anl.training import benchmark

    rows = benchmark.make_benchmark(config)
    generators = rows.loc[rows["label"] == 1, "generator"].nunique()
    print(f"{config.benchmark.folder}: {len(rows)} images, real and of {generators} generators")


@make_app.command("targets")
def make_targets(ctx: typer.Context, experiment: str = typer.Argument(None, metavar="EXP", help="Default: all.")):
    """Compute the noise targets of an experiment's variants; what is cached is not computed again."""
    config = configuration(ctx)
    from anl.training import runs

    for name in [experiment] if experiment else config.experiments:
        runs.make_all_targets(config.variants(name).values())
    print(f"{config.run.targets}/{config.profile}")


# ---- train, score, report --------------------------------------------------------------------------------------------
@app.command()
def train(ctx: typer.Context, experiment: str = EXPERIMENT,
          jobs: int = typer.Option(None, min=0, help="Trainings at a time, 0: in this process. Default: run.jobs, or "
                                   "one per core (on a GPU: 1). Weights do not depend on it."),
          seeds: str = typer.Option(None, metavar="S,S,...", help="Train these seeds only.")):
    """Train the missing runs of an experiment. Under `accelerate launch` the processes share each training."""
    config, chosen = configuration(ctx), parse_seeds(seeds)
    pick("experiment", experiment, config.experiments)
    from anl.training import experiments  # without torch: mistakes and finished runs are found at once

    root = config.run.runs
    missing = launched() or experiments.missing_runs(config, experiment, root, chosen)
    count = 1 if launched() or not missing else config.run.processes or gpus()
    if missing and count > 1:
        from anl.training import runs

        runs.make_all_targets(config.variants(experiment).values())  # once, instead of in every process
        return subprocess.call([sys.executable, "-m", "torch.distributed.run", "--standalone",
                                f"--nproc-per-node={count}", "-m", "anl.cli", *ctx.meta["arguments"]])
    if missing:
        from anl.training import runs

        runs.train(config, experiment, jobs=0 if launched() else jobs, seeds=chosen)
    if os.environ.get("RANK", "0") == "0":
        path, record = result(config, "runs", f"{experiment}.csv"), experiments.experiment_record(config, experiment, root, chosen)
        write_csv(path, record)
        print(f"{path}: {len(record)} runs")
        if again := experiments.trained_twice(record, path.parent):
            print(f"anl train: warning: {path.parent} lists run {again[0]} with other weights, too; score all experiments that share "
                  "it again before you compare them", file=sys.stderr)


@app.command()
def score(ctx: typer.Context, experiment: str = EXPERIMENT):
    """Score every validation and test image with the runs of an experiment (trains what is missing)."""
    config = configuration(ctx)
    pick("experiment", experiment, config.experiments)
    from anl.evaluation import runs
    from anl.report import claims as ledger

    if Path("claims.yaml").is_file() and not config.benchmark.limit:
        ledger.register(ledger.read_claims(), config.profile, result(config, REGISTERED))
    runs.write_experiment(config, experiment)
    print(result(config, "scores", f"{experiment}.parquet"))


@app.command()
def notebook(ctx: typer.Context, name: str = typer.Argument(metavar="NAME", help="A notebook of notebooks/."),
             settings: list[str] = typer.Option([], "--set", metavar="KEY=VALUE", help="A parameter of the notebook, "
                                                "its value YAML, for example steps='[1, 10]'; may be repeated."),
             out: Path = typer.Option(None, metavar="FILE.ipynb", help="Default: book/pages/NAME.ipynb; with --set or "
                                      "another profile results/PROFILE/notebooks/NAME.ipynb.")):
    """Execute a notebook: a page of the book. With --set it saves no tables."""
    pick("notebook", name, sorted(path.stem for path in Path("notebooks").glob("*.ipynb")))
    from anl.config import parse_settings
    from anl.report import notebooks

    parameters, chosen, config = parse_settings(settings), ctx.find_root().obj, configuration(ctx)
    page = not parameters and chosen == Options()
    if out is not None and (out.suffix != ".ipynb" or out.is_dir() or out.resolve().parent == Path("notebooks").resolve()):
        raise UserError(f"--out {out}: name a file that ends in .ipynb, outside of notebooks/, whose notebooks are the sources")
    out = out or (Path("book/pages") if page else result(config, "notebooks")) / f"{name}.ipynb"
    if not parameters:
        parameters["save_to"] = result(config, "tables").as_posix()
    if chosen.limit or chosen.settings:  # a profile's name may be a path without its .yaml
        import yaml

        path = Path(config.run.cache, "profiles", config.profile).absolute()
        write_text(f"{path}.yaml", yaml.safe_dump(config.model_dump(mode="json", exclude_none=True), sort_keys=False))
        parameters["profile"] = str(path)
    elif chosen.profile:
        parameters["profile"] = chosen.profile
    failed = Path(config.run.cache, "failed", f"{name}.ipynb")
    print(notebooks.run_notebook(f"notebooks/{name}.ipynb", out, parameters, timeout=CELL_TIMEOUT, failed=failed))


@app.command()
def claims(ctx: typer.Context,
           check: bool = typer.Option(False, "--check", help="Write nothing; exit with status 1 if the committed "
                                      "ledger has another verdict, or an interval that excludes the new value."),
           readme: bool = typer.Option(False, "--readme", help="Fill in the README's answers from the ledgers of all profiles.")):
    """Decide the registered claims from the result tables, by the rules of claims.yaml."""
    import io

    from anl.report import claims as ledger

    config = configuration(ctx)
    registered, tables = ledger.read_claims(), ledger.read_tables(result(config, "tables"))
    if tables:
        ledger.check_registered(registered, config.profile, result(config, REGISTERED))
    found, path = ledger.evaluate(registered, tables, config.profile), result(config, "claims.csv")
    if (found["verdict"] == ledger.NOT_RUN).all():
        deciding = dict.fromkeys(name for claim in registered for name in claim.profiles)
        print(f"profile {config.profile} decides no claim; see "
              + ", ".join(f"{config.run.results}/{name}/claims.csv" for name in deciding))
    else:
        print_frame(found[["title", "kind", "measure", "verdict", "value", "low", "high"]], f"profile {config.profile}")
    if check:
        done = subprocess.run(["git", "show", f"HEAD:./{path.as_posix()}"], capture_output=True, text=True, check=False)
        before = ledger.read_ledger(path if done.returncode else io.StringIO(done.stdout))
        problems = ledger.differences(before, found)
        for line in problems:
            print(f"{path} is contradicted: {line}", file=sys.stderr)
        return int(bool(problems))
    ledger.write_ledger(path, found)
    if readme:
        headline = [claim.id for claim in registered if claim.headline]
        ledger.fill_readme("README.md", ledger.read_ledgers(config.run.results, config.profile), headline)


@app.command()
def verify(ctx: typer.Context,
           stages: list[str] = typer.Argument(None, metavar="STAGE...", help="Stages of dvc.yaml, run with those "
                                              "they need; default: all whose outputs DVC does not keep."),
           keep: Path = typer.Option(None, metavar="DIR", help="Work in this folder and keep it; a later run continues there."),
           dirty: bool = typer.Option(False, "--dirty", help="Include uncommitted changes of tracked files."),
           relative: float = typer.Option(1e-3, min=0, help="Relative tolerance of numbers."),
           absolute: float = typer.Option(1e-4, min=0, help="Absolute tolerance, added to it.")):
    """Run stages again in a temporary clone and compare their outputs with the committed ones.

    Outputs match if they are equal bit for bit, or if their numbers are within the tolerance or the committed intervals.
    Outputs that are not committed are compared with dvc.lock; if that lacks them too, stages run twice and are compared with
    each other. Exit status 1: something differs.
    """
    from anl import verify as module

    chosen = ctx.find_root().obj
    if chosen.limit or chosen.settings:
        raise UserError("`anl verify` reruns what is committed: leave out --limit and --set")
    if chosen.profile:
        configuration(ctx)  # a mistake in its name is found before anything is cloned
    table = module.verify(stages or (), profile=chosen.profile, keep=keep, dirty=dirty, relative=relative,
                          absolute=absolute, say=lambda line: print(line, file=sys.stderr, flush=True))
    print_frame(table, "outputs")
    verdict, passed = module.conclusion(table)
    print(f"verdict: {verdict}")
    return 0 if passed else 1


# ---- use -------------------------------------------------------------------------------------------------------------
@app.command(epilog="Exit status: 0 every image was scored, whatever the verdicts; 1 some could not be read, each with "
                    "its reason; 2 a mistake to correct; 130 interrupted.")
def detect(paths: list[str] = typer.Argument(None, metavar="PATH...", help="Files, folders, patterns; - reads a list "
                                             "from standard input."),
           detector: str = typer.Option(None, metavar="DIR|hf://ID", help="A packaged detector's folder, or "
                                        "hf://OWNER/NAME with --revision; default: models/detector."),
           revision: str = REVISION,
           form: Literal["table", "json", "csv"] = typer.Option("table", "--format", help="`json`: an object a line."),
           resume: str = typer.Option(None, metavar="FILE", help="Append JSON lines to this file; skip images already in it."),
           maps: str = typer.Option(None, "--map", metavar="DIR", help="Write an evidence map of each image into this folder."),
           recursive: bool = typer.Option(True, help="Search folders in folders."),
           explain: bool = typer.Option(False, "--explain", help="Print what the detector is, its errors and limits."),
           device: str = typer.Option(None, help="cpu or cuda; default: cuda if there is one."),
           batch_size: int = typer.Option(32, min=1, help="Crops computed at once."),
           workers: int = typer.Option(2, min=1, help="Threads that decode.")):
    """Score pictures and videos: probability of being generated, and a verdict."""
    if not paths and not explain:
        raise UserError("name files or folders, or - for a list on standard input")
    from anl.detect.command import run_detect

    return run_detect(paths or [], detector=detector, revision=revision, device=device, form=form, resume=resume,
                      maps=maps, recursive=recursive, explain=explain, batch_size=batch_size, workers=workers)


@app.command()
def export(ctx: typer.Context,
           source: str = typer.Argument(None, metavar="RUN", help="A run's folder, an experiment (exports its "
                                        "best run on validation images), a packaged detector's folder, or "
                                        "hf://OWNER/NAME; default: models/detector."),
           to: Literal["folder", "onnx", "demo"] = typer.Option("folder", help="`folder`: for `anl detect`."),
           out: str = typer.Option(None, metavar="OUT", help="What to write: a folder, or FILE.onnx."),
           replace: bool = typer.Option(False, "--replace", help="Replace a packaged detector in OUT."),
           licence: str = typer.Option(None, help="Licence of the weights, one sentence."), revision: str = REVISION,
           int8: bool = typer.Option(False, "--int8", help="Store an ONNX file's weights in eight bits.")):
    """Package a trained run for `anl detect`, or write a detector as ONNX or as the book's demo."""
    if out is None and to != "demo":
        raise UserError("--out is missing; state the folder, or FILE.onnx, to write")
    config = configuration(ctx) if has_configuration(ctx) else None
    from anl.detect.export import export as write

    lines = write(source, to=to, config=config, licence=licence, replace=replace, revision=revision, int8=int8,
                  **({} if out is None else {"out": out}))
    print(*lines, sep="\n")


@app.command()
def bench(ctx: typer.Context,
          only: list[str] = typer.Option(None, metavar="SECTION", help="Section to measure; may be repeated. Default: all."),
          repeats: int = typer.Option(None, min=2, help="Rounds; default: each section's number."),
          backbone: str = typer.Option(None, help="Another timm model."),
          size: int = typer.Option(None, metavar="PIXELS", min=16, help="Another image size."),
          quick: bool = typer.Option(False, "--quick", help="Tiny sizes, to see that it runs."),
          out: str = typer.Option("results/bench.json", metavar="FILE", help="Results; those not measured now are kept.")):
    """Measure speed and memory of detectors, trainings and targets. For an idle machine."""
    from anl import bench as module

    for name in only or ():
        pick("section", name, module.SECTIONS)
    module.bench(configuration(ctx), out, sections=only or None, repeats=repeats, backbone=backbone, size=size,
                 quick=quick)


# ---- helpers ---------------------------------------------------------------------------------------------------------
def launched():
    """Whether this is one of several processes started by `accelerate launch` or torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def gpus():
    import torch

    return torch.cuda.device_count()


# ---- entry point -----------------------------------------------------------------------------------------------------
def main(arguments=None):
    """Run one command; returns its exit status: 0 done, 1 a check failed, 2 a mistake to correct, 130 interrupted."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    command, started = typer.main.get_command(app), time.time()
    name = _name(command, arguments)
    if handled := signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:  # `kill`: end like Ctrl-C does, workers included
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        with command.make_context("anl", list(arguments) or ["--help"]) as ctx:  # the parser empties its list
            ctx.meta["arguments"] = arguments
            status = command.invoke(ctx) or 0
        sys.stdout.flush()
    except typer.Exit as end:
        return end.exit_code if arguments else 2
    except UserError as problem:
        return _say(name, problem, 2)
    except typer.TyperException as problem:  # a mistake in the command itself, in the parser's words
        text = reason(problem.format_message(), 300).replace("Value error, ", "").replace("Input should", "must")
        return _say(name, f"{text.rstrip('.')}{'' if text.endswith('?') else f'; see `{name} --help`'}", 2)
    except (KeyboardInterrupt, typer.Abort):
        return _say(name, "interrupted; run the same command again to continue", 130)
    except BrokenPipeError:  # the reader of our output has gone: `anl ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as problem:
        if line := _explanation(problem):
            return _say(name, line, 2)
        raise
    finally:
        if handled:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if status == 0 and name.split()[-1] in STAGES:
        for path in _edited(started):
            _say(name, f"warning: {path} changed during the run, whose output may mix two versions; run it again", 0)
    return status


def _name(command, arguments):
    """`anl data fetch`: the arguments, as far as they name commands."""
    found = ["anl"]
    for word in arguments:
        if word in getattr(command, "commands", {}):
            command = command.commands[word]
            found.append(word)
    return " ".join(found)


def _say(name, line, status):
    place = f" (process {os.environ.get('RANK')})" if launched() else ""
    print(f"{name}{place}: {line}", file=sys.stderr, flush=True)
    return status


def _explanation(problem):
    """One line for an error that the user can correct; None for a bug."""
    name = getattr(problem, "filename", None)
    # torch, safetensors and numpy each report a full disk in their own way
    words = ("No space left", "inline_container.cc", "PytorchStreamWriter failed", " requested and ")
    full = isinstance(problem, OSError) and problem.errno in (errno.ENOSPC, errno.EDQUOT)
    if full or any(word in str(problem) for word in words):
        place = f" while writing {name}" if name else ""
        return f"no space left on the disk{place}; free some and run the same command again"
    if isinstance(problem, OSError) and problem.errno in MISTAKES and name:
        return f"{name}: {problem.strerror}; check the path and its permissions"
    return reason(problem, 200) if type(problem).__module__.startswith("pydantic") else None


def _edited(since):
    """The `anl` modules of this process, and params.yaml, if they changed after `since`.

    DVC hashes a stage's inputs after the stage has ended: it would record a file edited during the run as an input of the run.
    """
    loaded = {module.__file__ for name, module in list(sys.modules.items())
              if name.startswith("anl.") and name != __name__ and getattr(module, "__file__", None)}
    paths = filter(os.path.exists, [*sorted(loaded), "params.yaml"])
    return [os.path.relpath(path) for path in paths if os.stat(path).st_mtime > since]
