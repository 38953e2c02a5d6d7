"""`anl predictions` and `anl recompute`: scores kept with the results, and tables made of them again."""

from anl.errors import UserError


def add(command):
    """Register the subcommands; `command` is that of anl.cli."""
    command("predictions", predictions, "keep the scores of the profile's finished runs in results/predictions, for "
            "`anl recompute`", "anl predictions")
    sub = command("recompute", recompute, "make tables and figures again from the scores in results/predictions, without "
                  "a model, and compare them with the stored ones", "anl recompute peers families robustness --profile full\n\n"
                  "exit status: 0 all are identical or equal within tolerance; 1 one is different; 2 a mistake to mend")
    sub.add_argument("names", nargs="*", metavar="NOTEBOOK", help="default: every one with stored results and saved scores")
    sub.add_argument("--profile", help="instead of the active one, which stays active")
    sub.add_argument("--write", action="store_true", help="put the new results in the stored ones' place")


def predictions(options):
    from anl import params, saved

    for folder in saved.save_all(params.load(options.params)):
        print(folder)


def recompute(options):
    import contextlib
    import sys

    from anl import params, recompute
    from anl.verify_compare import DIFFERENT

    if options.params != "params.yaml":
        raise UserError("`anl recompute` takes --profile NAME in place of --params")
    with recompute.activated(options.profile) if options.profile else contextlib.nullcontext("params.yaml") as path:
        profile = params.load(path).profile
        names = options.names or recompute.studies(profile)
        if not names:
            raise UserError(f"there are no stored results of profile {profile}; name another with --profile")
        found, refused = {}, {}
        for name in names:
            try:
                found[name] = recompute.recompute(name, {}, options.write, say=lambda line: print(line, file=sys.stderr),
                                                  params_path=path)
            except UserError as problem:
                if options.names:
                    raise
                refused[name] = problem
    for name, comparison in found.items():
        print(f"{name}: {comparison.verdict}" + (f" ({comparison.largest})" if comparison.largest else ""))
    for name, problem in refused.items():
        print(f"{name}: left out: {problem}")
    if not found:
        raise UserError(f"nothing could be computed again for profile {profile}")
    return 1 if any(comparison.verdict == DIFFERENT for comparison in found.values()) else 0
