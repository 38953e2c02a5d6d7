"""What else than a generator's fingerprint could tell real from fake: simple statistics, metadata, old compression."""

import itertools
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from anl import bootstrap, more_families, seeds
from anl.benchmark import REAL, read_images, read_manifest
from anl.data import views
from anl.data.photos import decode, read_card
from anl.files import write_csv

GRID = 8  # pixels between the block boundaries of JPEG
ORIGINAL_CROPS = 4  # per photograph


def run(params, results="results"):
    """Write family_statistics.csv, format_probe.csv and compression_probe.csv under results/<profile>/audit/."""
    folder = Path(results) / params.profile / "audit"
    manifest = read_manifest(params.benchmark.folder)
    manifest = manifest[manifest["split"] != "train"].reset_index(drop=True)
    pixels = read_images(params.benchmark.folder, manifest)
    write_csv(folder / "family_statistics.csv", family_statistics(manifest, pixels, params))
    write_csv(folder / "format_probe.csv", format_probe(manifest, params))
    write_csv(folder / "compression_probe.csv", compression_probe(manifest, pixels, params))
    return folder


def run_more(params, results="results"):
    """Write family_statistics.csv of the further families under results/<profile>/audit_more/."""
    folder = Path(results) / params.profile / "audit_more"
    manifest, pixels = more_families.read(params)
    rows = family_statistics(manifest, pixels, params, params.more_families)
    for row in rows:  # an unpaired sample has no real patch to be like
        row["psnr"] = row["psnr"] if params.more_families[row["family"]].paired else None
    write_csv(folder / "family_statistics.csv", rows)
    return folder


def image_features(pixels):
    """Simple statistics of uint8 (N, H, W, 3) images: dict name -> (N, F).

    mean_colour (3), contrast (standard deviation of grey), high_frequency (log energy above half the Nyquist
    frequency), spectrum (log energy of 16 rings up to the Nyquist frequency).
    """
    grey = pixels.astype(np.float64).mean(-1)
    power = np.abs(np.fft.fft2(grey - grey.mean((1, 2), keepdims=True))) ** 2
    frequency = np.fft.fftfreq(grey.shape[1])
    radius = np.hypot(*np.meshgrid(frequency, frequency))
    edges = np.linspace(0, 0.5, 17)
    rings = [power[:, (radius >= low) & (radius < high)].mean(1) for low, high in itertools.pairwise(edges)]
    return {"mean_colour": pixels.reshape(len(pixels), -1, 3).mean(1), "contrast": grey.std((1, 2))[:, None],
            "high_frequency": np.log(power[:, radius >= 0.25].mean(1) + 1)[:, None],
            "spectrum": np.log(np.stack(rings, 1) + 1)}


def family_statistics(manifest, pixels, params, families=None):
    """A row a family: test AP, with 95 % interval, of a logistic regression on each simple statistic, fitted on
    validation patches of the same family; the median ratio of high-frequency energy fake / real; PSNR in dB.

    families: names, those of the benchmark by default.
    """
    features = image_features(pixels)
    rows = []
    for name in params.families if families is None else families:
        row = {"family": name, "seen": name == params.benchmark.seen}
        fit, test = (_both(manifest, name, split) for split in ("val", "test"))
        weights = bootstrap.cluster_weights(manifest.loc[test, "cluster"], params.evaluation.bootstrap, params.seed)
        row["n"] = len(test)
        for statistic, values in features.items():
            model = make_pipeline(StandardScaler(), LogisticRegression(C=1.0, max_iter=2000))
            model.fit(values[fit], manifest.loc[fit, "label"])
            score = model.decision_function(values[test])
            ap = bootstrap.weighted_average_precision(manifest.loc[test, "label"], score, weights)
            low, high = bootstrap.interval(ap)
            row |= {f"ap_{statistic}": ap[0], f"ap_{statistic}_low": low, f"ap_{statistic}_high": high}
        real, fake = _pairs(manifest, name)
        row["high_frequency_ratio"] = float(np.median(np.exp(
            features["high_frequency"][fake, 0] - features["high_frequency"][real, 0])))
        error = (pixels[fake].astype(float) - pixels[real]) ** 2
        row["psnr"] = float(np.median(10 * np.log10(255**2 / error.mean((1, 2, 3)).clip(min=1e-3))))
        rows.append(row)
    return rows


def format_probe(manifest, params):
    """Test accuracy of a classifier that sees metadata alone, a row a family and feature set.

    `declared`: width, height, format. `bytes`: the same and the size of the lossless file, which also follows content
    and smoothness. Fitted on validation patches of the seen family; chance is 0.5.
    """
    declared = pd.get_dummies(manifest[["width", "height", "format"]], columns=["format"]).to_numpy(float)
    size = np.log(manifest["bytes"].to_numpy(float))[:, None]
    rows = []
    for label, values in (("declared", declared), ("bytes", np.hstack([declared, size]))):
        model = make_pipeline(StandardScaler(), LogisticRegression())
        fit = _both(manifest, params.benchmark.seen, "val")
        model.fit(values[fit], manifest.loc[fit, "label"])
        for name in params.families:
            test = _both(manifest, name, "test")
            hit = model.predict(values[test]) == manifest.loc[test, "label"]
            weights = bootstrap.cluster_weights(manifest.loc[test, "cluster"], params.evaluation.bootstrap, params.seed)
            rate = bootstrap.weighted_rate(hit, weights)
            low, high = bootstrap.interval(rate)
            rows.append({"features": label, "family": name, "accuracy": rate[0], "low": low, "high": high,
                         "n": len(test)})
    return rows


def blockiness(grey):
    """How far the strongest of the 8 grid phases stands above the others, (N,): 0 without a grid.

    grey: (N, H, W). Mean absolute step between neighbouring pixels per phase, the largest over the median of all, less
    one; the mean of rows and columns.
    """
    found = []
    for steps in (np.abs(np.diff(grey, axis=2)).mean(1), np.abs(np.diff(grey, axis=1)).mean(2)):  # (N, side - 1)
        phases = np.stack([steps[:, phase::GRID].mean(1) for phase in range(GRID)], 1)
        found.append(phases.max(1) / (np.median(phases, 1) + 1e-6) - 1)
    return np.mean(found, 0)


def compression_probe(manifest, pixels, params):
    """Blockiness of originals, real patches and every family, with reals through JPEG 50 as proof that the probe sees
    a grid; AP of blockiness as a score of real against fake. A row a set."""
    size = params.benchmark.size
    test = manifest["split"] == "test"
    real = np.flatnonzero(test & (manifest["generator"] == REAL))
    grey = pixels.astype(np.float64).mean(-1)
    photos = {photo.id: photo for photo in read_card(params.data.card)}
    originals = np.concatenate([
        _original_crops(decode(Path(params.data.folder) / photos[name].file), size, params.seed, name)
        for name in sorted(set(manifest.loc[real, "photo"]))])
    compressed = np.stack([views.jpeg(image, 50) for image in pixels[real]])
    sets = {"originals": originals.mean(-1), "real": grey[real], "real, JPEG 50": compressed.mean(-1)}
    reference = blockiness(sets["real"])
    rows = []
    for name, images in [*sets.items(), *((family, None) for family in params.families)]:
        index = None
        if images is None:
            index = np.flatnonzero(test & (manifest["generator"] == name))
            images = grey[index]
        values = blockiness(images)
        row = {"set": name, "n": len(values), "blockiness": float(np.median(values)),
               "quartile_low": float(np.quantile(values, 0.25)), "quartile_high": float(np.quantile(values, 0.75)),
               "ap_against_real": None, "low": None, "high": None}
        if name != "real":
            label = np.repeat([0, 1], [len(reference), len(values)])
            score = np.concatenate([reference, values])
            if name == "originals":
                weights = np.ones((1, len(score)))
            else:
                clusters = np.concatenate([manifest.loc[real, "cluster"], manifest.loc[real if index is None else index,
                                                                                       "cluster"]])
                weights = bootstrap.cluster_weights(clusters, params.evaluation.bootstrap, params.seed)
            ap = bootstrap.weighted_average_precision(label, score, weights)
            row["ap_against_real"] = ap[0]
            if len(ap) > 1:
                row["low"], row["high"] = bootstrap.interval(ap)
        rows.append(row)
    return rows


def _original_crops(pixels, size, seed, name):
    rng = seeds.generator(seed, "originals", name)
    corners = [[int(rng.integers(0, side - size + 1)) for side in pixels.shape[:2]] for _ in range(ORIGINAL_CROPS)]
    return np.stack([pixels[y:y + size, x:x + size] for y, x in corners])


def _both(manifest, family, split):
    """Positions of the reals and of one family's patches in a split."""
    return np.flatnonzero((manifest["split"] == split) & manifest["generator"].isin([REAL, family]))


def _pairs(manifest, family, split="test"):
    """Positions (real, fake) of the same patches, in the same order."""
    key = manifest["sample_id"].str.split("/", n=1).str[1]
    sides = []
    for generator in (REAL, family):
        index = np.flatnonzero((manifest["split"] == split) & (manifest["generator"] == generator))
        sides.append(index[np.argsort(key.iloc[index].to_numpy(), kind="stable")])
    return sides
