import numpy as np
import pandas as pd
from PIL import Image, ImageFilter

from anl import audit
from anl.benchmark import read_images, read_manifest
from anl.data import views
from tests.conftest import photograph


def test_run_writes_three_tables_with_a_row_a_family(world, tmp_path):
    folder = audit.run(world.params, tmp_path)
    families = pd.read_csv(folder / "family_statistics.csv")
    assert families["family"].tolist() == list(world.params.families)
    columns = [f"ap_{name}" for name in ("mean_colour", "contrast", "high_frequency", "spectrum")]
    assert families[columns].to_numpy().min() > 0 and families[columns].to_numpy().max() <= 1
    probe = pd.read_csv(folder / "format_probe.csv")
    declared = probe[probe["features"] == "declared"]
    assert (declared["accuracy"] == 0.5).all()  # same size and format on both sides: nothing to learn
    sets = pd.read_csv(folder / "compression_probe.csv")["set"].tolist()
    assert sets == ["originals", "real", "real, JPEG 50", *world.params.families]


def test_statistics_find_what_was_planted(world):
    manifest = read_manifest(world.params.benchmark.folder)
    manifest = manifest[manifest["split"] != "train"].reset_index(drop=True)
    pixels = read_images(world.params.benchmark.folder, manifest)
    fake = (manifest["generator"] == "vae").to_numpy()
    key = manifest["sample_id"].str.split("/", n=1).str[1]
    partner = {k: i for i, k in enumerate(key) if manifest["label"][i] == 0}
    pixels[fake] = np.stack([
        np.asarray(Image.fromarray(pixels[partner[k]]).filter(ImageFilter.GaussianBlur(2))) for k in key[fake]])
    row = next(r for r in audit.family_statistics(manifest, pixels, world.params) if r["family"] == "vae")
    assert row["ap_high_frequency"] > 0.9 and row["high_frequency_ratio"] < 0.7
    assert row["ap_mean_colour"] < row["ap_high_frequency"]  # blur leaves the mean where it was


def test_blockiness_sees_a_jpeg_grid_and_nothing_in_its_absence():
    images = np.stack([photograph(seed, 64, 64) for seed in range(12)])
    compressed = np.stack([views.jpeg(image, 20) for image in images])
    plain, blocks = (audit.blockiness(i.astype(float).mean(-1)) for i in (images, compressed))
    assert np.median(blocks) > 3 * np.median(plain)
    shifted = audit.blockiness(compressed[:, 3:51, 5:53].astype(float).mean(-1))
    assert np.median(shifted) > 3 * np.median(plain)  # wherever the grid lies


def test_high_frequency_energy_ratio_of_known_images():
    checker = np.indices((32, 32)).sum(0) % 2 * 100
    smooth = np.tile(50 + 50 * np.sin(2 * np.pi * np.arange(32) / 32), (32, 1))
    features = audit.image_features(np.stack([np.stack([a] * 3, -1) for a in (checker, smooth)]).astype(np.uint8))
    assert features["high_frequency"][0, 0] > features["high_frequency"][1, 0] + 5


def test_further_families_have_their_own_statistics(world, tmp_path):
    folder = audit.run_more(world.params, tmp_path)
    table = pd.read_csv(folder / "family_statistics.csv").set_index("family")
    assert table.index.tolist() == list(world.params.more_families)
    assert table["psnr"].isna().tolist() == [not family.paired for family in world.params.more_families.values()]
