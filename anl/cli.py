"""The command line: every command is one library call. Libraries are imported when a command runs, so that help is fast."""

import argparse
import errno
import os
import sys
import time

from anl import (
    cli_bench,
    cli_compare,
    cli_detect,
    cli_fetch,
    cli_index,
    cli_paper,
    cli_predictions,
    cli_runs,
    cli_verify,
    guard,
    launch,
)
from anl.errors import UserError

# run by the pipeline's stages: nothing that they read may change under them
STAGES = ("prior", "generate", "benchmark", "audit", "target", "train", "perturb", "families", "claims")


def main(arguments=None):
    """Run one command; returns the exit status (0 done, 1 a check failed, 2 a mistake to mend, 130 interrupted)."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = make_parser()
    options = parser.parse_args(arguments)
    name, started = f"anl {options.command}", time.time_ns()
    try:
        paper_ = options.command == "paper"
        count = launch.wanted(cli_paper.shared(options.stage) if paper_ else options.command, options.processes,
                              lambda: (cli_paper.settings_of if paper_ else load_params)(options))
        if count > 1:
            return launch.start(arguments, count)
        if launch.asked() > 1:
            return launch.share(lambda: _guarded(options, name, started), name, _disk_is_full)
        return _guarded(options, name, started)
    except UserError as problem:
        return _say(f"{name}: {problem}", 2)
    except KeyboardInterrupt:
        if launch.asked() > 1 and launch.OURS in os.environ:  # the process that started this one speaks
            return 130
        return _say(f"{name}: interrupted; run the same command again to go on from here", 130)
    except BrokenPipeError:  # the reader of our output has gone: `anl ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as problem:
        if not _disk_is_full(problem):
            raise
        where = f" while writing {problem.filename}" if getattr(problem, "filename", None) else ""
        return _say(f"{name}: no space left on the disk{where}; free some, then run the same command again", 2)


def _guarded(options, name, started):
    """Run the command; returns its exit status. Warns if code or parameters of a pipeline stage changed during the run."""
    status = options.call(options) or 0
    if options.command in STAGES or (options.command == "paper" and options.stage):
        # the finished work is kept: hours of training are worth more than a certain record of what made them
        for path in guard.edited(started, cli_paper.profile_of(options) if options.command == "paper" else options.params):
            print(f"{name}: warning: {path} changed during the run; the output may mix two versions; run the stage again with "
                  "`dvc repro -f` if the edit matters", file=sys.stderr)
    return status


def _disk_is_full(problem):
    """Whether an error means a full disk; torch, safetensors and numpy each wrap it in a way of their own."""
    if isinstance(problem, OSError) and problem.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    words = ("No space left", "inline_container.cc", "PytorchStreamWriter failed", " requested and ")
    return any(word in str(problem) for word in words)


def _say(line, status):
    print(line, file=sys.stderr)
    return status


def make_parser():
    """The argument parser, one subparser per command."""
    parser = argparse.ArgumentParser(prog="anl", description="Attention-guided Noise Learning, end to end. "
                                     "Run every command from the repository's root.")
    parser.add_argument("--params", default="params.yaml", help="the active profile (default: %(default)s)")
    parser.add_argument("--processes", type=int, metavar="N", help="processes that share the work of train, target, predict, "
                        "perturb or families on this machine, one a GPU (default: the profile's launch.processes)")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name, call, summary, example):
        sub = commands.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".",
                                  epilog=f"example: {example}", formatter_class=argparse.RawDescriptionHelpFormatter)
        sub.set_defaults(call=call)
        return sub

    sub = command("profile", profile, "show the active profile, or set it (writes params.yaml)", "anl profile smoke")
    sub.add_argument("name", nargs="?", help="a file of profiles/, without its ending")

    sub = command("photos", photos, "rebuild data/photos from Debian packages and check every hash",
                  "anl photos --from ~/debs")
    sub.add_argument("--from", dest="source", metavar="FOLDER",
                     help="take .deb files, or unpacked packages, from this folder (default: download them with apt, installing nothing)")

    cli_fetch.add(command)

    sub = command("prior", prior, "train the diffusion prior into models/prior (about half an hour), or one to compare it with",
                  "anl prior other_prior")
    sub.add_argument("name", nargs="?", default="prior", metavar="NAME",
                     help="prior, or one of the profile's other_priors (default: %(default)s)")
    sub = command("generate", generate, "train one generator model into models/MODEL (20 to 60 minutes)",
                  "anl generate vae")
    sub.add_argument("model", metavar="MODEL", help="pixel, flow, vae, vq, latent (needs the vae), superres or unconditional")
    sub = command("benchmark", benchmark, "cut the patches and regenerate them with every family", "anl benchmark --more")
    which = sub.add_mutually_exclusive_group()
    which.add_argument("--more", action="store_true", help="regenerate them with the profile's more_families instead, into "
                       "data/more_families")
    which.add_argument("--leave-out", metavar="FAMILY", help="pair training patches with all families but this one, into "
                       "data/leave_one_out/FAMILY")
    cli_index.add_index(command)
    sub = command("audit", audit, "score what needs no detector: simple statistics, formats, compression, duplicates", "anl audit")
    sub.add_argument("--more", action="store_true", help="simple statistics of the profile's more_families")
    cli_index.add_audit_arguments(sub)

    cli_runs.add(command)
    cli_predictions.add(command)

    sub = command("notebook", notebook, "run one notebook; its results and its page of the book follow",
                  "anl notebook step_t --set steps='[1, 10, 100]'")
    sub.add_argument("name", metavar="NAME", help="a notebook of notebooks/, without its ending")
    sub.add_argument("--set", dest="settings", metavar="KEY=VALUE", action="append", default=[],
                     help="a parameter of the notebook, its value read as YAML; may be repeated")

    sub = command("claims", claims, "decide the paper's claims from the results", "anl claims --check")
    sub.add_argument("--check", action="store_true", help="write nothing; exit 1 if the stored verdicts differ")
    cli_verify.add(command)
    cli_paper.add(command)
    cli_bench.add(command)
    cli_detect.add(command)
    cli_compare.add(command)
    command("book", book, "gather the active profile's results for the book, in book/generated", "anl book")
    return parser


def load_params(options):
    from anl import params

    return params.load(options.params)


def profile(options):
    from anl import params

    if options.name:
        changed = params.activate(options.name, path=options.params)
        print(f"profile {options.name} is {'now' if changed else 'already'} active")
    else:
        print(params.load(options.params).profile)


def photos(options):
    from anl.data import sources

    settings = load_params(options).data
    count = sources.rebuild(settings.card, settings.folder, options.source)
    print(f"{settings.folder}: {count} photographs, every hash as in {settings.card}")


def making_of(settings):
    """The module that makes a profile's models: of the embedded benchmark, or of a public data set."""
    if settings.published:
        from anl.published import making
    else:
        from anl import making
    return making


def prior(options):
    settings = load_params(options)
    print(making_of(settings).make_prior(settings, options.name))


def generate(options):
    settings = load_params(options)
    print(making_of(settings).make_model(options.model, settings))


def benchmark(options):
    settings = load_params(options)
    if options.leave_out:
        from anl import leave_one_out

        manifest = leave_one_out.build(settings, options.leave_out)
    else:
        if settings.published:
            from anl.published import benchmark as maker
        elif options.more:
            from anl import more_families as maker
        else:
            from anl import benchmark as maker

        manifest = maker.build(settings)
    among = "" if options.more else ", the reals among them"
    print(f"{len(manifest)} images of {manifest['generator'].nunique()} generators{among}")


def audit(options):
    from anl import audit

    if options.manifest:
        if options.more:
            raise UserError("--more asks for the embedded benchmark's further families; leave it out, or the manifest")
        return cli_index.audit(options)
    (audit.run_more if options.more else audit.run)(load_params(options))


def notebook(options):
    from pathlib import Path

    from anl import notebooks

    settings = parse_settings(options.settings)
    if Path(options.params).resolve() != Path("params.yaml").resolve():
        if not (Path(options.params).is_file() and load_params(options).published):
            raise UserError(f"a notebook reads params.yaml, not {options.params}; copy your file there, or put it into "
                            "profiles/ and run `anl profile NAME`")
        settings = {"params_file": options.params, **settings}
    notebooks.run_notebook(options.name, settings, options.params)


def claims(options):
    from anl import claims

    return claims.run(load_params(options), check=options.check)


def book(options):
    from anl import book

    book.prepare(load_params(options))


def parse_settings(pairs):
    """['steps=[1, 10]'] -> {'steps': [1, 10]}, values read as YAML. Raises UserError on what is not KEY=VALUE."""
    import yaml

    settings = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key.strip():
            raise UserError(f"--set {pair}: write KEY=VALUE, for example --set steps='[1, 10]'")
        if key.strip() in settings:
            raise UserError(f"--set {pair}: '{key.strip()}' is set twice")
        try:
            settings[key.strip()] = yaml.safe_load(text)
        except yaml.YAMLError:
            raise UserError(f"--set {pair}: the value is not valid YAML; quote it, for example --set "
                            "steps='[1, 10]'") from None
    return settings


if __name__ == "__main__":
    sys.exit(main())
