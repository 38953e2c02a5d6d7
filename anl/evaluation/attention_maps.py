"""How global is an attention, and does the logit depend on the places that its map names?

Deletion and insertion after RISE (Petsiuk et al., BMVC 2018), for pairs of a real patch and its regeneration: a cell of
the generated image is replaced by the same cell of its own real patch, instead of grey or blur that no detector has
seen. Deletion starts at the generated image, insertion at the real patch; cells follow each other by falling or rising
weight of the generated image's map, or at random.

Inserting in one order produces the images of deleting in the reverse order, so each is scored once. Where cells of two
images meet there are seams, which may be evidence themselves. Random orders have more seams than a map in one piece,
rising orders exactly those of falling ones: `falling - rising` is the comparison that seams cannot explain. Areas are in
logits, not divided by logit(generated) - logit(real), which is near zero for pairs that the detector cannot tell apart.
"""

import zlib
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

from anl import seeds
from anl.data.images import to_tensor
from anl.evaluation import bootstrap
from anl.evaluation.scoring import full_precision
from anl.io import UserError
from anl.models import attention

MEASURES = ("entropy", "effective_support", "loudest_tenth")
COMPARISONS = (("deletion", "random"), ("insertion", "random"), ("deletion", "rising"))  # curve, order compared with falling


class Curves(NamedTuple):
    """Result of `curves`.

    Attributes
    ----------
    table : DataFrame
        A row per curve, order and share of cells replaced: mean logit and n.
    areas : DataFrame
        A row per curve, order and image: area under its curve, in logits.
    maps : dict
        `real` and `generated` -> float64 (N, h, w).
    """

    table: pd.DataFrame
    areas: pd.DataFrame
    maps: dict


class Study(NamedTuple):
    """Tables of `study`, each with a column `variant`: support of the maps, curves, and differences between areas."""

    support: pd.DataFrame
    curves: pd.DataFrame
    differences: pd.DataFrame


def choose_pairs(rows, count, generators):
    """Positions of up to `count` test pairs, spread evenly over the photographs, generators in turn.

    Parameters
    ----------
    rows : DataFrame
        Manifest rows with pairs.
    count : int
    generators : list of str
        Usually the seen one alone: where a detector takes regenerations for more real than photographs, areas change
        their sign, and a mean over such generators says nothing.

    Returns
    -------
    real, generated : array of int
        Positions in `rows`.

    Raises
    ------
    UserError
        If the benchmark has no such pairs.
    """
    rows = rows.reset_index(drop=True)
    test = rows[(rows["split"] == "test") & (rows["pair"] != "")]
    real = test[test["label"] == 0].sort_values(["group", "image_id"])
    rank = real.groupby("group").cumcount()
    real = real.assign(rank=rank).sort_values(["rank", "group"], kind="stable")
    place = {(row.pair, row.generator): index for index, row in zip(test.index, test.itertuples(index=False))}
    chosen = []
    for index, pair in zip(real.index, real["pair"]):
        partner = place.get((pair, generators[len(chosen) % len(generators)]))
        if partner is not None and len(chosen) < count:
            chosen.append((index, partner))
    if not chosen:
        raise UserError(f"the benchmark has no test pairs of {', '.join(generators)}; choose a paired generator")
    return tuple(np.array(chosen).T)


def read_out(model, pixels, device, batch_size=64, kind="attention"):
    """Logits and maps of images, in eval mode and full precision.

    Parameters
    ----------
    model : nn.Module
        A detector; its mode is put back.
    pixels : array, uint8 (N, H, W, 3)
    device : torch.device
    kind : {"attention", "evidence"}
        The attention's own map, or how much each cell adds to the logit (`Detector.cell_logits`), for forms of
        attention that act in training only.

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
            x = to_tensor(pixels[start:start + batch_size]).to(device)
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
        A row per image: `entropy` in bits, `effective_support` in (0, 1], `loudest_tenth`: weight of the tenth of the
        cells with the largest weights. A uniform map has the entropy log2(hw), the support 1 and the share 0.1; where a
        tenth is not a whole number of cells, the last one counts in part.
    """
    maps = torch.as_tensor(maps)
    falling = maps.flatten(1).double().sort(1, descending=True).values.numpy()
    whole, rest = divmod(falling.shape[1] / 10, 1)
    loudest = falling[:, :int(whole)].sum(1) + rest * falling[:, int(whole)]
    return pd.DataFrame({"entropy": attention.entropy(maps).numpy(),
                         "effective_support": attention.effective_support(maps).numpy(), "loudest_tenth": loudest})


def curves(model, real, generated, *, seed, device, orders=3, steps=4, batch_size=64, kind="attention"):
    """Mean logit against the share of cells replaced, for deletion and insertion in three orders.

    Parameters
    ----------
    model, device, batch_size, kind
        As of `read_out`.
    real, generated : array, uint8 (N, H, W, 3)
        Pairs.
    seed : int
        Of the random orders, which depend on it and the generated image alone.
    orders : int
        Random orders per pair, averaged.
    steps : int
        Number of equal parts that the cells are replaced in.

    Returns
    -------
    Curves
    """
    read = {"device": device, "batch_size": batch_size, "kind": kind}
    (real_logit, real_maps), (logit, maps) = (read_out(model, part, **read) for part in (real, generated))
    cells = maps[0].size
    counts = np.unique(np.rint(np.linspace(0, cells, steps + 1)).astype(int))
    shares = counts / cells
    falling, random = cell_orders(maps, generated, seed, orders)
    scores = []  # of deletion: (order, pair, count)
    for order in (falling, falling[:, ::-1], *random):
        place = np.argsort(order, axis=1).reshape(maps.shape)  # (N, h, w): when each cell is replaced
        inner = [read_out(model, mix(real, generated, place < count), **read)[0] for count in counts[1:-1]]
        scores.append(np.column_stack([logit, *inner, real_logit]))
    deletion = {"falling": scores[0], "rising": scores[1], "random": np.mean(scores[2:], axis=0)}
    # inserting the first cells of an order is deleting the last ones of its reverse
    insertion = {"falling": scores[1], "rising": scores[0], "random": deletion["random"]}
    table, areas = [], []
    for curve, lines, axis, step in (("deletion", deletion, shares, 1), ("insertion", insertion, 1 - shares[::-1], -1)):
        for order, values in lines.items():
            values = values[:, ::step]
            table += [{"curve": curve, "order": order, "share": share, "logit": mean, "n": len(values)}
                      for share, mean in zip(axis, values.mean(0))]
            areas.append(pd.DataFrame({"curve": curve, "order": order, "image": np.arange(len(values)),
                                       "area": np.trapezoid(values, axis, axis=1)}))
    return Curves(pd.DataFrame(table), pd.concat(areas, ignore_index=True), {"real": real_maps, "generated": maps})


def cell_orders(maps, images, seed, count):
    """Cells by falling weight, (N, hw), and `count` random orders, (count, N, hw).

    Equal weights follow one more random order: by place, a uniform map would start at the top of every image.
    """
    falling, random = [], []
    for weights, image in zip(maps.reshape(len(maps), -1), images, strict=True):
        rng = seeds.generator(seed, "cell orders", zlib.crc32(image.tobytes()))
        ties, *drawn = rng.permuted(np.tile(np.arange(weights.size), (count + 1, 1)), axis=1)
        falling.append(ties[np.argsort(-weights[ties], kind="stable")])
        random.append(drawn)
    return np.array(falling), np.array(random).swapaxes(0, 1)


def mix(real, generated, cells):
    """Generated images with the marked cells, bool (N, h, w), from their real patches: uint8 (N, H, W, 3)."""
    (height, width), (rows, columns) = generated.shape[1:3], cells.shape[1:]
    marked = cells[:, np.arange(height) * rows // height][:, :, np.arange(width) * columns // width]  # (N, H, W)
    return np.where(marked[..., None], real, generated)


def study(variants, real, generated, group, *, seed, replicates, device, orders=3, steps=4, batch_size=64, kind="attention"):
    """Support, curves and differences between areas of several variants on the same pairs.

    Parameters
    ----------
    variants : dict
        Name -> its detectors, one per training seed.
    real, generated : array, uint8 (N, H, W, 3)
        Pairs.
    group : array of str, (N,)
        Photograph of each pair, for the bootstrap.
    seed, replicates : int
        Of the random orders and of the bootstrap.
    device, orders, steps, batch_size, kind
        As of `curves`.

    Returns
    -------
    Study
        support: a row per variant and `images` (`real`, `generated`) with MEASURES, their 95 % intervals, cells, seeds,
        n. differences: area of the falling order minus that of a reference order; evidence where the map is loud is
        below 0 for deletion, above 0 for insertion.
    """
    support, lines, differences = [], [], []
    options = {"seed": seed, "device": device, "orders": orders, "steps": steps, "batch_size": batch_size, "kind": kind}
    draws = bootstrap.draw_groups(group, replicates, seed)
    for variant, models in variants.items():
        found = [curves(model, real, generated, **options) for model in models]
        size = {"seeds": len(models), "n": len(generated)}
        for images, maps in found[0].maps.items():
            tables = [support_table(item.maps[images]) for item in found]
            row = {"variant": variant, "images": images}
            for name in MEASURES:
                row |= _named(name, [table[name].to_numpy() for table in tables], group, draws)
            support.append(row | {"cells": maps[0].size} | size)
        lines.append(found[0].table.assign(variant=variant, seeds=len(models),
                                           logit=np.mean([item.table["logit"] for item in found], axis=0)))
        for curve, reference in COMPARISONS:
            each = []
            for item in found:
                wide = item.areas[item.areas["curve"] == curve].pivot(index="image", columns="order", values="area")
                each.append((wide["falling"] - wide[reference]).to_numpy())
            differences.append({"variant": variant, "curve": curve, "reference": reference}
                               | _named("difference", each, group, draws) | size)
    return Study(pd.DataFrame(support), pd.concat(lines, ignore_index=True), pd.DataFrame(differences))


def _named(name, each, group, draws):
    """Columns name, name_low, name_high: the mean over seeds and images of per-image values, a list of (N,)."""
    found = bootstrap.interval([values.mean() for values in each], [draws.mean(values, group) for values in each], len(draws.names))
    return {name: float(found.mean), f"{name}_low": float(found.low), f"{name}_high": float(found.high)}
