"""The commands of the paper's scale: `anl paper [STAGE]` and `anl budget`."""

from anl.errors import UserError

STAGES = ("index", "targets", "train", "score", "table")
PROFILE = "profiles/paper.yaml"


def add(command):
    """Add the commands; command: as `anl.cli.make_parser` defines it."""
    sub = command("paper", paper, "the experiment on the field's data sets, or one stage of it (profiles/paper.yaml)",
                  "anl paper --limit 8")
    sub.add_argument("stage", nargs="?", choices=STAGES, metavar="STAGE", help=f"{', '.join(STAGES)} (default: all, in order)")
    sub.add_argument("--limit", type=int, metavar="N", help="N images of each class, generator and split, two training steps, "
                     "one seed; into folders of its own")
    sub.add_argument("--set", dest="name", metavar="ID", help="with index: this data set alone")
    for option, what in (("protocol", "protocol"), ("backbone", "backbone"), ("method", "method, plain or anl")):
        sub.add_argument(f"--{option}", help=f"with targets, train and score: this {what} alone")
    sub.add_argument("--seed", type=int, help="with train and score: this seed alone")
    sub = command("budget", budget, "what the paper's experiment costs, worked out beforehand: hours, disk and memory a stage",
                  "anl budget --tflops 400 --gpus 8")
    sub.add_argument("--tflops", type=float, help="what a GPU reaches in bf16, in 10^12 operations a second (default: this "
                     "machine, as measured)")
    sub.add_argument("--gpus", type=int, default=1, help="that share the work (default: %(default)s)")
    sub.add_argument("--cores", type=int, help="that decode images (default: as measured)")
    sub.add_argument("--measure", action="store_true", help="time the decoding of images on this machine first (seconds); "
                     "`make bench` times the rest")
    sub.add_argument("--write", action="store_true", help="write the table that the book shows into results/scale, with hours "
                     "for a GPU of --tflops beside those of the machine measured")


def shared(stage):
    """What anl.launch.wanted asks of a stage: `paper` for those whose work several processes share, and for all in order."""
    return f"paper {stage}" if stage in ("index", "table") else "paper"


def profile_of(options):
    """The file that the experiment is read from."""
    return PROFILE if options.params == "params.yaml" else options.params


def settings_of(options):
    from anl.paper import settings

    return settings.load(profile_of(options), getattr(options, "limit", None))


def paper(options):
    """Run the asked stages for whatever was not narrowed down."""
    import torch

    from anl import processes
    from anl.paper import protocol, scoring, teacher, training

    settings = settings_of(options)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    asked = (options.protocol, options.backbone, options.method, options.seed)
    runs = [run for run in settings.runs() if all(want in (None, have) for want, have in zip(asked, run))]
    if not runs:
        raise UserError(f"no run of {settings.profile} has {' '.join(str(word) for word in asked if word is not None)}; protocols: "
                        f"{', '.join(settings.protocols)}; backbones: {', '.join(settings.backbones)}; methods: "
                        f"{', '.join(settings.methods)}; seeds: {', '.join(map(str, settings.seeds))}")
    if options.name is not None and options.name not in settings.sets:
        raise UserError(f"--set {options.name}: choose one of {', '.join(settings.sets)}")
    for stage in (options.stage,) if options.stage else STAGES:
        if stage == "index":
            for name in (options.name,) if options.name else settings.sets:
                print(processes.agreed(lambda name=name: protocol.index(settings, name)))
        elif stage == "targets":
            for name in dict.fromkeys(run[0] for run in runs):
                print(teacher.measure_scale(settings, name, device))
        elif stage == "train":
            for run in runs:
                print(training.train(settings, *run))
        elif stage == "score":
            for run in runs:
                print(*scoring.score_run(settings, *run, device), sep="\n")
        else:
            print(*processes.agreed(lambda: scoring.table(settings)), sep="\n")


def budget(options):
    from anl import budget
    from anl.cli_index import table_text

    if options.tflops is not None and options.tflops <= 0:
        raise UserError(f"--tflops {options.tflops:g}: give a rate above 0")
    if options.gpus < 1 or (options.cores is not None and options.cores < 1):
        raise UserError("--gpus and --cores: give 1 or more")
    settings = settings_of(options)
    if options.measure:
        budget.measure(settings)
    found = budget.work_out(settings, options.tflops, options.gpus, options.cores)
    if options.write:
        if options.tflops is None:
            raise UserError("--write needs --tflops: the book states the rate of a GPU beside this machine's")
        print(budget.write(budget.work_out(settings), found))
    print(table_text(budget.COLUMNS, [[row[column] for column in budget.COLUMNS] for row in found.rows]))
    print("\n".join(["", *found.notes]))
