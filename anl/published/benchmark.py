"""The folder that `anl.benchmark` reads, made from a public data set and the samples of generators trained on its reals."""

import hashlib
import io
import sys
from pathlib import Path

import pandas as pd
from PIL import Image, JpegImagePlugin
from tqdm import tqdm

from anl.benchmark import REAL, write
from anl.data.patches import to_pixels
from anl.errors import UserError
from anl.files import write_csv
from anl.published.generators import sample
from anl.published.split import read_files, split

COUNTS = "counts.csv"


def build(params):
    """Write manifest.parquet, images-<generator>.parquet and counts.csv into `benchmark.folder`; returns the manifest.

    A row holds the bytes of one published file, untouched (in column `png`, whatever the format: that is the name under
    which `anl.benchmark` reads them). Sample ids are <generator>/<split>-<number>. Training pairs a real image with the
    generated one of the same number: an arbitrary pair, since nothing in such a set says which photograph a generated
    image belongs to. Each image is a photograph and a cluster of its own, but for files of equal bytes, which share a
    cluster. Samples of the profile's other generators enter the test split alone, encoded as a test real is.
    Raises UserError on a data set that is missing or changed, or a generator that was not trained yet.
    """
    rows, counts = split(params)
    tables = {}
    for generator in (REAL, params.benchmark.seen):
        mine = rows[rows["generator"] == generator].sort_values(["split", "number"])
        encoded = list(tqdm(read_files(params, mine), total=len(mine), desc=generator, mininterval=5, file=sys.stderr))
        tables[generator] = _table(mine, encoded)
    models = tables[REAL][tables[REAL]["split"] == "test"].head(params.published.samples)
    for name, family in params.families.items():
        if name != params.benchmark.seen:
            images = sample(family.model, Path(params.models_folder) / family.model, len(models), params.benchmark.size,
                            seed=params.seed, inference_steps=family.inference_steps)
            files = [encode_like(pixels, real) for pixels, real in zip(to_pixels(images), models["png"], strict=True)]
            tables[name] = _table(models.assign(generator=name, label=1, sha256=[_sha256(data) for data in files],
                                                bytes=[len(data) for data in files]), files)
    manifest = write(tables, params.benchmark.folder)
    write_csv(Path(params.benchmark.folder) / COUNTS, counts.to_dict("records"))
    return manifest


def check(params):
    """Raise UserError, saying how to make it, where a public data set's benchmark is not there."""
    if not (Path(params.benchmark.folder) / "manifest.parquet").is_file():
        raise UserError(f"{params.benchmark.folder} holds no benchmark; fetch the data set (`anl fetch` lists them), then run "
                        f"`dvc repro {params.published.pipeline}`, or what it runs for this profile, `anl --params "
                        f"profiles/{params.profile}.yaml benchmark`")


def _table(rows, encoded):
    name = rows["split"] + "-" + rows["number"].map("{:05d}".format)
    return pd.DataFrame({
        "sample_id": rows["generator"] + "/" + name, "generator": rows["generator"], "label": rows["label"].astype(int),
        "split": rows["split"], "number": rows["number"], "photo": rows["generator"] + "/" + name,
        "cluster": rows["sha256"], "sha256": rows["sha256"], "bytes": rows["bytes"], "width": rows["width"],
        "height": rows["height"], "format": rows["format"], "jpeg_quality": rows["jpeg_quality"],
        "png": encoded}).reset_index(drop=True)


def _sha256(data):
    return hashlib.sha256(data).hexdigest()


def encode_like(pixels, real):
    """uint8 (H, W, 3) -> the bytes of a file of the same format as `real` (bytes): for a JPEG with its quantisation tables
    and chroma subsampling, for a PNG losslessly. Raises UserError on another format."""
    stream = io.BytesIO()
    with Image.open(io.BytesIO(real)) as image:
        if image.format == "JPEG":
            # Pillow stores and takes tables in the same order, so the new file's equal the real one's
            options = {"qtables": image.quantization, "subsampling": JpegImagePlugin.get_sampling(image)}
        elif image.format == "PNG":
            options = {"compress_level": 9}
        else:
            raise UserError(f"samples cannot be written as the reals are, in {image.format}; only JPEG and PNG are known")
        form = image.format
    Image.fromarray(pixels).save(stream, format=form, **options)
    return stream.getvalue()
