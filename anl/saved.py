"""Scores of finished runs, kept in git, so that every table made of scores can be computed again without a model.

results/predictions/<profile>/ holds runs.json, what each run is, and a Parquet file for each kind of score, with a row an image
and view and a column a run. Logits are float32, as detectors give them, so that nothing is lost.
"""

import contextlib
import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd

from anl import baselines, detector, runs
from anl.baselines.costs import inference_cost
from anl.errors import UserError
from anl.files import read_json, sha256_of, whole_file, write_json, write_text
from anl.predict import RESTORED, beside, write_keyed, write_predictions

FOLDER, INDEX, OWN, LOGIT = "predictions", "runs.json", "predictions", "logit"
KINDS = ("robustness", "families")  # of scores beside a run's own


def folder_of(params, results="results"):
    """Where the saved scores of a profile lie."""
    return Path(results) / FOLDER / params.profile


def save(params, root="runs", results="results"):
    """Gather the scores of every finished run of the profile; returns the folder.

    Saved runs that are no longer on disk stay, if the profile's parameters are still theirs, and so do saved scores of a run whose
    weights are the same. Raises UserError if there is no finished run, or if runs were scored on different images.
    """
    target = folder_of(params, results)
    tables, about = _stored(target, params)
    found = finished(params, root)
    if not found and not about:
        raise UserError(f"profile {params.profile} has no finished run in {root}/{params.profile} to save; train some, for "
                        f"example with `anl notebook cross_generator`")
    for folder in found:
        weights, scored = sha256_of(folder / "model.safetensors"), _parts(folder)
        before = about.get(folder.name, {})
        keys = before["keys"] if before.get("weights") == weights else {}
        for part, parts in tables.items():
            if part in scored or part not in keys:
                parts.pop(folder.name, None)
        for part, path in scored.items():
            table = pd.read_parquet(path)
            keys[part] = table.attrs.get("key")
            _add(tables.setdefault(part, {}), folder, part, table)
        about[folder.name] = {"run": read_json(folder / "run.json"), "weights": weights, "keys": keys, "cost": cost_of(folder, params)}
    target.mkdir(parents=True, exist_ok=True)
    for part, columns in tables.items():
        if columns:
            _write(target / f"{part}.parquet", columns)
        else:  # its runs have been trained anew and not been scored so
            (target / f"{part}.parquet").unlink()
    write_json(target / INDEX, about)
    return target


def save_all(params, root="runs", results="results"):
    """`save` for the profile, and for each of its benchmarks without a family that has finished runs; returns the folders."""
    from anl import leave_one_out

    families = [name for name in params.families if (Path(root) / params.profile / leave_one_out.NAME / name).is_dir()]
    nested = [own for own in (leave_one_out.without(params, name) for name in families) if finished(own, root)]
    return [save(own, root, results) for own in (params, *nested)]


def finished(params, root="runs"):
    """Folders of the profile's finished runs that its parameters still describe, each run once, by name."""
    found = {}
    for group in runs.GROUPS:
        for folder in sorted((Path(root) / params.profile / group).glob("*")):
            if folder.name.startswith(".") or not all((folder / name).is_file() for name in (
                    "run.json", "predictions.parquet", "model.safetensors")):
                continue
            if _is_current(read_json(folder / "run.json"), params):
                found.setdefault(folder.name, folder)
    return [found[name] for name in sorted(found)]


def cost_of(folder, params):
    """A run's cost at inference, see anl.baselines.costs: counted, or of a restored run as it was counted when saved."""
    about = read_json(Path(folder) / "run.json")
    if "saved" in about:
        return about["saved"]["cost"]
    name = about["spec"].get("baseline")
    needs = baselines.get(name).needs if name else ()
    return inference_cost(detector.load(Path(folder) / "model.safetensors"), params.benchmark.size, needs, params.models_folder)


@contextlib.contextmanager
def restored(params, root="runs", results="results"):
    """Let the block find the saved runs, of the profile and of those nested in it, and no others, in place of trained ones.

    Raises UserError if nothing is saved, or it was saved under other parameters. Trained runs are not touched.
    """
    from anl import leave_one_out

    nested = [leave_one_out.without(params, family) for family in params.families
              if folder_of(params, results).joinpath(leave_one_out.NAME, family, INDEX).is_file()]
    places = [(own, Path(root) / own.profile / RESTORED) for own in (params, *nested)]
    try:
        for own, place in places:
            shutil.rmtree(place, ignore_errors=True)
            _restore(own, place, folder_of(own, results))
        yield
    finally:
        for _, place in places:
            shutil.rmtree(place, ignore_errors=True)


def _restore(params, place, source):
    if not (source / INDEX).is_file():
        raise UserError(f"no predictions are saved for profile {params.profile} ({source / INDEX} is missing); those in git "
                        "are of the profiles in results/predictions, others are made by `anl predictions`")
    tables, about = _stored(source, params)
    if not about:
        raise UserError(f"the predictions in {source} were saved under other parameters than profile {params.profile} has "
                        "now; `git checkout` it, or train the runs and save theirs with `anl predictions`")
    write_text(place / runs.PROCESS, str(os.getpid()))
    for name, item in about.items():
        folder = place / name
        write_predictions(folder, tables[OWN][name])
        for part, key in item["keys"].items():
            if part != OWN:
                kind, _, file = part.partition("-")
                write_keyed(beside(folder, kind) / f"{file}.parquet", tables[part][name], key)
        write_json(folder / "run.json", {**item["run"], "saved": {"weights": item["weights"], "cost": item["cost"]}})


def _parts(folder):
    """{part: file of scores} of a run; a part's name is the file's stem here."""
    found = {OWN: folder / "predictions.parquet"}
    for kind in KINDS:
        found |= {f"{kind}-{path.stem}": path for path in sorted(beside(folder, kind).glob("*.parquet"))}
    return found


def _add(columns, folder, part, table):
    """Put a run's table among the others of its part, all of the same images."""
    first = next(iter(columns.values()), None)
    if first is not None and not _rows(first).equals(_rows(table)):
        raise UserError(f"{folder} was scored on other images, views or strengths than {next(iter(columns))} ({part}); score it "
                        f"again with `anl predict {folder}`, or remove the older run")
    columns[folder.name] = table


def _rows(table):
    return table.drop(columns=LOGIT).reset_index(drop=True)


def _stored(folder, params):
    """({part: {run: table}}, {run: what it is}) of what is saved and still the profile's."""
    if not (folder / INDEX).is_file():
        return {}, {}
    about = {name: item for name, item in read_json(folder / INDEX).items() if _is_current(item["run"], params)}
    tables = {}
    for part in dict.fromkeys(part for item in about.values() for part in item["keys"]):
        path = folder / f"{part}.parquet"
        try:
            wide = pd.read_parquet(path)
            names = [name for name, item in about.items() if part in item["keys"]]
            rows = wide.drop(columns=[column for column in wide if column not in wide.attrs["rows"]])
            tables[part] = {name: rows.assign(logit=wide[name].astype(np.float64)) for name in names}
        except Exception as problem:
            raise UserError(f"{path} is missing or damaged ({str(problem).splitlines()[0]}); restore it with "
                            f"`git checkout {path}`") from None
    return tables, about


def _is_current(about, params):
    try:
        return runs.RunSpec(**about["spec"]).identity(params) == about["identity"]
    except (KeyError, TypeError, UserError):
        return False


def _write(path, columns):
    rows = _rows(next(iter(columns.values())))
    logits = {}
    for name in sorted(columns):
        exact, short = columns[name][LOGIT].to_numpy(), columns[name][LOGIT].to_numpy(np.float32)
        logits[name] = short if np.array_equal(short.astype(np.float64), exact) else exact  # a mean of two is no float32
    table = pd.concat([rows, pd.DataFrame(logits)], axis=1)
    table.attrs["rows"] = list(rows.columns)
    with whole_file(path) as temporary:
        # a dictionary pays for repeated words; for logits it would hide from zstd that views share scores
        table.to_parquet(temporary, index=False, compression="zstd", use_dictionary=list(rows.columns))
