"""Scores tables for the tests of this folder."""

import numpy as np
import pandas as pd

from anl.evaluation.compare import COLUMNS


def scores_table(variants, seeds=(0, 1, 2), generators=("ddim", "ddpm", "vae"), views=("raw", "jpeg96"), photographs=12,
                 patches=3, paired=True, seed=0):
    """A scores table. variants: dict name -> how far generated images score above real ones.

    The photographs' effects are common to all variants; validation images are scored in view `raw` only.
    """
    rng = np.random.default_rng(seed)
    images = pd.DataFrame([
        {"image_id": f"{split}-{generator}-{photo}-{patch}", "generator": generator, "split": split,
         "group": f"{split}-{photo}" if paired else f"{split}-{generator}-{photo}-{patch}",
         "pair": f"{split}-{photo}-{patch}" if paired else "", "label": int(generator != "real")}
        for split in ("val", "test") for generator in ("real", *generators[:1 if split == "val" else None])
        for photo in range(photographs) for patch in range(patches)])
    common = rng.standard_normal(len(images)) / 2
    tables = []
    for name, shift in variants.items():
        for run in seeds:
            for view in views:
                rows = images[(images["split"] == "test") | (view == "raw")]
                logit = (common[rows.index] + rows["label"] * (shift + rng.standard_normal() / 10)
                         + rng.standard_normal(len(rows)))
                tables.append(rows.assign(variant=name, seed=run, view=view, logit=logit))
    return pd.concat(tables, ignore_index=True)[COLUMNS]
