"""Evaluate a detector on whole pictures, as files, re-encoded and resized, with the verdicts that users get."""

import os

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from anl.data import REAL, crops, manifest, processing
from anl.data.decode import decode
from anl.detect.card import FILES
from anl.detect.tiles import tile
from anl.evaluation import bootstrap
from anl.evaluation.compare import COLUMNS
from anl.evaluation.metrics import Sample, auroc
from anl.evaluation.scoring import score
from anl.io import UserError
from anl.training.experiments import run_folder
from anl.training.runs import load_run, train

CONDITIONS = (FILES, "jpeg_90", "jpeg_70", "scale_0.5")


def choose_pictures(manifests, most, seed):
    """Choose pictures of several manifests: their test images, or all where a manifest has no splits.

    Parameters
    ----------
    manifests : dict
        Name -> path of a manifest.
    most : int
        Largest number of pictures per manifest and generator, real images counting as one generator. They are chosen by a
        hash of `seed` and their bytes.
    seed : int

    Returns
    -------
    DataFrame
        path, source (the manifest's name), label, and set: the name for photographs, name/generator for others.

    Raises
    ------
    UserError
        If a manifest is missing, damaged, or without test images.
    """
    chosen = []
    for name, index in manifests.items():
        rows = manifest.read(index, ["path", "sha256", "label", "generator", "split"])
        rows = rows[rows["split"].isin(["test"] if (rows["split"] == "test").any() else ["unsplit"])]
        if rows.empty:
            raise UserError(f"{index} has no test images; name a manifest with a split `test`, or one without splits")
        rows = rows.assign(draw=crops.draw_order(rows, seed)).sort_values("draw").groupby("generator", observed=True).head(most)
        root = manifest.root_of(index)
        chosen.append(pd.DataFrame({
            "path": [os.path.join(root, manifest.file_path(path)) for path in rows["path"]], "source": name, "label": rows["label"],
            "set": [name if real else f"{name}/{generator}" for real, generator in zip(rows["label"] == 0, rows["generator"])]}))
    found = pd.concat(chosen) if chosen else pd.DataFrame(columns=["path", "source", "label", "set"])
    return found.sort_values(["label", "source", "set"], kind="stable").reset_index(drop=True)


def score_pictures(detector, pictures, conditions=CONDITIONS):
    """Score pictures in several conditions.

    Parameters
    ----------
    detector : anl.detect.detector.ImageDetector
    pictures : DataFrame
        path; other columns are kept.
    conditions : sequence of str
        FILES, or names of `anl.data.processing.apply_to_picture`.

    Returns
    -------
    DataFrame
        `pictures` with condition, logit and verdict, a row per picture and condition.

    Raises
    ------
    UserError
        If a picture cannot be read, or a condition is unknown.
    """
    scores = detector.score(_treated(pictures, conditions))
    return _rows(pictures, conditions).assign(logit=[score.logit for score in scores], verdict=[score.verdict for score in scores])


def score_with_runs(config, name, pictures, conditions=CONDITIONS):
    """Score pictures with every run of an experiment; missing runs are trained first.

    Parameters
    ----------
    config : anl.config.Config
    name : str
        A key of `config.experiments`.
    pictures, conditions : DataFrame, sequence of str
        As of `score_pictures`.

    Returns
    -------
    DataFrame
        The columns `anl.evaluation.compare.COLUMNS`: a picture is a group of its own, its set is its generator, and its
        condition the view.
    """
    runs = train(config, name)
    networks = [(load_run(run_folder(run, config.run.runs), run.config), run.config.benchmark.size) for run in runs]
    logits = [[float(score(network, tile(pixels, size)[0], "cpu", config.run.batch_size).mean()) for network, size in networks]
              for pixels in _treated(pictures, conditions)]
    rows = _rows(pictures, conditions)
    rows = rows.assign(image_id=rows["path"], group=rows["path"], view=rows["condition"], pair="", split="test",
                       generator=rows["set"].where(rows["label"] == 1, REAL))
    return pd.concat([rows.assign(variant=run.variant, seed=run.seed, logit=own)[COLUMNS]
                      for run, own in zip(runs, zip(*logits), strict=True)], ignore_index=True)


def _treated(pictures, conditions):
    """Yield the pixels of each picture in each condition."""
    for path in tqdm(pictures["path"], desc="pictures", disable=None):
        pixels = decode(path)
        for condition in conditions:
            yield pixels if condition == FILES else processing.apply_to_picture(condition, pixels, str(path))


def _rows(pictures, conditions):
    """A row per picture and condition, in the order of `_treated`."""
    rows = pictures.loc[np.repeat(pictures.index, len(conditions))].reset_index(drop=True)
    return rows.assign(condition=list(conditions) * len(pictures))


def results(scores, *, replicates=1000, seed=0):
    """AUROC and shares of verdicts for each set and condition.

    Generated pictures are compared with the photographs of the same source, or with all photographs if that source has none.

    Parameters
    ----------
    scores : DataFrame
        Of `score_pictures`, with the columns of `choose_pictures`.
    replicates, seed : int
        Of the bootstrap over pictures.

    Returns
    -------
    DataFrame
        A row per set and condition: auroc with low and high (95 %; of generated sets), accuracy (share of right verdicts among
        those that are not `undecided`), generated, undecided and real (shares of verdicts), n.
    """
    found = []
    for (name, condition), part in scores.groupby(["set", "condition"], sort=False):
        generated, shares = bool(part["label"].iloc[0]), part["verdict"].value_counts(normalize=True)
        row = {"set": name, "condition": condition, "auroc": np.nan, "low": np.nan, "high": np.nan}
        real = scores[(scores["label"] == 0) & (scores["condition"] == condition)]
        if generated and len(real):
            own = real["source"] == part["source"].iloc[0]
            real = real[own] if own.any() else real
            both = pd.concat([real, part])
            group = np.arange(len(both))
            draws = bootstrap.draw_groups(group, replicates, seed, both["label"])
            sample = Sample.of(both["label"].to_numpy(), both["logit"].to_numpy(), group=draws.place(group))
            span = bootstrap.interval([auroc(sample)], auroc(sample, draws.counts)[None], len(group), strata=2)
            row |= {"auroc": float(span.mean), "low": max(0.0, float(span.low)), "high": min(1.0, float(span.high))}
        said = {verdict: float(shares.get(verdict, 0.0)) for verdict in ("generated", "undecided", "real")}
        decided = 1 - said["undecided"]
        right = said["generated" if generated else "real"]
        found.append(row | {"accuracy": right / decided if decided > 0 else np.nan, **said, "n": len(part)})
    return pd.DataFrame(found)
