"""The embedded benchmark: real patches and, for each family, their regenerations, in one manifest.

Real and fake take one path: decode, downsample, crop at twice the size, (regenerate), quantise to 8 bits, halve,
quantise, encode as PNG. The further families are a set of their own beside it, made of the same patches.
"""

import dataclasses
import hashlib
import io
import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from tqdm import tqdm

from anl import seeds
from anl.data.patches import choose_patches, halve, load_source, split_photos, to_pixels, to_tensor
from anl.data.photos import check_folder, read_card
from anl.errors import UserError
from anl.files import identity, sha256_of, whole_file

REAL = "real"
CHUNK = 16  # patches regenerated at once; also the unit that an interrupted run keeps


def build(params, models_folder="models", cache=".cache/anl"):
    """Write the benchmark's folder (manifest.parquet, images-<generator>.parquet); returns the manifest.

    Regenerated patches are kept in `cache` until the whole is written, so that a killed run goes on from there.
    """
    photos = read_card(params.data.card)
    check_folder(photos, params.data.folder)
    patches, crops = cut_reals(photos, params)
    tables = {REAL: _table(REAL, patches, crops)}
    parts = Path(cache) / "benchmark"
    for name, family in params.families.items():
        wanted = [i for i, patch in enumerate(patches) if name == params.benchmark.seen or patch.split != "train"]
        chosen, real = [patches[i] for i in wanted], [crops[i] for i in wanted]
        tables[name] = _table(name, chosen, _fakes(name, family, chosen, real, params, models_folder, parts))
    manifest = _write(tables, params.benchmark.folder)
    shutil.rmtree(parts, ignore_errors=True)
    return manifest


def build_more(params, models_folder="models", cache=".cache/anl"):
    """Write the further families beside the benchmark, in the same format but without the reals; returns the manifest.

    Two more columns: `paired` (of the family), and `altered`, the share of pixels that differ from the real crop's
    before both are halved. Raises UserError if the profile names no further families.
    """
    if not params.more_families:
        raise UserError(f"profile {params.profile} names no `more_families`; take another one with `anl profile small`")
    photos = read_card(params.data.card)
    check_folder(photos, params.data.folder)
    patches, crops = cut_reals(photos, params)
    wanted = list(_held_out(patches, params.more_patches))
    chosen, real = [patches[i] for i in wanted], [crops[i] for i in wanted]
    parts, tables = Path(cache) / "more_families", {}
    for name, family in params.more_families.items():
        fakes = _fakes(name, family, chosen, real, params, models_folder, parts)
        altered = [float((fake != crop).any(-1).mean()) for fake, crop in zip(fakes, real, strict=True)]
        tables[name] = _table(name, chosen, fakes).assign(paired=family.paired, altered=altered)
    manifest = _write(tables, more_folder(params))
    shutil.rmtree(parts, ignore_errors=True)
    return manifest


def more_folder(params):
    """Where the further families lie: beside the benchmark."""
    return Path(params.benchmark.folder).with_name("more_families")


def read_more(params):
    """The further families with the benchmark's real patches that they were made of: (manifest, uint8 (N, H, W, 3))."""
    fakes = read_manifest(more_folder(params))
    real = read_manifest(params.benchmark.folder)
    real = real[(real["generator"] == REAL) & place(real).isin(set(place(fakes)))].assign(paired=True, altered=0.0)
    lost = set(place(fakes)) - set(place(real))
    if lost:
        raise UserError(f"{more_folder(params)} holds patches that {params.benchmark.folder} lacks ({min(lost)} is one): "
                        "they were made by different profiles; get both with `dvc pull benchmark more_families`")
    pixels = [read_images(params.benchmark.folder, real), read_images(more_folder(params), fakes)]
    return pd.concat([real, fakes], ignore_index=True), np.concatenate(pixels)


def place(manifest):
    """What a real patch and its regenerations share of their sample ids."""
    return manifest["sample_id"].str.split("/", n=1).str[1]


def _held_out(patches, limits):
    """Positions of up to `limits.val` and `limits.test` patches of each photograph, spread over it."""
    found = {}
    for index, patch in enumerate(patches):
        found.setdefault((patch.split, patch.photo), []).append(index)
    for (split, _), indices in found.items():
        limit = min(getattr(limits, split, 0), len(indices))
        yield from (indices[int(i)] for i in np.linspace(0, len(indices) - 1, limit).round())


def _fakes(name, family, patches, crops, params, models_folder, parts):
    """The regenerations of the crops by one family, uint8, each chunk of them kept in a folder of `parts`."""
    from anl.generators import load_model  # not above: who only reads the benchmark need not wait for diffusers

    needed = {family.model} | ({"vae"} if family.model == "latent" else set())
    models = {key: load_model(key, Path(models_folder) / key) for key in sorted(needed)}
    weights = {key: sha256_of(Path(models_folder) / key / "diffusion_pytorch_model.safetensors") for key in needed}
    key = identity({"family": dataclasses.asdict(family), "weights": weights, "seed": params.seed,
                    "patches": [patch.id for patch in patches], "size": params.benchmark.size})
    return _regenerate_all(name, family, models, crops, params.seed, parts / key)


def cut_reals(photos, params):
    """All patches and their uint8 crops at twice the benchmark's size, in the order of the data card."""
    splits = split_photos(photos, dataclasses.asdict(params.data.split), params.seed)
    counts = dataclasses.asdict(params.benchmark.patches)
    patches, crops = [], []
    for photo in tqdm(photos, desc="photographs", mininterval=5, file=sys.stderr):
        source = load_source(Path(params.data.folder) / photo.file, params.data.least_factor, params.data.source_side)
        split = splits[photo.id]
        for patch in choose_patches(source, photo.id, photo.cluster, split, size=2 * params.benchmark.size,
                                    count=counts[split], least_std=params.benchmark.least_std, seed=params.seed):
            patches.append(patch)
            crops.append(source[patch.top:patch.top + patch.size, patch.left:patch.left + patch.size].copy())
    return patches, crops


def _regenerate_all(name, family, models, crops, seed, parts):
    from anl.generators import regenerate

    fakes = []
    for start in tqdm(range(0, len(crops), CHUNK), desc=name, mininterval=5, file=sys.stderr):
        part = parts / f"{start}.npy"
        try:
            chunk = np.load(part)
        except (FileNotFoundError, ValueError, EOFError):
            x = to_tensor(np.stack(crops[start:start + CHUNK]))
            chunk = to_pixels(regenerate(family_dict(family), models, x, seeds.torch_generator(seed, name, start)))
            with whole_file(part) as temporary:
                np.save(temporary, chunk)
        fakes.extend(chunk)
    return fakes


def family_dict(family):
    return {key: value for key, value in dataclasses.asdict(family).items() if value is not None}


def _table(generator, patches, crops):
    rows = []
    for patch, crop in zip(patches, crops, strict=True):
        png = encode(halve(crop))
        rows.append({"sample_id": f"{generator}/{patch.id}", "generator": generator, "label": int(generator != REAL),
                     "split": patch.split, "photo": patch.photo, "cluster": patch.cluster, "top": patch.top,
                     "left": patch.left, "sha256": hashlib.sha256(png).hexdigest(), "bytes": len(png),
                     "width": crop.shape[1] // 2, "height": crop.shape[0] // 2, "format": "PNG", "png": png})
    return pd.DataFrame(rows)


def _write(tables, folder):
    """Write all parts beside the folder and swap it in at the end."""
    folder = Path(folder)
    temporary = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    for generator, table in tables.items():
        table[["sample_id", "png"]].to_parquet(temporary / f"images-{generator}.parquet", index=False, compression=None)
    manifest = pd.concat([table.drop(columns="png") for table in tables.values()], ignore_index=True)
    manifest.to_parquet(temporary / "manifest.parquet", index=False)
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)
    return manifest


def encode(pixels):
    """uint8 (H, W, 3) -> PNG bytes; one encoder setting for both classes."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="PNG", compress_level=9)
    return stream.getvalue()


def read_manifest(folder):
    """The manifest as a DataFrame. Raises UserError if the benchmark is missing or only half there."""
    folder = Path(folder)
    mend = f"get it with `dvc pull {folder.name}`, or make it with `dvc repro {folder.name}`"
    if not (folder / "manifest.parquet").is_file():
        raise UserError(f"{folder}/manifest.parquet is missing; {mend}")
    try:
        manifest = pd.read_parquet(folder / "manifest.parquet")
    except Exception as problem:
        raise UserError(f"{folder}/manifest.parquet cannot be read ({problem}); delete it and {mend}") from None
    for generator in manifest["generator"].unique():
        if not (folder / f"images-{generator}.parquet").is_file():
            raise UserError(f"{folder}/images-{generator}.parquet is missing; {mend}")
    return manifest


def read_images(folder, rows):
    """Pixels of manifest rows, uint8 (N, H, W, 3), in their order. Raises UserError on a missing or altered sample."""
    folder = Path(folder)
    encoded = {}
    for generator in rows["generator"].unique():
        path = folder / f"images-{generator}.parquet"
        try:
            table = pd.read_parquet(path)
        except Exception as problem:
            raise UserError(f"{path} cannot be read ({problem}); delete it and run `dvc pull {folder.name}`") from None
        encoded.update(zip(table["sample_id"], table["png"]))
    images = []
    for sample, digest in zip(rows["sample_id"], rows["sha256"]):
        png = encoded.get(sample)
        if png is None or hashlib.sha256(png).hexdigest() != digest:
            raise UserError(f"{folder}: the sample {sample} is missing or altered; delete the folder and run "
                            f"`dvc pull {folder.name}`")
        images.append(np.asarray(Image.open(io.BytesIO(png)).convert("RGB")))
    return np.stack(images)


def use_rows(manifest, params):
    """The manifest's rows that a profile uses: `use` real patches of each split, spread evenly over the photographs,
    and all regenerations of those patches."""
    real = manifest[manifest["generator"] == REAL]
    kept = []
    for split, limit in dataclasses.asdict(params.use).items():
        rows = real[real["split"] == split]
        rank = rows.groupby("photo").cumcount()
        kept.append(rows.assign(rank=rank).sort_values(["rank", "photo"], kind="stable").head(limit))
    places = set(pd.concat(kept)["sample_id"].str.removeprefix(f"{REAL}/"))
    return manifest[manifest["sample_id"].str.split("/", n=1).str[1].isin(places)].reset_index(drop=True)
