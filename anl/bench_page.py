"""The tables of `make bench`, as stored under results/bench, for the book's page on cost: first what was asked, then each."""

import html
import re
from pathlib import Path

import pandas as pd

from anl import bench_summary
from anl.files import read_json, write_csv, write_text
from anl.origins import Origin, details
from anl.tables import copy_results, html_table

CAPTIONS = {
    "inference": "Inference: parameters and multiply-adds for one image, counted, and the time of a batch. `bare` is the timm "
                 "backbone alone, `plain` our detector without noise, the others with it and each attention; `shallow` is the bare "
                 "backbone with `affinity` read from a branch beside it.",
    "training": "One training step with cached targets, beside those of the bare backbone and the plain detector. The batch is "
                "ready: forward, loss, backward and update alone.",
    "steps": "A step of the training loop itself: the batch cut, processed and made a tensor, targets read, gradients clipped.",
    "scoring": "Images a second of scoring what is stored, read and decoded, beside the same network called on tensors in a loop.",
    "peers": "Inference beside methods that keep the prior, its calls included: parameters, frozen ones apart, and multiply-adds of "
             "one image, counted. UnivFD, which keeps a pre-trained encoder, has a row where that was at hand.",
    "compile": "Does `torch.compile` pay? The same calls as they are and compiled; `steps to pay` is how many of them win back the "
               "time that compiling takes.",
    "repro": "`dvc repro` with nothing to do, for this pipeline with more seeds, in a copy whose runs are stand-ins.",
    "manifest": "A made-up manifest written, counted, queried and sampled.",
    "processes": "Two processes of a thread each, beside one of one thread and one of two; the network is the detector of the active "
                 "profile, or one on ResNet-50, on the same images.",
    "decode": "Seconds of one core for decoding an image and cutting a crop of it, with quartiles.",
    "targets": "Images a second while targets are made, beside the bare prior called in a loop.",
    "throughput": "`anl detect`, with one thread that reads and one for the network: pictures a second of reading alone, of the "
                  "network alone and of the whole, and the whole's speed over that of the slower part (1 is all there is to have).",
    "memory": "Peak memory of `anl detect` by the number of pictures.",
    "start": "From typing `anl detect ONE.png` to its score, in seconds by the clock and of processor time.",
    "runtimes": "The network in PyTorch and, exported, in ONNX runtime: the same crops, one thread each."}

TITLES = {"pipeline": "The pipeline", "processes": "Two processes"}


def gather(results, target):
    """Copy every measurement in `results` to `target`, with a section each in target/bench.md.txt, and what was measured of
    `anl detect` in a sentence in target/detect.md.txt (both empty where none is)."""
    sections = []
    for folder in sorted((path.parent for path in Path(results).glob("*/machine.json")), key=_order):
        machine = read_json(folder / "machine.json")
        backbone, _, size = folder.name.rpartition("-")
        ran = {"versions": {key: machine[key] for key in ("python", "torch")}, **machine}
        origin = Origin(f"bench/{folder.name}", "make bench", sidecar=ran)
        copy_results(folder, target / folder.name, {}, origin, "quartiles")
        title = TITLES.get(folder.name) or ("`anl detect`" if backbone == "detect" else f"`{backbone}` at {size} pixels")
        lines = [f"## {title}\n",
                 (f"Measured on {machine['cores']} cores ({machine['device']}), torch {machine['torch']}, Python "
                 f"{machine['python']}, {machine['repeats']} rounds in which the calls take turns; ratios are medians over the "
                 "rounds with their quartiles. Compare the ratios: the times are this machine's.\n")]
        for name, caption in CAPTIONS.items():
            if (folder / f"{name}.csv").is_file():
                place = f"generated/bench/{folder.name}/{name}"
                lines += [f"{caption}\n",
                          f"```{{raw}} html\n:file: {place}.html\n```\n"]
        sections.append("\n".join(lines))
    if sections:
        sections.insert(0, _asked(results, target))
    write_text(target / "bench.md.txt", "\n".join(sections) or "\n")
    write_text(target / "detect.md.txt", "\n".join(map(detect_words, sorted(Path(results).glob("detect-*")))) or "\n")


def detect_words(folder):
    """What the tables of `anl bench --detect` in `folder` say, as a paragraph."""
    tables = [folder / f"{name}.csv" for name in ("start", "throughput", "memory", "runtimes")]
    if not all(table.is_file() for table in tables):  # measured in part
        return ""
    start, whole, memory, runtimes = map(pd.read_csv, tables)
    faster = runtimes.loc[runtimes["runtime"] != "PyTorch", "speed_over_pytorch"]
    return (f"**How fast.** Measured on {read_json(folder / 'machine.json')['cores']} idle cores: {start['seconds'].max():.1f} s from "
            f"typing the command to the first score; then {whole['whole_over_slower'].min():.0%} or more of the speed of the slower "
            f"part, reading or network; {memory['pictures'].max():,} pictures take {memory['memory_over_first'].max():.2f} times the "
            f"memory of {memory['pictures'].min():,}; in ONNX runtime the network is {faster.min():.1f} to {faster.max():.1f} times as "
            "fast as in PyTorch. [](cost.md) has the tables.\n")


def _order(folder):
    """What the page asks first: the method on its own backbone, then on others, then all else."""
    return folder.name.startswith(("detect", "decode")), not folder.name.startswith("test_resnet"), folder.name


def _asked(results, target):
    """The section of the figures that were asked for; writes asked.csv and asked.html."""
    rows = bench_summary.figures(results)
    write_csv(target / "asked.csv", rows)
    origin = Origin("bench", "make bench", sidecar={})
    cells = [[re.sub("`(.+?)`", r"<code>\1</code>", html.escape(row["what"])), _measured(row), f"at {row['at']} {row['limit']:g}{_unit(row)}",
              {None: "\N{EN DASH}", True: "yes", False: "<b>no</b>"}[row["met"]]] for row in rows]
    write_text(target / "asked.html", html_table(["What was asked", "Measured [quartiles]", "Limit", "Met"], cells,
                                                 download=origin.link("asked.csv")) + details(origin, ["asked.csv"]))
    missed, known = (sum(row["met"] is value for row in rows) for value in (False, True))
    return ("## What was asked\n\nThe limits that this project set itself before anything was measured, each as it came out: "
            f"{known} met, {missed} missed, {len(rows) - known - missed} not measured. The tables behind them follow.\n\n"
            "```{raw} html\n:file: generated/bench/asked.html\n```\n")


def _measured(row):
    if row["value"] is None:
        return "not measured"
    text = f"{row['value']:.3g}{_unit(row)}" if row["unit"] else f"{row['value']:.3f}"
    return text if row["low"] is None else f"{text} [{row['low']:.3f}, {row['high']:.3f}]"


def _unit(row):
    return row["unit"] and f" {row['unit']}"
