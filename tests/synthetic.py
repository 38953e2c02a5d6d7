"""Results as the notebooks write them, made up, so that claims and book can be tested without a pipeline run."""

import dataclasses
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageDraw

from anl import book, figures_gallery, gallery, params
from anl.analysis import value
from anl.attention_study import COMPARISONS, MEASURES
from anl.book import NOTEBOOKS
from anl.calibration_study import TABLE, TEMPERATURE
from anl.data.photos import read_card
from anl.files import write_csv, write_json, write_text
from anl.metrics import Calibration
from anl.origins import FIGURES

ROOT = Path(__file__).resolve().parents[1]
PEER = {"method": "npr", "multiply_adds": 27672624, "frozen_parameters": 0, "seeds": 5, "n": 1440,
        **{f"{where}_AP{end}": 0.7 for where in ("seen", "unseen")
           for end in ("", "_low", "_high", "_jpeg96", "_jpeg96_low", "_jpeg96_high")}}
DIFFERENCE = {"value": 0.021, "low": 0.004, "high": 0.038}


def values(difference=None):
    """{notebook: values.json}; `difference` replaces value, low and high of the headline difference."""
    headline = difference or DIFFERENCE

    def interval(mean, half=0.02):
        return value(mean, mean - half, mean + half, n=800, seeds=3)

    cross = {f"{where}_AP_{who}": interval(0.8 if who == "plain" else 0.82)
             for where in ("unseen", "seen") for who in ("plain", "anl")}
    cross |= {"unseen_AP_difference": value(headline["value"], headline["low"], headline["high"], n=800, seeds=3),
              "seen_AP_difference": interval(-0.004), "unseen_accuracy_difference": interval(0.01),
              "control_fpr_plain_max": interval(0.09),
              "control_fpr_anl_max": interval(0.08)}
    step = {f"unseen_AP_t{t}": interval(0.82 - 0.01 * i) for i, t in enumerate((1, 10, 100, 500))}
    step |= {"best_step": {**value(1, seeds=3), "text": "t = 1"}, "t1_minus_best_other": interval(0.01)}
    attention = {f"unseen_AP_{name}": interval(0.8) for name in ("none", "energy", "gate", "affinity")}
    attention |= {"affinity_minus_none": interval(-0.05), "affinity_minus_none_seen": interval(0.001),
                  "affinity_gain_unseen_minus_seen": interval(-0.051), "pairs": value(33, digits=0),
                  "cells": value(64, digits=0), "pair_families": {**value(1), "text": "ddim"},
                  **{f"{key}_{name}": interval(0.5) for name in ("none", "energy", "gate", "affinity") for key in
                     (*MEASURES, "deletion", "insertion", "falling_rising")}}
    targets = {f"unseen_AP_{name}": interval(0.8) for name in ("plain", "prior", "highpass")}
    targets |= {"prior_minus_plain": interval(0.02), "highpass_minus_plain": interval(0.015),
                "best_other": {**value(1), "text": "`highpass`"}, "own_minus_best_other": interval(0.005),
                "own_minus_best_other_seen": interval(0.01)}
    for numbers in (cross, step, attention, targets):
        numbers |= {f"{key}_jpeg96": number for key, number in numbers.items()}
    detector = {"extra_parameters_share": value(0.031), "extra_macs_share": value(0.21),
                "prior_in_checkpoint": {**value(0), "text": "no"}, "effective_support_real": value(0.9, digits=2),
                **{f"noise_correlation_{split}_{kind}": value(0.5, n=256, digits=2)
                   for split in ("train", "val") for kind in ("real", "generated")}}
    data = {key: value(0.6) for key in ("format_accuracy_max", "spectrum_AP_min", "spectrum_AP_max",
                                        "high_frequency_ratio_min", "high_frequency_ratio_max")}
    prior = {"denoising_ratio_t1": interval(0.9), "grey_levels_t1": value(0.4, digits=2), "s_t1": value(0.3),
             "steps_better_than_filter": {**value(8, digits=0), "text": "8 of 9 steps"}}
    robust = {"gain_untouched": interval(0.02), "gains_held": {**value(7, digits=0), "text": "7 of 12"},
              "gains_lost": {**value(5, digits=0), "text": "jpeg 90, noise 10"}}
    for metric in ("AP", "real_accuracy"):
        for who in ("plain", "anl"):
            robust |= {f"{metric}_{who}_untouched": interval(0.8), f"{metric}_{who}_lowest": interval(0.52),
                       f"{metric}_{who}_lowest_at": {**value(0.52), "text": "jpeg 50"}}
    calibration = {f"{where}_{metric}_{who}": interval(0.3) for where in ("seen", "unseen") for who in ("plain", "anl")
                   for metric in ("fake_accuracy", *TEMPERATURE)}
    calibration |= {f"real_accuracy_{who}": interval(0.94) for who in ("plain", "anl")}
    further = {f"gain_{name}": interval(0.1) for name in ("unseen_benchmark", "unseen", "unseen_further", "unseen_jpeg96",
                                                           "unseen_further_jpeg96")}
    further |= {f"held_{name}": {**value(2, digits=0), "text": "2 of 3"} for name in ("unseen", "unseen_further", "unseen_jpeg96")}
    further |= {f"lost_{name}": {**value(1, digits=0), "text": "`vae`"} for name in ("unseen", "unseen_jpeg96")}
    further |= {f"spectrum_AP_{name}": interval(0.6) for name in ("dpm", "inpaint", "superres", "unconditional")}
    further |= {f"{key}_unconditional": interval(0.1) for key in ("gain", "AP_plain", "AP_anl")}
    look = {name: value(number, digits=0) for name, number in (("patches", 2), ("generators", 2), ("gain", 8), ("spread", 3),
                                                               ("brightest", 2), ("level", 1))}
    look |= {f"{key}_{kind}": value(0.5, n=2) for key in ("support", "correlation") for kind in ("real", "generated")}
    further |= {"altered_inpaint": value(0.37, n=240), "unseen": value(8, digits=0), "images": value(240, digits=0)}
    return {"data": data, "prior": prior, "detector": detector, "cross_generator": cross, "step_t": step,
            "attention": attention, "targets": targets, "families": further, "robustness": robust, "calibration": calibration,
            "gallery": look}


def tables():
    """{notebook: {table: rows}} with the columns of the notebooks' CSV files."""
    band = {"mean": 0.8, "low": 0.7, "high": 0.9, "seeds": 3, "n": 800}
    gain = {"difference": -0.02, "low": -0.05, "high": 0.01, "seeds": 3, "n": 800}
    places = [{"generator": name, "seen": name == "ddim", "view": view, "metric": metric}
              for view in ("raw", "matched", "jpeg96") for name in ("ddim", "ddpm", "vae", "unseen")
              for metric in ("AP", "balanced_accuracy")]

    def summary(methods):
        return [{"method": method, **place, **band} for method in methods for place in places]

    def difference(methods, baseline):
        return [{"method": method, "baseline": baseline, **place, **gain} for method in methods for place in places]

    def turned(methods, baseline):
        return [{"other": row["method"], **{key: row[key] for key in row if key not in ("method", "baseline")}}
                for row in difference(methods, baseline)]

    rates = [{"method": method, "control": control, "false_positive_rate": 0.06, "low": 0.02, "high": 0.1, "seeds": 3,
              "n": 400} for method in ("plain", "anl") for control in ("raw", "blur")]
    support = [{"method": method, "patches": patches, **{f"{key}{end}": 0.5 for key in MEASURES for end in ("", "_low", "_high")},
                "cells": 64, "seeds": 3, "n": 33} for method in ("none", "affinity") for patches in ("real", "generated")]
    both = {**{f"{name}{end}": 0.6 for name in ("plain", "anl", "anl_minus_plain") for end in ("", "_low", "_high")}, "seeds": 3,
            "n": 800}
    hardships = [{"perturbation": words, **both} for words in ("untouched", "jpeg 50")]
    every = [{"measure": words, **both} for words in TABLE.values()]
    methods = [{"method": method, **{f"{part}{end}": 0.7 for part in ("unseen", "unseen_benchmark", "unseen_further", "anl_minus_it")
                                     for end in ("", "_low", "_high")}, "seeds": 5, "n": 2160} for method in ("dnf", "anl")]
    probe = {"accuracy": 0.5, "low": 0.45, "high": 0.55, "n": 800}
    return {
        "data": {"split_counts": [{"generator": "real", "train": 9, "val": 4, "test": 4, "photographs": 12}],
                 "family_statistics": [{"family": "vae", "seen": False, "n": 8, "ap_contrast": 0.5,
                                        "ap_contrast_low": 0.4, "ap_contrast_high": 0.6, "psnr": 31.234}],
                 "format_probe": [{"features": "declared", "family": "vae", **probe}],
                 "compression_probe": [{"set": "real", "n": 8, "blockiness": 0.1, "ap_against_real": None, "low": None,
                                        "high": None}]},
        "prior": {"denoising": [{"step": 1, "timestep": 0, "noise": 1.3, "ratio": 0.9, "ratio_low": 0.8,
                                 "ratio_high": 0.95}],
                  "amplitude": [{"step": 1, "patches": "real", "standard_deviation": 0.3, "grey_levels": 0.4, "n": 8}]},
        "detector": {"noise_correlation": [{"split": "val", "generator": "real", "correlation": 0.5, "n": 8}],
                     "effective_support": [{"generator": "real", "effective_support": 0.9, "smallest": 0.5, "n": 8}],
                     "costs": [{"method": "plain", "parameters": 12345, "multiply_adds": 2345678}],
                     "curves": [{"method": method, "quantity": quantity, "step": step, "value": 1 / step}
                                for method in ("plain", "anl") for quantity in ("classification_loss", "val_AP")
                                for step in (10, 20, 30)]},
        "cross_generator": {"summary": summary(["plain", "anl"]), "difference": difference(["anl"], "plain"),
                            "controls": rates, "metrics": [{"method": "plain", "generator": "vae", "AP": 0.8}]},
        "step_t": {"summary": summary(["t1", "t10", "t100", "plain"]), "t1_minus_other": turned(["t10", "t100"], "t1")},
        "attention": {"summary": summary(["none", "energy", "gate", "affinity"]), "difference": difference(["energy", "gate", "affinity"], "none"), "support": support, "area_difference": [
            {"method": method, "curve": curve, "reference": reference, **gain} for method in ("none", "affinity")
            for curve, reference in COMPARISONS]},
        "targets": {"summary": summary(["plain", "prior", "highpass"]), "gain": difference(["prior", "highpass"], "plain"), "own_minus_other": turned(["highpass"], "prior")},
        "families": {"means": summary(["plain", "anl"]), "gain": difference(["anl"], "plain"), "methods": methods, **{f"family_{metric}": [{"family": "dpm", "part": "further", **both}]
                        for metric in ("AP", "balanced_accuracy")},
                     "family_statistics": [{"family": "dpm", "seen": False, "n": 480, "ap_contrast": 0.5, "psnr": None}]},
        "robustness": {"unseen_AP": hardships, "unseen_balanced_accuracy": hardships, "rates": [
            {"method": method, "perturbation": "jpeg 50", "real": 0.9, "vae": 0.3, "unseen": 0.2} for method in ("plain", "anl")]},
        "calibration": {"unseen": every, "seen": every,
                        "by_generator": [{"method": "anl", "generator": "vae", **dict.fromkeys(TABLE, 0.6)}],
                        "temperature": [{"images": view, "method": "anl", "generator": "unseen", "NLL": 0.7,
                                         "NLL_change": 0.01, "NLL_change_low": -0.01, "NLL_change_high": 0.03, "seeds": 3,
                                         "n": 800} for view in ("raw", "jpeg96")],
                        "constants": [{"method": "anl", "seed": 0, "threshold": 0.6, "temperature": 0.8, "n": 440}]},
        **{name: {"summary": summary(["plain", "anl"]), "gain": difference(["anl"], "plain")}
           for name in ("attention_loss", "loss_weight", "anl_plus")},
        "claims": {"verdicts": [{"id": "x", "title": "It helps", "verdict": "reproduced", "measure": "AP", "value": 0.1, "low": 0.05,
                                 "high": 0.2, "n": 800, "seeds": 3, "text": "0.100 [0.050, 0.200]", "rule": "95 % interval above 0"}],
                   "by_view": [{"claim": "It helps", "in_view": view, "verdict": "reproduced", "value": 0.1, "low": 0.05,
                                "high": 0.2, "n": 800, "seeds": 3} for view in ("matched", "raw", "jpeg96")]}}


def wanted_figures(pages=ROOT / "book"):
    """{(notebook, file name)} of the figures that the pages show."""
    text = "".join(page.read_text(encoding="utf-8") for page in Path(pages).glob("*.md"))
    return set(re.findall(r"generated/(\w+)/([\w.]+\.png)", text))


def write_results(folder, profile="small", difference=None):
    """Write results/<profile> under `folder`; returns the folder of results."""
    results = Path(folder) / "results"
    numbers = values(difference)
    for name in NOTEBOOKS:
        place = results / profile / name
        place.mkdir(parents=True, exist_ok=True)
        if name in numbers:
            write_json(place / "values.json", numbers[name])
        for table, rows in tables().get(name, {}).items():
            write_csv(place / f"{table}.csv", rows)
        if name == "gallery":
            write_gallery(place)
        write_notebook(place / f"{name}.ipynb", name)
    write_committed(results / "full")
    write_committed(results / book.PUBLIC, book.PUBLIC)
    write_public(results / "use/cifake")
    for name, figure in wanted_figures():
        draw_with_tables(results / profile / name / figure)
    return results


def write_gallery(place):
    """Two patches, two generators and two steps in made-up pixels, through the library's own description and sheets."""
    rng = np.random.default_rng(0)
    photos = read_card(ROOT / "data/photos.csv")[:2]
    table = pd.DataFrame({"place": [f"{photo.id}@0x0" for photo in photos], "photo": [photo.id for photo in photos]})
    patches = gallery.Patches(table, ["real", "ddim", "vae"], rng.integers(0, 256, (3, 2, 64, 64, 3), dtype=np.uint8))
    shape = (3, 2, 3, 64, 64)
    sights = {step: gallery.Sight(rng.normal(size=shape), rng.normal(size=shape), rng.dirichlet(np.ones(64), (3, 2)).reshape(3, 2, 8, 8),
                                  rng.normal(size=(3, 2))) for step in (1, 10)}
    scores = gallery.scores(patches, sights, dict.fromkeys(sights, Calibration(0.4, 1.2)), "ddim", [])
    credit = gallery.credits_of(patches, photos)
    write_csv(place / "patches.csv", credit.drop(columns="sha256").to_dict("records"))
    write_csv(place / "scores.csv", scores.to_dict("records"))
    write_json(place / "gallery.json", gallery.description(
        patches, credit, scores, figures_gallery.write_sheets(place / "sheets", patches.pixels, sights),
        {"generator": "ddim", "step": 1}, {"gain": 8, "spread": 3, "brightest": 2}))


def write_committed(folder, profile="full"):
    """The stored results that the pages show: what their sections name, made up."""
    sections = ROOT / "book/committed" if profile == "full" else ROOT / "book/committed" / profile
    texts = {section.name.removesuffix(".md.txt"): section.read_text(encoding="utf-8") for section in sections.glob("*.md.txt")}
    for section, text in texts.items():
        place = folder / section
        place.mkdir(parents=True, exist_ok=True)
        # a section may quote another's numbers
        name = section if section == profile else f"{profile}_{section}"
        keys = re.findall(rf"{{{{ {name}\.(\w+) }}}}", "".join(texts.values()))
        write_json(place / "values.json", {key: value(0.1, 0.0, 0.2, n=1440, seeds=5) for key in keys})
        write_notebook(place / f"{section}.ipynb", section)
        for name in re.findall(rf"generated/{profile}/\w+/(\w+)\.html", text):
            write_csv(place / f"{name}.csv", [{"other": "highpass", "generator": "vae", "view": "matched", "metric": "AP",
                                               "difference": 0.1, "low": 0.0, "high": 0.2, "seeds": 5, "n": 480}])
        for table, rows in {**tables(), "peers": {"peers": [PEER]}}.get(section, {}).items():
            write_csv(place / f"{table}.csv", rows)
        for name in re.findall(rf"generated/{profile}/\w+/([\w.]+\.png)", text):
            draw_with_tables(place / name)


def write_public(folder):
    """What `anl compare` stores, made up: the values that the sections name, and their tables."""
    text = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "book/committed/use").glob("*.md.txt"))
    write_json(folder / "values.json", {key: value(0.1, 0.0, 0.2, n=2000) for key in re.findall(r"{{ public\.(\w+) }}", text)})
    for name in ("verdicts", "ranking", "difference"):
        write_csv(folder / f"{name}.csv", [{"detector": "embedded", "AP": 0.5, "AP_low": 0.4, "AP_high": 0.6, "images": 2000}])


def draw_with_tables(path):
    """A figure, and of the tables it is drawn from those that are not there yet."""
    draw_figure(path)
    for table in FIGURES.get(f"{path.parent.name}/{path.name}", []):
        if not (path.parent / table).is_file():
            write_csv(path.parent / table, [{"method": "anl", "value": 0.5}])


def draw_figure(path):
    image = Image.new("RGB", (1200, 600), "white")
    ImageDraw.Draw(image).line([(40, 560), (600, 200), (1160, 80)], fill="steelblue", width=6)
    image.save(path)


def write_notebook(path, title, error=False):
    cell = nbformat.v4.new_code_cell("1 + 1", execution_count=1, id="c1")
    shown = nbformat.v4.new_output("execute_result", {"text/plain": "2"}, execution_count=1)
    failed = nbformat.v4.new_output("error", ename="ValueError", evalue="x", traceback=["x"])
    cell.outputs = [failed if error else shown]
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_markdown_cell(f"# The notebook: {title}", id="c0"), cell],
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}})
    write_text(path, nbformat.writes(notebook) + "\n")


def prepared_book(folder, profile="small"):
    """A copy of book/ under `folder`, fed from made-up results of `profile`."""
    settings = params.from_dict({**params.resolve("small", ROOT / "profiles"), "profile": profile}, "test")
    data = dataclasses.replace(settings.data, card=str(ROOT / settings.data.card))
    patches = dataclasses.replace(settings.benchmark, folder=str(ROOT / settings.benchmark.folder))
    settings = dataclasses.replace(settings, data=data, benchmark=patches)
    results = write_results(folder, profile)
    copy = Path(folder) / "book"
    shutil.copytree(ROOT / "book", copy, ignore=shutil.ignore_patterns("_build", "generated"), dirs_exist_ok=True)
    book.prepare(settings, results=results, book=copy, claims_path=ROOT / "claims.yaml",
                 provenance=Path(folder) / "provenance", pipeline=ROOT / "dvc.yaml", notebooks=ROOT / "notebooks",
                 citation=ROOT / "CITATION.cff", detector=ROOT / "models/detector", cache=ROOT / ".cache/anl")
    return copy, settings


def build(copy):
    """Run Jupyter Book with warnings as errors; returns the finished process."""
    tool = Path(sys.executable).with_name("jupyter-book")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NO_COLOR": "1"}
    return subprocess.run([tool, "build", copy, "-W", "-n", "--keep-going", "--all"], capture_output=True, text=True,
                          env=environment, check=False)


@pytest.fixture(scope="session")
def built_book(tmp_path_factory):
    """Folder of the HTML pages of a book built from made-up results."""
    copy, _ = prepared_book(tmp_path_factory.mktemp("book"))
    done = build(copy)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return copy / "_build" / "html"
