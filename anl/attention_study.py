"""How global is an attention? How much of the image its map listens to, and whether the logit hangs on the same places.

Deletion and insertion follow RISE (Petsiuk et al., BMVC 2018), adapted to pairs of a real patch and its regeneration.
RISE blanks pixels with grey or blur, which no detector has seen; here a cell of the generated image gives way to the
same cell of its own real patch, so that every picture on the way is made of pixels that the detector knows, and only
the generator's trace comes and goes. Deletion starts from the generated image, insertion from the real patch. The order
is falling (most attended cell of the generated image first), rising, or random.

Two things follow from the pairs. Inserting in one order makes the very pictures of deleting in the reverse order, so
each is scored once. And cells of two pictures meet at seams, which may be evidence of their own: random orders have
more of them than a map in one piece, while rising has exactly those of falling. `falling - rising` is therefore the
comparison that seams cannot explain.

Areas are in logits and not normalised: divided by logit(fake) - logit(real), they would explode on every pair that the
detector cannot tell apart.
"""

import zlib
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

from anl import attention, bootstrap, seeds
from anl.benchmark import REAL, read_images, read_manifest, use_rows
from anl.data.patches import to_tensor
from anl.errors import UserError

BATCH = 64
MEASURES = ("entropy", "effective_support", "loudest_tenth")
# falling minus the second; insertion less rising would be deletion less rising with its sign turned
COMPARISONS = (("deletion", "random"), ("insertion", "random"), ("deletion", "rising"))


class Curves(NamedTuple):
    """table: a row a curve, order and share replaced, its mean logit and n. areas: a row a curve, order and image.

    maps: {"real": (N, h, w), "generated": (N, h, w)}, float64: read on the way.
    """

    table: pd.DataFrame
    areas: pd.DataFrame
    maps: dict


class Study(NamedTuple):
    """What `study` finds: tables of support, curves and area differences, each with a column `method`."""

    support: pd.DataFrame
    curves: pd.DataFrame
    differences: pd.DataFrame


def read_pairs(params, count, families=None):
    """Up to `count` test patches, spread evenly over the photographs, each with one regeneration, families in turn.

    families: default the seen generator alone. Where a detector takes the regenerations of a family for more real than
    the photographs, the areas turn their sign, and a mean over such families says nothing. Returns real, fake (uint8
    (N, H, W, 3) each) and the clusters (N,) of their photographs. Raises UserError if the benchmark is missing or has
    no such family.
    """
    families = [params.benchmark.seen] if families is None else list(families)
    if unknown := set(families) - set(params.families):
        raise UserError(f"there is no family '{min(unknown)}'; choose from {', '.join(params.families)}")
    rows = use_rows(read_manifest(params.benchmark.folder), params)
    rows = rows[rows["split"] == "test"].set_index("sample_id", drop=False)
    real = rows[rows["generator"] == REAL]
    rank = real.groupby("photo").cumcount()
    real = real.assign(rank=rank).sort_values(["rank", "photo"], kind="stable").head(count)
    fakes = [f"{families[i % len(families)]}/{sample.removeprefix(f'{REAL}/')}" for i, sample in enumerate(real.index)]
    folder = params.benchmark.folder
    return read_images(folder, real), read_images(folder, rows.loc[fakes]), real["cluster"].to_numpy()


@torch.no_grad()
def read_out(detector, pixels, device="cpu"):
    """Logits (N,) and maps (N, h, w), float64, of uint8 images (N, H, W, 3): in eval mode, in full precision."""
    detector = detector.to(device, memory_format=torch.channels_last).eval()
    logits, maps = [], []
    for start in range(0, len(pixels), BATCH):
        x = to_tensor(pixels[start:start + BATCH]).to(device, memory_format=torch.channels_last)
        output = detector(x)
        logits.append(output.logit.double().cpu())
        maps.append(output.map.double().cpu())
    return torch.cat(logits).numpy(), torch.cat(maps).numpy()


def support_table(maps):
    """A row an image: `entropy` (bits), `effective_support` in (0, 1], `loudest_tenth`: the tenth's share of the map.

    maps: (N, h, w) summing to 1 over each image. A uniform map has the entropy log2(hw), the support 1 and the share
    0.1 whatever the number of cells: where a tenth is no whole number of them, the last one counts in part.
    """
    maps = torch.as_tensor(maps)
    falling = maps.flatten(1).double().sort(1, descending=True).values.numpy()
    whole, rest = divmod(falling.shape[1] / 10, 1)
    loudest = falling[:, :int(whole)].sum(1) + rest * falling[:, int(whole)]
    return pd.DataFrame({"entropy": attention.entropy(maps), "effective_support": attention.effective_support(maps),
                         "loudest_tenth": loudest})


def curves(detector, real, fake, *, seed, orders=3, steps=4, device="cpu"):
    """Mean logit against the share replaced, for deletion and insertion in falling, rising and random order.

    real, fake: uint8 (N, H, W, 3), pairs. orders: random orders a pair, averaged. steps: how many equal parts the cells
    are replaced in. Draws depend on the seed and the generated image alone, not on the other pairs.
    """
    (real_logit, real_maps), (fake_logit, maps) = (read_out(detector, part, device) for part in (real, fake))
    cells = maps[0].size
    counts = np.unique(np.rint(np.linspace(0, cells, steps + 1)).astype(int))  # with few cells: one by one
    shares = counts / cells
    falling, random = cell_orders(maps, fake, seed, orders)
    scores = []  # of deletion: (order, pair, count)
    for order in (falling, falling[:, ::-1], *random):
        place = np.argsort(order, axis=1).reshape(maps.shape)  # (N, h, w): when each cell is replaced
        inner = [read_out(detector, mix(real, fake, place < count), device)[0] for count in counts[1:-1]]
        scores.append(np.column_stack([fake_logit, *inner, real_logit]))
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
    """The order of the cells by falling weight, (N, hw), and `count` random ones, (count, N, hw).

    maps: (N, h, w); images: uint8 (N, H, W, 3), whose bytes name the draw. Equal weights follow one more random order:
    by place, a uniform map would begin at the top of every image and be compared as if it had meant that.
    """
    falling, random = [], []
    for weights, image in zip(maps.reshape(len(maps), -1), images, strict=True):
        rng = seeds.generator(seed, "cell orders", zlib.crc32(image.tobytes()))
        ties, *drawn = rng.permuted(np.tile(np.arange(weights.size), (count + 1, 1)), axis=1)
        falling.append(ties[np.argsort(-weights[ties], kind="stable")])
        random.append(drawn)
    return np.array(falling), np.array(random).swapaxes(0, 1)


def mix(real, fake, cells):
    """The generated images with the marked cells from their real patches. uint8 (N, H, W, 3) twice, bool (N, h, w)."""
    (height, width), (rows, columns) = fake.shape[1:3], cells.shape[1:]
    marked = cells[:, np.arange(height) * rows // height][:, :, np.arange(width) * columns // width]  # (N, H, W)
    return np.where(marked[..., None], real, fake)


def area_differences(areas, clusters, *, seed, replicates):
    """Area of falling minus a reference order on the same pairs, in logits, a row each of COMPARISONS.

    areas: a list of Curves.areas, one a training seed; clusters: (N,) photographs. Mean over seeds, 95 % intervals from
    drawing photographs and seeds anew. Evidence where the map is loud: below 0 for deletion, above 0 for insertion.
    """
    rows = []
    for curve, reference in COMPARISONS:
        each = []
        for table in areas:
            wide = table[table["curve"] == curve].pivot(index="image", columns="order", values="area")
            each.append((wide["falling"] - wide[reference]).to_numpy())
        mean, low, high = _over_draws(each, clusters, seed, replicates)
        rows.append({"curve": curve, "reference": reference, "difference": mean, "low": low, "high": high,
                     "seeds": len(areas), "n": len(clusters)})
    return pd.DataFrame(rows)


def study(groups, real, fake, clusters, *, seed, replicates, orders=3, steps=4, device="cpu"):
    """Support, curves and area differences of several attentions on the same pairs.

    groups: dict attention -> its detectors, one a training seed. clusters: (N,) photographs of the pairs. The maps are
    measured on real and generated images apart; means over seeds with intervals as in `area_differences`.
    """
    support, lines, differences = [], [], []
    for method, detectors in groups.items():
        found = [curves(detector, real, fake, seed=seed, orders=orders, steps=steps, device=device)
                 for detector in detectors]
        for patches, maps in found[0].maps.items():
            tables = [support_table(item.maps[patches]) for item in found]
            row = {"method": method, "patches": patches}
            for key in MEASURES:
                row[key], row[f"{key}_low"], row[f"{key}_high"] = _over_draws(
                    [table[key].to_numpy() for table in tables], clusters, seed, replicates)
            support.append({**row, "cells": maps[0].size, "seeds": len(detectors), "n": len(fake)})
        table = found[0].table.assign(logit=np.mean([item.table["logit"] for item in found], axis=0))
        lines.append(table.assign(method=method, seeds=len(detectors)))
        differences.append(area_differences([item.areas for item in found], clusters, seed=seed,
                                            replicates=replicates).assign(method=method))
    joined = (pd.concat(tables, ignore_index=True) for tables in (lines, differences))
    return Study(pd.DataFrame(support), *(table[["method", *table.columns.drop("method")]] for table in joined))


def _over_draws(each, clusters, seed, replicates):
    """(mean, low, high) of per-image values, a list of (N,), one a training seed."""
    weights = bootstrap.cluster_weights(clusters, replicates, seed)
    drawn = bootstrap.seed_weights(len(each), replicates, seed)
    means = np.array([bootstrap.weighted_rate(values, weights) for values in each])  # (seeds, R + 1)
    mean = (drawn.T * means).sum(0) / drawn.sum(1)
    return float(mean[0]), *bootstrap.interval(mean)
