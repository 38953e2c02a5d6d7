"""Per-image scores, saved; every table is computed from the file, never from a model."""

from pathlib import Path

import numpy as np
import pandas as pd
import torch

from anl import detector as detectors
from anl import processes
from anl.benchmark import REAL, read_images, read_manifest, use_rows
from anl.data import views
from anl.data.formats import as_published, drawn_from_reals, encoded, matched
from anl.data.patches import to_tensor
from anl.errors import UserError
from anl.files import read_json, sha256_of, whole_file
from anl.params import LOSSLESS

COLUMNS = ["sample_id", "photo", "cluster", "generator", "split", "view", "label", "logit"]
BATCH = 128
RESTORED = "restored"  # the group of runs that stand on saved scores, see anl.saved


@torch.no_grad()
def score(detector, pixels, device="cpu", mirrored=False):
    """Logits (N,), float64, of uint8 images (N, H, W, 3), in full precision: they depend on the image alone.

    mirrored: take the mean over each image and its mirror image, left to right.
    """
    detector = detector.to(device, memory_format=torch.channels_last).eval()
    logits = []
    for start in range(0, len(pixels), BATCH):
        x = to_tensor(pixels[start:start + BATCH]).to(device, memory_format=torch.channels_last)
        logit = detector(x).logit
        logits.append((logit + detector(x.flip(-1)).logit) / 2 if mirrored else logit)
    return torch.cat([logit.cpu() for logit in logits]).double().numpy()


def score_treated(detector, pixels, treat, device="cpu", mirrored=False):
    """Logits (N,) of uint8 images (N, H, W, 3) after `treat` (image, its index) -> image; several processes share the batches,
    and each treats its own. mirrored: as of `score`."""
    def part(batch):
        treated = np.stack([treat(pixels[index], index) for index in range(batch.start, batch.stop)])
        return score(detector, treated, device, mirrored)

    return np.concatenate(processes.spread(part, len(pixels), BATCH))


def score_benchmark(detector, params, device="cpu", formats=LOSSLESS):
    """Score validation (reals and the seen family, raw) and test (all, every view; reals also processed).

    formats: those of the benchmark's files, see anl.data.formats. `matched` re-encodes fakes with formats and qualities
    drawn from the reals'. Several processes share the batches, and all return the whole table. Where both classes are encoded alike, as in the embedded set, that changes no byte, and the raw
    scores stand for it.
    """
    rows = use_rows(read_manifest(params.benchmark.folder), params)
    val = rows[(rows["split"] == "val") & rows["generator"].isin([REAL, params.benchmark.seen])]
    test = rows[rows["split"] == "test"]
    drawn = drawn_from_reals(test, params.seed) if "matched" in params.evaluation.views else []
    val_pixels, pixels = (as_published(read_images(params.benchmark.folder, part), part["label"], formats)
                          for part in (val, test))

    def scored(rows, images, view):
        logit = score_treated(detector, images, lambda image, _: views.apply(view, image), device, params.evaluation.mirrored)
        return rows.assign(view=view, logit=logit)

    tables = [scored(val, val_pixels, "raw")]
    raw = scored(test, pixels, "raw")
    tables.append(raw)
    for view in params.evaluation.views:
        if view == "matched" and formats == LOSSLESS and not any(drawn):
            tables.append(raw.assign(view=view))
        elif view == "matched":
            alike = encoded(pixels, drawn) if formats == LOSSLESS else matched(pixels, test["label"], formats)
            tables.append(scored(test, alike, "raw").assign(view=view))
        elif view != "raw":
            tables.append(scored(test, pixels, view))
    real = (test["generator"] == REAL).to_numpy()
    tables += [scored(test[real], pixels[real], control) for control in params.evaluation.controls
               if control not in params.evaluation.views]
    return pd.concat(tables, ignore_index=True)[COLUMNS]


def score_run(folder, params):
    """Score a trained run again and rewrite its predictions.parquet; returns the table."""
    folder = Path(folder)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    formats = read_json(folder / "run.json")["spec"].get("formats", LOSSLESS)
    table = score_benchmark(detectors.load(folder / "model.safetensors"), params, device, formats)
    processes.agreed(lambda: write_predictions(folder, table))
    return table


def write_predictions(folder, table):
    with whole_file(Path(folder) / "predictions.parquet") as temporary:
        table.to_parquet(temporary, index=False)


def write_keyed(path, table, key):
    """Write scores with the identity of all that decided them; see key_of. Of several processes the main one writes."""
    def write():
        table.attrs["key"] = key
        with whole_file(path) as temporary:
            table.to_parquet(temporary, index=False)

    processes.agreed(write)


def beside(folder, kind):
    """Where a run's scores of another kind (`robustness`, `families`) lie: beside its group; a restored run holds its own."""
    folder = Path(folder)
    return folder / kind if folder.parent.name == RESTORED else folder.parent.parent / kind / folder.name


def weights_hash(folder):
    """SHA-256 of a run's weights; of a restored run, which has none, as it was when its scores were saved."""
    about = read_json(Path(folder) / "run.json")
    return about["saved"]["weights"] if "saved" in about else sha256_of(Path(folder) / "model.safetensors")


def load_run(folder):
    """A run's detector. Raises UserError on a restored run, which has no weights, and as anl.detector.load."""
    if Path(folder).parent.name == RESTORED:
        raise UserError(f"{Path(folder).name} was saved without what this needs of it: its weights, or scores of these images; "
                        "run the notebook with `anl notebook`, which trains what is missing")
    return detectors.load(Path(folder) / "model.safetensors")


def key_of(path):
    """The key that write_keyed stored, or None for a file that is missing or damaged: it is made again."""
    try:
        return pd.read_parquet(path).attrs.get("key")
    except Exception:
        return None


def read_predictions(folder):
    """A run's scores. Raises UserError if they are missing or broken."""
    path = Path(folder) / "predictions.parquet"
    try:
        return pd.read_parquet(path)
    except FileNotFoundError:
        raise UserError(f"{path} is missing; score the run with `anl predict {folder}`") from None
    except Exception as problem:
        raise UserError(f"{path} cannot be read ({problem}); make it again with `anl predict {folder}`") from None
