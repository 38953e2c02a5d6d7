"""Scores of a trained run on its validation images and on every tested set, in every view, one file a set; and their table."""

from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from anl import bootstrap, processes
from anl import detector as detectors
from anl.data.formats import drawn_from_reals
from anl.errors import UserError
from anl.files import identity, read_json, sha256_of, write_csv
from anl.metrics import calibrate, evaluate
from anl.paper import protocol as protocols
from anl.paper import store
from anl.paper.images import TestImages, test_loader
from anl.paper.training import WEIGHTS, run_identity
from anl.predict import key_of, write_keyed

COLUMNS = ["sample_id", "sha256", "generator", "source_real", "split", "view", "label", "logit"]
SHOWN = ("AP", "AUROC", "accuracy", "accuracy_at_half", "balanced_accuracy", "real_accuracy", "fake_accuracy")


@torch.no_grad()
def score(detector, rows, settings, name, view, device, drawn=None):
    """Logits (N,), float64, of rows' centre crops in full precision, whatever the batch. Several processes share the batches,
    and all get every logit. name: of their set; from Arrow files, its whole test split is streamed."""
    me, size = processes.here(), settings.evaluation.batch_size
    shown = partial(tqdm, desc=view, mininterval=5, leave=False, disable=None if me.main else True)

    def logits(x):
        return detector(x.to(device, memory_format=torch.channels_last, non_blocking=True)).logit.cpu()

    if settings.storage == "arrow" and set(rows["split"]) == {"test"}:
        treat = TestImages((), settings.crop, view, drawn).treated
        return store.once(processes.gathered([(places, logits(x).double().numpy())
                                              for places, x in shown(store.stream(settings, name, treat))]), len(rows))
    mine = range(0, len(rows), size)[me.index::me.count]
    images = TestImages(store.pictures(settings, name, rows), settings.crop, view, drawn)
    loader = iter(test_loader(images, mine, size, settings.training.workers))

    def part(_):  # batches come in the order in which they are asked for
        return logits(next(loader))

    return torch.cat(processes.spread(part, len(rows), size, progress=shown)).double().numpy()


def score_run(settings, protocol, backbone, method, seed, device):
    """Write validation.parquet and one <set>.parquet for each tested set into the run's folder; what is there of the same run,
    views and manifest is left. Returns their paths."""
    folder = settings.run(protocol, backbone, method, seed)
    detector = detectors.load(folder / WEIGHTS, device).to(memory_format=torch.channels_last)
    wanted = run_identity(settings, protocol, backbone, method, seed)
    if read_json(folder / "run.json")["identity"] != wanted:
        raise UserError(f"{folder} was trained with other parameters; train it again with `anl paper train`")
    made = []
    for name in ("validation", *settings.tested):
        path = folder / f"{name}.parquet"
        made.append(path)
        source = settings.protocols[protocol].train if name == "validation" else name
        if name == "validation":
            rows, views = protocols.training_rows(settings, protocol)[1], ["raw"]
        else:
            rows, views = protocols.test_rows(settings, name), settings.evaluation.views
        key = identity({"run": wanted, "weights": sha256_of(folder / WEIGHTS), "views": views, "images": rows["sha256"].tolist()})
        if processes.agreed(lambda path=path, key=key: key_of(path) == key):
            continue
        drawn = drawn_from_reals(rows, settings.seed) if "matched" in views else None
        tables = [rows.assign(view=view, logit=score(detector, rows, settings, source, view, device, drawn)) for view in views]
        write_keyed(path, pd.concat(tables, ignore_index=True)[COLUMNS], key)
    return made


def table(settings):
    """Write <results>/<protocol>.csv for every protocol: each run's metrics, a row a tested set, generator and view.

    Threshold and temperature are those of the run's own validation images. `cross`: whether the set is another than the one
    it was trained on. AP with its 95 % interval over the images, which are drawn anew by their bytes.
    """
    made = []
    for protocol, backbone, method, seed in settings.runs():
        folder = settings.run(protocol, backbone, method, seed)
        validation = _read(folder / "validation.parquet")
        fixed = calibrate(validation["label"], validation["logit"], settings.evaluation.target_fpr)
        about = {"protocol": protocol, "backbone": backbone, "method": method, "seed": seed}
        for name in settings.tested:
            scores = _read(folder / f"{name}.parquet")
            for view in settings.evaluation.views:
                for generator, rows in protocols.generators(scores[scores["view"] == view]).items():
                    metrics = evaluate(rows["label"], rows["logit"], fixed)
                    weights = bootstrap.cluster_weights(rows["sha256"], settings.evaluation.bootstrap, settings.seed)
                    low, high = bootstrap.interval(bootstrap.weighted_average_precision(
                        rows["label"].to_numpy(), rows["logit"].to_numpy(), weights))
                    made.append({**about, "set": name, "cross": not _same(settings.protocols[protocol].train, name),
                                 "generator": generator, "seen": generator in settings.protocols[protocol].generators,
                                 "view": view, **{key: metrics[key] for key in SHOWN}, "AP_low": low, "AP_high": high,
                                 "real": int((rows["label"] == 0).sum()), "generated": int(rows["label"].sum())})
    paths = []
    for protocol in settings.protocols:
        paths.append(Path(settings.folders.results) / f"{protocol}.csv")
        write_csv(paths[-1], [row for row in made if row["protocol"] == protocol])
    write_csv(Path(settings.folders.results) / "summary.csv", _summary(pd.DataFrame(made), settings))
    return paths


def _summary(rows, settings):
    """Mean over seeds and generators of the headline view, a row a protocol, backbone, method, set and seen or unseen."""
    rows = rows[rows["view"] == settings.evaluation.headline]
    keys = ["protocol", "backbone", "method", "set", "cross", "seen"]
    mean = rows.groupby(keys, sort=False)[["AP", "accuracy", "balanced_accuracy"]].mean()
    count = rows.groupby(keys, sort=False).agg(generators=("generator", "nunique"), seeds=("seed", "nunique"))
    return mean.join(count).reset_index().to_dict("records")


def _same(trained, tested):
    """Whether two ids name parts of one published set: forensynths-train and forensynths."""
    return trained.removesuffix("-train") == tested.removesuffix("-train")


def _read(path):
    if not path.is_file():
        raise UserError(f"{path} is missing; make it with `anl paper score`")
    table = pd.read_parquet(path)
    if not np.isfinite(table["logit"]).all():
        raise UserError(f"{path} holds a score that is not finite; train the run again")
    return table
