"""Make the benchmark of a profile: patches and their regenerations, or published images and those of our own generators."""

import functools
import hashlib
import io
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import torch
from PIL import Image, JpegImagePlugin

from anl import seeds
from anl.data import REAL, crops, embedded, images, manifest, photos, published
from anl.data.decode import Refused, read_bytes, refusal
from anl.data.duplicates import near_groups
from anl.data.manifest import file_path, path_text
from anl.io import UserError, identity
from anl.models import generators
from anl.training.device import make_accelerator
from anl.training.generators import generator_folder, photograph_settings, weights_of

__all__ = ["make_benchmark"]

CUT = ("size", "halve", "patches", "least_std", "shrink", "encode", "encode_quality")  # settings that determine real patches
CHOICE = ("kind", "manifest", "source", "val_share", "val_most", "test_sets")  # ... that select images


def make_benchmark(config):
    """Make the benchmark of a profile, or update it.

    A part (the real images, or the images of one generator) is stored with a hash of its inputs. A part whose hash is
    unchanged keeps its files; missing images are added to it. An interrupted run continues. Random numbers are drawn on the
    CPU with a seed per image name, so they depend neither on the device nor on the batch size.

    Parameters
    ----------
    config : anl.config.Config
        Each `benchmark.folder` that a variant of its experiments names is made, too.

    Returns
    -------
    DataFrame
        The manifest of `benchmark.folder`, with the columns `anl.data.embedded.COLUMNS`.

    Raises
    ------
    UserError
        If photographs, an index or a generator's weights are missing, the profile lacks a seen generator, variants with
        different settings share a folder, or a folder contains files that are not of a benchmark.
    """
    folders = {}
    for variant in [config, *(variant for name in config.experiments for variant in config.variants(name).values())]:
        folders.setdefault(variant.benchmark.folder, []).append(variant)
    for folder, same in folders.items():
        _check(folder, same)
        all_of = {key: list(dict.fromkeys(name for variant in same for name in getattr(variant.benchmark, key)))
                  for key in ("seen", "held_out")}
        benchmark = same[0].benchmark.model_copy(update=all_of)
        make = _Embedded if benchmark.kind == "embedded" else _Published
        make(same[0], benchmark).update()
    return embedded.read_embedded(config.benchmark.folder)


def _check(folder, same):
    """Raise UserError if variants with different settings share a folder, or if it contains files that are not of a benchmark."""
    first = same[0].benchmark
    for variant in same:
        differs = [key for key in (*CUT, *CHOICE) if getattr(variant.benchmark, key) != getattr(first, key)]
        if differs:
            raise UserError(f"two variants of profile {variant.profile} have the benchmark.folder {folder} and differ in "
                            f"benchmark.{differs[0]}; state a folder for each")
    known = (embedded.MANIFEST, embedded.IDENTITIES, "images-*.parquet")
    if foreign := [path.name for path in Path(folder).glob("*") if not any(path.match(pattern) for pattern in known)]:
        raise UserError(f"{folder} holds {foreign[0]}, which is no part of a benchmark and would be lost; move it, or state "
                        "another benchmark.folder")


class _Maker:
    """Brings one folder up to date."""

    def __init__(self, config, benchmark):
        self.config, self.benchmark, self.seed, self.folder = config, benchmark, config.seed, Path(benchmark.folder)
        self.device = make_accelerator().device
        self.cache = Path(config.run.cache) / "benchmark" / self.folder.name
        self.old, self.known = embedded.read_parts(self.folder)
        self.tables, self.identities, self.changed = {}, {}, False

    def update(self):
        self.collect()
        if self.changed or set(self.tables) != set(self.old):
            embedded.write(self.tables, self.folder, self.identities)
        shutil.rmtree(self.cache, ignore_errors=True)

    def kept(self, part, made_with):
        """The existing rows of a part, or None if there are none with the identity `made_with`."""
        self.identities[part] = made_with
        return self.old.get(part) if self.known.get(part) == made_with else None

    def add(self, part, old, new=None):
        """Store the rows of a part: the existing rows `old`, followed by the `new` ones."""
        if new is not None:
            old = new if old is None else pd.concat([embedded.with_images(old, self.folder), new], ignore_index=True)
            self.changed = True
        if old is not None:
            self.tables[part] = old

    def family_identity(self, name, reals):
        """Hash of everything that determines a generator's images; `reals` is the identity of the real images."""
        family = self.config.families[name]
        weights = {network: weights_of(generator_folder(self.config, network)) for network in sorted(family.networks)}
        about = family.model_dump(mode="json", exclude_none=True)
        return identity({"reals": reals, "family": about, "weights": weights, "seed": self.seed})

    @functools.cache  # noqa: B019 - lives as long as the command
    def networks(self, name):
        """The networks of a family, loaded."""
        found = {}
        for network in self.config.families[name].networks:
            kind = generators.kind_of(network, self.config.models[network])
            found[network] = generators.load_model(kind, generator_folder(self.config, network), self.device)
        return found

    def generate(self, name, ids, pixels):
        """Images of a family, uint8 (n, H, W, 3), from pixels of that type and shape; `ids` name the random streams."""
        draws = [seeds.torch_generator(self.seed, name, image) for image in ids]
        x = images.to_tensor(pixels, self.device).to(memory_format=torch.channels_last)
        return images.to_pixels(generators.regenerate(self.config.families[name], self.networks(name), x, draws))

    def chunks(self, part, name, ids, pixels):
        """`generate` in cached chunks, so that an interrupted run continues."""
        return embedded.in_chunks(name, ids, pixels, self.generate, self.cache, self.identities[part])


class _Embedded(_Maker):
    """Patches of photographs and their regenerations."""

    def collect(self):
        for dataset, index in {None: self.benchmark.manifest, **self.benchmark.test_sets}.items():
            self.add_dataset(dataset, index)

    def add_dataset(self, dataset, index):
        real = f"{dataset}-{REAL}" if dataset else REAL
        # `halve` is hashed only if it is false: benchmarks made before this setting existed keep their identity
        section = self.benchmark.model_dump(mode="json", include=set(CUT), exclude={"halve"} if self.benchmark.halve else None)
        about = photograph_settings(self.config.data, index)
        made_with = identity({"photographs": about, "test": dataset, "benchmark": section, "seed": self.seed})
        reals = self.kept(real, made_with)
        cut = functools.cache(functools.partial(self.cut, dataset, index))
        new = embedded.real_table(*cut(), self.benchmark, self.seed, dataset or embedded.NAME) if reals is None else None
        self.add(real, reals, new)
        self.add_families(dataset, self.tables[real].drop(columns="image", errors="ignore").reset_index(drop=True), made_with, cut)

    def add_families(self, dataset, reals, made_with, cut):
        used = set(crops.use_rows(reals, self.benchmark.most, self.seed)["pair"])
        for name, family in self.config.families.items():
            part = f"{dataset}-{name}" if dataset else name
            old = self.kept(part, self.family_identity(name, made_with))
            done = set() if old is None else set(old["image_id"].str.partition("/")[2])
            chosen = reals.loc[embedded.regenerated_patches(reals, name, self.benchmark.seen, self.benchmark.held_out)]
            chosen = chosen[chosen["pair"].isin(used) & ~chosen["pair"].isin(done)]
            if chosen.empty:
                self.add(part, old)
                continue
            patches, pixels = cut()
            place = {patch.id: number for number, patch in enumerate(patches)}
            made = self.chunks(part, name, chosen["pair"].tolist(), [pixels[place[pair]] for pair in chosen["pair"]])
            self.add(part, old, embedded.generated_table(name, family, chosen, made, self.benchmark, self.seed))

    def cut(self, dataset, index):
        if index is None:
            cards = photos.read_card(self.config.data.card)
            photos.check_folder(cards, self.config.data.folder)
            return embedded.cut_patches(cards, self.config.data, self.benchmark, self.seed)
        rows = manifest.read(index, ["path", "sha256", "split", "phash"], label=0).drop_duplicates("sha256")
        prefix = f"{dataset}/" if dataset else ""  # two data sets may contain files of the same name
        clusters = rows["path"].to_numpy()[near_groups(rows["phash"])]
        found = [SimpleNamespace(id=prefix + path, cluster=prefix + cluster, file=path, sha256=sha256)
                 for path, cluster, sha256 in zip(rows["path"], clusters, rows["sha256"], strict=True)]
        root = manifest.root_of(index)
        photos.check_folder(found, root, f"fetch the photographs that {index} lists, or index others with `anl data index`")
        splits = None  # drawn by data.split, unless the index has all three
        if dataset or set(crops.SPLITS) <= set(rows["split"]):
            splits = {photo.id: "test" if dataset else split for photo, split in zip(found, rows["split"], strict=True)}
            found = _apart(found, splits)
        data = self.config.data.model_copy(update={"folder": str(root)})
        return embedded.cut_patches(found, data, self.benchmark, self.seed, splits)


def _apart(found, splits):
    """Photographs without those of which a near-duplicate is in a split that matters more: test, then validation, then training."""
    order = {split: place for place, split in enumerate(("test", "val", "train"))}
    first = {}
    for photo in found:
        first[photo.cluster] = min(first.get(photo.cluster, len(order)), order.get(splits[photo.id], len(order)))
    return [photo for photo in found if order.get(splits[photo.id], len(order)) == first[photo.cluster]]


class _Published(_Maker):
    """Published images and, in the test split, images of our own generators: regenerations or samples."""

    def collect(self):
        made_with = identity({"images": published.settings(self.benchmark), "seed": self.seed})
        rows = self.kept(embedded.PUBLISHED, made_with)
        if rows is None:
            rows = published.rows(self.benchmark, self.seed)
            root = os.path.relpath(manifest.root_of(self.benchmark.manifest), self.folder)
            rows["path"] = [path_text(os.path.normpath(os.path.join(root, file_path(path)))) for path in rows["path"]]
            self.changed = True
        self.add(embedded.PUBLISHED, rows[list(embedded.COLUMNS)])
        test = rows[(rows["split"] == "test") & (rows["generator"] == REAL)]
        main = test[test["dataset"] == test["dataset"].iloc[0]] if len(test) else test
        models = main.head(min(self.benchmark.samples or len(main), self.benchmark.most["test"])).reset_index(drop=True)
        for name, family in self.config.families.items():
            if family.model == "published":
                continue
            old = self.kept(name, self.family_identity(name, identity([made_with, self.benchmark.size])))
            done = set() if old is None else set(old["image_id"])
            chosen = models[[self.sample_id(name, real) not in done for real in models["image_id"]]]
            self.add(name, old, None if chosen.empty else self.samples(name, family, chosen))

    @staticmethod
    def sample_id(name, real):
        return f"{name}/{real.partition('/')[2]}"

    def samples(self, name, family, reals):
        """Rows of a generator's images, each encoded like the real image of its row."""
        ids = [self.sample_id(name, real) for real in reals["image_id"]]
        size = self.benchmark.size
        files = [os.path.normpath(self.folder / file_path(path)) for path in reals["path"]]  # the folder may not exist yet
        start = [np.zeros((size, size, 3), np.uint8)] * len(ids)
        if family.paired:
            start = list(images.load_pixels(reals.assign(path=[path_text(file) for file in files]), "", size))
        data = [encode_like(pixels, file) for pixels, file in zip(self.chunks(name, name, ids, start), files, strict=True)]
        digests = [hashlib.sha256(one).hexdigest() for one in data]
        rows = reals.assign(image_id=ids, label=1, generator=name, family=family.model, pair="", width=size, height=size, path="",
                            bytes=[len(one) for one in data], sha256=digests)
        rows = rows if family.paired else rows.assign(group=digests)
        return rows[list(embedded.COLUMNS)].assign(image=data)


def encode_like(pixels, path):
    """Encode uint8 pixels (H, W, 3) in the file format of the image at `path`; return the bytes of the file.

    A JPEG gets the quantisation tables and the chroma subsampling of that image. The other format is PNG.

    Raises
    ------
    UserError
        If the image cannot be read or has another format.
    """
    stream = io.BytesIO()
    try:
        data = read_bytes(path)
    except Refused as problem:
        raise refusal(path, problem) from None
    with Image.open(io.BytesIO(data)) as image:
        form = image.format
        if form == "JPEG":
            options = {"qtables": image.quantization, "subsampling": JpegImagePlugin.get_sampling(image)}
        elif form == "PNG":
            options = {"compress_level": 9}
        else:
            raise UserError(f"{path}: samples cannot be written in {form}, as the real images are; use a set of JPEG or PNG files")
    Image.fromarray(pixels).save(stream, format=form, **options)
    return stream.getvalue()
