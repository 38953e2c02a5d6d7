"""Choosing between variants of the method without a look at a test image: AP on the seen generator's validation split."""

from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.metrics import average_precision_score

from anl import detector as detectors
from anl.benchmark import REAL, read_images, read_manifest, use_rows
from anl.data import views as encodings
from anl.predict import score

VIEWS = ("raw", "jpeg96")  # a variant that gains as published and loses through JPEG is not the better one


def validation_table(groups, params, device="cpu"):
    """A row a method: mean over seeds of its validation AP in each of VIEWS, and `score`, their mean.

    groups: dict method -> run folders, one a seed. Only real patches and the seen generator's of the validation
    photographs are read, so that neither a test image nor an unseen generator takes part.
    """
    rows = use_rows(read_manifest(params.benchmark.folder), params)
    rows = rows[(rows["split"] == "val") & rows["generator"].isin([REAL, params.benchmark.seen])]
    pixels = read_images(params.benchmark.folder, rows)
    treated = {view: np.stack([encodings.apply(view, image) for image in pixels]) for view in VIEWS}
    table = []
    for method, folders in groups.items():
        models = [detectors.load(Path(folder) / "model.safetensors") for folder in folders]
        found = {view: float(np.mean([average_precision_score(rows["label"], score(model, treated[view], device))
                                      for model in models])) for view in VIEWS}
        table.append({"method": method, **found, "score": float(np.mean(list(found.values()))), "seeds": len(models),
                      "n": len(rows)})
    return pd.DataFrame(table)
