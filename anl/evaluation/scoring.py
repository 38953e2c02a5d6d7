"""Per-image scores of a detector, as a table."""

import contextlib

import numpy as np
import pandas as pd
import torch

from anl.data import REAL, processing
from anl.data.images import to_tensor
from anl.io import UserError


def score(model, pixels, device, batch_size=64, *, mirrored=False):
    """Logits of unprocessed images, float64 (N,); parameters as of `score_views`."""
    return score_views(model, pixels, {"raw": None}, device, batch_size, mirrored=mirrored)["raw"]


def score_views(model, pixels, views, device, batch_size=64, *, mirrored=False):
    """Logits of images under several treatments, in full precision. Each logit depends only on its image.

    Parameters
    ----------
    model : nn.Module
        (B, 3, H, W) in [-1, 1] -> an output with `logit` (B,); it is moved to the device.
    pixels : array, uint8 (N, H, W, 3)
    views : dict
        Name -> callable (uint8 (B, H, W, 3), positions int (B,)) -> uint8 (B, H', W', 3), or None for the images as they
        are. If a callable returns its argument, the logits of the unprocessed images are reused.
    device : torch.device
    batch_size : int
    mirrored : bool
        Whether to average the logits of an image and its mirror image.

    Returns
    -------
    dict
        Name -> float64 (N,).

    Raises
    ------
    UserError
        If a logit is not finite.
    """
    logits = {name: np.empty(len(pixels)) for name in views}
    with full_precision(model, device):
        for start in range(0, len(pixels), batch_size):
            index = np.arange(start, min(start + batch_size, len(pixels)))
            batch, raw = pixels[start:start + batch_size], None
            for name, view in views.items():
                treated = batch if view is None else view(batch, index)
                if treated is not batch:
                    logits[name][index] = _logits(model, treated, device, mirrored)
                    continue
                raw = _logits(model, batch, device, mirrored) if raw is None else raw
                logits[name][index] = raw
    for name, values in logits.items():
        if not np.isfinite(values).all():
            raise UserError(f"the detector's scores in view '{name}' hold NaN or infinite numbers; train it again")
    return logits


@contextlib.contextmanager
def full_precision(model, device):
    """Run a model in eval mode and float32, without autocast, TF32 and gradients; then restore its mode and the settings."""
    was_training = model.training
    model.to(device).eval()
    matmul = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled, deterministic=True, benchmark=False,
                                        allow_tf32=False), \
                torch.autocast(torch.device(device).type, enabled=False), torch.no_grad():
            yield
    finally:
        torch.set_float32_matmul_precision(matmul)
        model.train(was_training)


def _logits(model, pixels, device, mirrored):
    x = to_tensor(pixels, device).to(memory_format=torch.channels_last)
    logit = model(x).logit
    logit = (logit + model(x.flip(-1)).logit) / 2 if mirrored else logit
    return logit.double().cpu().numpy()


def treatment(rows, view, seed):
    """A callable for `score_views` that applies the treatment `view` to the images of manifest rows.

    Parameters
    ----------
    rows : DataFrame
        Manifest rows, in the order of the pixels.
    view : str
        `raw`, `matched`, or a name of `anl.data.processing.apply`.
    seed : int
        Base seed of random draws (`noise`, `matched`).
    """
    names = np.array(processing.encodings(rows, view, seed), object)
    image_ids = rows["image_id"].to_numpy(object)
    return lambda pixels, index: processing.apply_all(list(names[index]), pixels, seed, list(image_ids[index]))


def score_benchmark(model, rows, pixels, *, variant, run_seed, seen, held_out=(), views, controls=(), seed, device,
                    batch_size=64, mirrored=False, treated=None):
    """Score the images that the result tables need: validation images for the threshold, test images for the metrics.

    Parameters
    ----------
    rows : DataFrame
        Manifest rows of the benchmark.
    pixels : callable or array
        rows -> uint8 (N, H, W, 3), for example `anl.data.images.load_pixels` with its folder; or that array itself.
    variant, run_seed : str, int
        Variant and seed of the run, for the table.
    seen : str or list of str
        Generators in training: validation images are reals and these, in view `raw`.
    held_out : sequence of str
        Further generators whose validation images are scored, for model selection. If there are any, all validation images
        are scored in every view.
    views, controls : sequence of str
        Test images are scored in every view; real test images also under every control, such as `blur`.
    seed
        As of `treatment`.
    model, device, batch_size, mirrored
        As of `score_views`.
    treated : dict, optional
        Cache of processed images, which this function fills. Pass the same dict with another model and otherwise equal
        arguments to skip the processing.

    Returns
    -------
    DataFrame
        A row per image and view: `anl.evaluation.compare.COLUMNS`.
    """
    from anl.evaluation.calibration import as_list  # not at the top: it imports scipy, which delays `anl detect`
    from anl.evaluation.compare import COLUMNS

    rows = rows.reset_index(drop=True)
    validation = (rows["split"] == "val") & rows["generator"].isin([REAL, *as_list(seen), *held_out])
    test, extra = rows["split"] == "test", [name for name in controls if name not in views]
    parts = [(validation, list(dict.fromkeys(["raw", *views])) if held_out else ["raw"]), (test & (rows["label"] == 1), list(views)),
             (test & (rows["label"] == 0), [*views, *extra])]
    tables = []
    for number, (chosen, names) in enumerate(parts):
        part = rows[chosen]
        images = _kept(treated, (number,), lambda: pixels(part) if callable(pixels) else pixels[chosen.to_numpy()])  # noqa: B023
        # `matched` depends on the reals too, so each treatment is made from all rows of the split
        split = rows[test] if number else rows[validation]
        place = split.index.get_indexer(part.index)
        treatments = {name: _taken(treatment(split, name, seed), place, treated, (number, name)) for name in names}
        logits = score_views(model, images, treatments, device, batch_size, mirrored=mirrored)
        tables += [part.assign(variant=variant, seed=run_seed, view=name, logit=logits[name]) for name in names]
    return pd.concat(tables, ignore_index=True)[COLUMNS]


def _taken(treat, place, treated, key):
    """The treatment of the images at the positions `place`, with its results cached in `treated`."""
    return lambda pixels, index: _kept(treated, (*key, int(index[0])), lambda: treat(pixels, place[index]))


def _kept(treated, key, make):
    """The value of `key` in the cache `treated`; if it is missing, the result of `make`, which is then cached."""
    if treated is None:
        return make()
    if key not in treated:
        treated[key] = make()
    return treated[key]
