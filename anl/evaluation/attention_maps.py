"""Measure how far an attention map spreads, and whether the logit depends on the cells with large weights.

Deletion and insertion follow RISE (Petsiuk et al., BMVC 2018), but on pairs of a real patch and its regeneration: a cell of
the generated image is replaced by the same cell of its real patch, not by grey or blur, which no detector has seen.
Deletion starts from the generated image, insertion from the real patch. Cells are replaced in order of falling or rising
weight in the map of the generated image, or in random order.

Insertion in one order produces the same images as deletion in the reverse order, so each image is scored once. The seams
between cells of the two images may be evidence themselves. Random orders make more seams than the orders of a compact map.
Rising and falling orders make the same seams, so only the comparison `falling - rising` cannot be explained by them. Areas
are in logits. They are not divided by logit(generated) - logit(real), which is near zero for pairs that the detector cannot
tell apart.
"""

import zlib

import numpy as np
import pandas as pd
import torch

from anl import seeds
from anl.data.images import to_tensor
from anl.evaluation import bootstrap
from anl.evaluation.scoring import full_precision
from anl.io import UserError
from anl.models import attention

ORDERS = 3  # random orders per pair, averaged
STEPS = 4  # number of equal parts in which the cells are replaced
COMPARISONS = (("deletion", "random"), ("insertion", "random"), ("deletion", "rising"))  # curve, order compared with falling


def choose_pairs(rows, count, generator):
    """Positions in manifest rows of up to `count` test pairs of a generator, spread evenly over the photographs.

    Use a generator seen in training: if a detector scores regenerations lower than photographs, areas change sign.

    Returns
    -------
    real, generated : array of int

    Raises
    ------
    UserError
        If the benchmark has no such pairs.
    """
    rows = rows.reset_index(drop=True)
    test = rows[(rows["split"] == "test") & (rows["pair"] != "")]
    partner = {pair: index for index, pair in test.loc[test["generator"] == generator, "pair"].items()}
    real = test[(test["label"] == 0) & test["pair"].isin(partner)].sort_values(["group", "image_id"])
    real = real.assign(rank=real.groupby("group").cumcount()).sort_values(["rank", "group"], kind="stable").head(count)
    if real.empty:
        raise UserError(f"the benchmark has no test pairs of {generator}; choose a paired generator")
    return real.index.to_numpy(), real["pair"].map(partner).to_numpy()


def read_out(model, pixels, device, batch_size=64, kind="attention"):
    """Logits and maps of images, in eval mode and full precision.

    Parameters
    ----------
    model : nn.Module
        A detector; its mode is restored.
    pixels : array, uint8 (N, H, W, 3)
    device : torch.device
    kind : {"attention", "evidence"}
        The attention map, or how much each cell adds to the logit (`Detector.cell_logits`), for attentions that act in
        training only.

    Returns
    -------
    logits : array, float64 (N,)
    maps : array, float64 (N, h, w)
        Each sums to 1.
    """
    if kind not in ("attention", "evidence"):
        raise UserError(f"unknown kind of map '{kind}'; choose attention or evidence")
    logits, maps = [], []
    with full_precision(model, device):
        for start in range(0, len(pixels), batch_size):
            x = to_tensor(pixels[start:start + batch_size], device)
            output = model(x)
            weights = output.map if kind == "attention" else attention.evidence_map(model.cell_logits(x))
            logits.append(output.logit.double().cpu())
            maps.append(weights.double().cpu())
    return torch.cat(logits).numpy(), torch.cat(maps).numpy()


def support_table(maps):
    """How far each map spreads.

    Parameters
    ----------
    maps : array, (N, h, w)
        Each sums to 1.

    Returns
    -------
    DataFrame
        A row per image: `entropy` in bits, `effective_support` in (0, 1], and `loudest_tenth`, the sum of the largest tenth
        of the weights. A uniform map has the entropy log2(hw), the support 1 and the sum 0.1. If a tenth is not a whole
        number of cells, the last cell is counted in part.
    """
    maps = torch.as_tensor(maps)
    falling = maps.flatten(1).double().sort(1, descending=True).values.numpy()
    whole, rest = divmod(falling.shape[1] / 10, 1)
    loudest = falling[:, :int(whole)].sum(1) + rest * falling[:, int(whole)]
    return pd.DataFrame({"entropy": attention.entropy(maps).numpy(),
                         "effective_support": attention.effective_support(maps).numpy(), "loudest_tenth": loudest})


def areas(model, real, generated, *, seed, device, kind="attention"):
    """Areas under the curve of the logit over the share of replaced cells, and the maps that determine the orders.

    Parameters
    ----------
    model, device, kind
        As of `read_out`.
    real, generated : array, uint8 (N, H, W, 3)
        Pairs.
    seed : int
        Seed of the random orders, which depend only on it and on the generated image.

    Returns
    -------
    areas : dict
        (curve, order) -> float64 (N,), in logits; curves `deletion`, `insertion`, orders `falling`, `rising`, `random`.
    maps : dict
        `real` and `generated` -> float64 (N, h, w).
    """
    read = {"device": device, "kind": kind}
    (real_logit, real_maps), (logit, maps) = (read_out(model, part, **read) for part in (real, generated))
    counts = np.unique(np.rint(np.linspace(0, maps[0].size, STEPS + 1)).astype(int))
    falling, random = cell_orders(maps, generated, seed, ORDERS)
    scores = []  # logits of deletion: (order, pair, count)
    for order in (falling, falling[:, ::-1], *random):
        place = np.argsort(order, axis=1).reshape(maps.shape)  # (N, h, w): when each cell is replaced
        inner = [read_out(model, mix(real, generated, place < count), **read)[0] for count in counts[1:-1]]
        scores.append(np.column_stack([logit, *inner, real_logit]))
    down, up, random = np.trapezoid([scores[0], scores[1], np.mean(scores[2:], axis=0)], counts / maps[0].size, axis=2)
    # inserting the first cells of an order is deleting the last ones of its reverse
    found = {("deletion", "falling"): down, ("deletion", "rising"): up, ("deletion", "random"): random,
             ("insertion", "falling"): up, ("insertion", "rising"): down, ("insertion", "random"): random}
    return found, {"real": real_maps, "generated": maps}


def cell_orders(maps, images, seed, count):
    """Cells by falling weight, (N, hw), and `count` random orders, (count, N, hw).

    Ties are broken by a further random order. Broken by position, a uniform map would start at the top of every image.
    """
    falling, random = [], []
    for weights, image in zip(maps.reshape(len(maps), -1), images, strict=True):
        rng = seeds.generator(seed, "cell orders", zlib.crc32(image.tobytes()))
        ties, *drawn = rng.permuted(np.tile(np.arange(weights.size), (count + 1, 1)), axis=1)
        falling.append(ties[np.argsort(-weights[ties], kind="stable")])
        random.append(drawn)
    return np.array(falling), np.array(random).swapaxes(0, 1)


def mix(real, generated, cells):
    """Replace the marked cells, bool (N, h, w), of generated images by those of the real patches: uint8 (N, H, W, 3)."""
    (height, width), (rows, columns) = generated.shape[1:3], cells.shape[1:]
    marked = cells[:, np.arange(height) * rows // height][:, :, np.arange(width) * columns // width]  # (N, H, W)
    return np.where(marked[..., None], real, generated)


def study(models, real, generated, group, *, seed, replicates, device, kind="attention"):
    """Support of the maps and differences between areas of several detectors on the same pairs.

    Parameters
    ----------
    models : dict
        Variant -> detector.
    real, generated : array, uint8 (N, H, W, 3)
        Pairs.
    group : array of str, (N,)
        Photograph of each pair, for the bootstrap.
    seed, replicates : int
        Seed of the random orders and of the bootstrap, and number of bootstrap replicates.
    device, kind
        As of `areas`.

    Returns
    -------
    DataFrame
        variant, images (`real`, `generated`), metric, mean, low, high (95 % interval over photographs), n. Metrics are
        the columns of `support_table`, and areas of the falling order minus those of another one, such as `deletion minus
        random`. If the evidence is where the weights are large, these are below 0 for deletion and above 0 for insertion.
    """
    draws, rows = bootstrap.draw_groups(group, replicates, seed), []
    for variant, model in models.items():
        area, maps = areas(model, real, generated, seed=seed, device=device, kind=kind)
        values = {(images, name): column for images in maps for name, column in support_table(maps[images]).items()}
        values |= {("generated", f"{curve} minus {order}"): area[curve, "falling"] - area[curve, order]
                   for curve, order in COMPARISONS}
        for (images, metric), each in values.items():
            found = bootstrap.interval([each.mean()], [draws.mean(each, group)], len(draws.names))
            rows.append({"variant": variant, "images": images, "metric": metric, "mean": float(found.mean),
                         "low": float(found.low), "high": float(found.high), "n": len(generated)})
    return pd.DataFrame(rows)
