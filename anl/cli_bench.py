"""`anl bench`: every part of it writes its tables under results/bench, and renews the summary in results/bench.json."""


def add(command):
    """Add the command to the parser by means of `command(name, call, summary, example)`."""
    sub = command("bench", bench, "measure what detectors, trainings and targets cost, side by side; writes results/bench and, of "
                  "all that was asked, results/bench.json", "anl bench --backbone resnet50 --size 224")
    sub.add_argument("--backbone", help="another timm model (default: detector.backbone)")
    sub.add_argument("--stride", type=int, help="of its features (default: detector.stride, or 32 with --backbone)")
    sub.add_argument("--size", type=int, help="pixels on a side (default: benchmark.size)")
    sub.add_argument("--stem-width", type=int, help="channels of the full-resolution stem (default: detector.stem_width)")
    sub.add_argument("--repeats", type=int, default=30, help="rounds, fewer of what takes long (default: %(default)s)")
    sub.add_argument("--only", metavar="TABLE", nargs="+", help="measure these tables alone")
    part = sub.add_mutually_exclusive_group()
    part.add_argument("--detect", action="store_true", help="measure `anl detect` instead: speed, memory, first score, ONNX")
    part.add_argument("--pipeline", action="store_true", help="measure a `dvc repro` with nothing to do, and a large manifest")
    part.add_argument("--together", action="store_true", help="measure two processes beside one")
    part.add_argument("--summary", action="store_true", help="measure nothing; write results/bench.json from what was measured")


def bench(options):
    from anl import bench_summary

    if not options.summary:
        _measure(options)
    path = bench_summary.write()
    print(f"\n{path}")
    for row in bench_summary.figures():
        value = "not measured" if row["value"] is None else f"{row['value']:.3g}{row['unit'] and ' '}{row['unit']}"
        met = {None: "", True: "met", False: "MISSED"}[row["met"]]
        print(f"  {met:7} {value:>12} (at {row['at']} {row['limit']:g})  {row['what']}")


def _measure(options):
    from anl.params import load

    if options.detect:
        from anl import bench_detect
        from anl.detect.scorer import load_detector

        bench_detect.run(load_detector(), load(options.params).data.folder, min(options.repeats, 10), only=options.only)
    elif options.pipeline:
        from anl import bench_pipeline

        bench_pipeline.run(min(options.repeats, 3), only=options.only)
    elif options.together:
        from anl import bench_processes

        bench_processes.run(options.params, min(options.repeats, 5))
    else:
        from anl import bench

        bench.run(load(options.params), options.backbone, options.stride, options.size, options.repeats, options.stem_width,
                  only=options.only)
