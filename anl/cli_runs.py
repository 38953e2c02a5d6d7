"""`anl target`, `train`, `predict`, `perturb`, `families` and `evaluate`: what a run is made of, and what is asked of one."""

import sys


def add(command):
    """Add the commands to the parser by means of `command(name, call, summary, example)`."""
    sub = command("target", target, "compute the targets that detectors learn to predict at one diffusion step",
                  "anl target --step 10")
    sub.add_argument("--step", type=int, required=True, help="1-based diffusion step")
    sub.add_argument("--target", default="prior", help="prior, noised, error, highpass, random, shuffled, or one of the "
                     "profile's other_priors (default: %(default)s)")
    sub.add_argument("--formats", default="lossless", help="lossless, or leaky: reals through JPEG 96 (default: %(default)s)")
    sub.add_argument("--leave-out", metavar="FAMILY", help="of the benchmark without this family, see `anl benchmark`")

    sub = command("train", train, "train and score one detector",
                  "anl train --group adhoc --target prior --step 10 --attention gate --seed 1")
    sub.add_argument("--group", default="adhoc", help="the folder of runs/ it goes to (default: %(default)s)")
    sub.add_argument("--target", help="as of `anl target`, or none for the plain backbone (default: method.target)")
    sub.add_argument("--baseline", default="", metavar="NAME", help="a method of the field (anl.baselines) in place of ours")
    sub.add_argument("--step", type=int, help="1-based diffusion step (default: method.step)")
    sub.add_argument("--attention", help="none, energy, gate or affinity (default: method.attention)")
    sub.add_argument("--loss-weight", type=float, help="weight of the noise loss (default: method.loss_weight)")
    sub.add_argument("--noise-on", default="both", help="both, real or generated: whose noise is asked for (default: "
                     "%(default)s)")
    sub.add_argument("--gradient", default="joint", help="joint, or detached: the attention leaves the noise head alone "
                     "(default: %(default)s)")
    sub.add_argument("--branch", default="stem", help="stem, or shallow: the bare backbone, with the attention read from a small "
                     "branch beside it (default: %(default)s)")
    sub.add_argument("--consistent", action="store_true", help="ask an augmented image for the noise of the untouched one")
    sub.add_argument("--reads", default="image", help="image; residual: the stem sees high-pass residuals; or noise: the backbone "
                     "reads the predicted noise alone (default: %(default)s)")
    sub.add_argument("--pairs", type=int, default=0, help="training pairs used, 0 for all (default: %(default)s)")
    sub.add_argument("--formats", default="lossless", help="lossless or leaky (default: %(default)s)")
    sub.add_argument("--leave-out", metavar="FAMILY", help="train on all families but this one, into "
                     "runs/<profile>/leave_one_out/FAMILY")
    sub.add_argument("--seed", type=int, required=True)

    sub = command("predict", predict, "score a trained run on the benchmark again",
                  "anl predict runs/small/main/plain-s0")
    sub.add_argument("run", metavar="RUN_FOLDER")
    sub = command("perturb", perturb, "score a trained run's test images under every perturbation of the profile",
                  "anl perturb runs/small/main/plain-s0")
    sub.add_argument("run", metavar="RUN_FOLDER")
    sub = command("families", families, "score a trained run on the test images of the profile's more_families",
                  "anl families runs/small/main/plain-s0")
    sub.add_argument("run", metavar="RUN_FOLDER")
    sub = command("evaluate", evaluate, "print a run's metrics per generator and view, as CSV",
                  "anl evaluate runs/small/main/plain-s0")
    sub.add_argument("run", metavar="RUN_FOLDER")


def with_benchmark(options):
    """The profile's parameters, or those of the benchmark without a family; of a public data set, it must have been made."""
    from anl import params

    settings = params.load(options.params)
    if settings.published:
        from anl.published import benchmark

        benchmark.check(settings)
    if getattr(options, "leave_out", None):
        from anl import leave_one_out

        return leave_one_out.prepared(settings, options.leave_out)
    return settings


def target(options):
    from anl import targets

    print(targets.compute(with_benchmark(options), options.step, options.target, options.formats))


def train(options):
    from anl import runs

    settings = with_benchmark(options)
    method = settings.method
    spec = runs.make_spec(settings, options.target or method.target, method.step if options.step is None else options.step,
                          options.attention or method.attention,
                          method.loss_weight if options.loss_weight is None else options.loss_weight, options.seed,
                          noise_on=options.noise_on, gradient=options.gradient, pairs=options.pairs,
                          formats=options.formats, consistent=options.consistent, baseline=options.baseline,
                          branch=options.branch, reads=options.reads)
    print(runs.train_run(spec, settings, options.group))


def predict(options):
    from anl import predict

    table = predict.score_run(options.run, with_benchmark(options))
    print(f"{options.run}/predictions.parquet: {len(table)} scores")


def perturb(options):
    from anl import robustness

    print(robustness.score_run(options.run, with_benchmark(options)))


def families(options):
    from anl import families_study, params

    print(families_study.score_run(options.run, params.load(options.params)))


def evaluate(options):
    from anl import analysis, files, params, runs

    spec = runs.RunSpec(**files.read_json(f"{options.run}/run.json")["spec"])
    table = analysis.run_table({spec: options.run}, params.load(options.params))
    table.to_csv(sys.stdout, index=False, float_format="%.6g")
