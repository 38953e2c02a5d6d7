"""Leave one generator out: a benchmark for each family, whose detectors train on all other families together.

Every training and validation patch is paired with a regeneration by *one* of the other families, so that pairs, steps and
the balance of the classes are those of the protocol that trains on one family; the left-out family is seen in testing alone.
To the rest of the library such a benchmark is one like another, whose seen generator is called `others`: targets, training
and scoring are the same code.
"""

import dataclasses
import shutil
from pathlib import Path

import pandas as pd

from anl import runs, seeds
from anl.benchmark import REAL, cut_reals, read_manifest, regenerations, table_of, write
from anl.data.photos import check_folder, read_card
from anl.errors import UserError
from anl.files import identity, sha256_of, whole_file

OTHERS = "others"  # the seen generator: a mixture of all families but the left-out one
NAME = "leave_one_out"
LEAST = 3  # families


def without(params, family):
    """The profile's parameters for the benchmark without `family`: its own folders of images, targets and runs.

    Runs lie in runs/<profile>/leave_one_out/<family>/. Raises UserError on an unknown family, fewer than three, or a public
    data set.
    """
    if params.published:
        raise UserError(f"profile {params.profile} is of a public data set, which has no other generators to train on")
    if len(params.families) < LEAST:
        raise UserError(f"leaving one family out needs {LEAST} or more; add to `families`")
    if family not in params.families:
        raise UserError(f"there is no family '{family}' to leave out; choose one of {', '.join(params.families)}")
    own = dataclasses.replace(params.benchmark, folder=str(folder_of(params, family)), seen=OTHERS)
    return dataclasses.replace(params, profile=f"{params.profile}/{NAME}/{family}", benchmark=own)


def folder_of(params, family):
    """Where the benchmark without `family` lies: beside the main one."""
    return Path(params.benchmark.folder).with_name(NAME) / family


def partners(places, families, seed, split):
    """{place: (family, stand-in)}: what regenerates each patch, and what does where that family is the left-out one.

    places: ids of a split's patches, in any order. Both are dealt out in equal shares, in an order drawn from the seed; a
    patch whose family is not left out has the same partner whichever family is.
    """
    places, families = sorted(places), list(families)
    order = seeds.generator(seed, NAME, split).permutation(len(places))
    found, dealt = {}, dict.fromkeys(families, 0)
    for position, index in enumerate(order.tolist()):
        family = families[position % len(families)]
        rest = [name for name in families if name != family]
        found[places[index]] = (family, rest[dealt[family] % len(rest)])
        dealt[family] += 1
    return found


def partner(pair, family):
    """Of a patch's (family, stand-in) the one that regenerates it where `family` is left out."""
    return pair[1] if pair[0] == family else pair[0]


def build(params, family, models_folder="models", cache=".cache/anl"):
    """Write the benchmark without `family`, in the main one's format; returns its manifest.

    Reals are the main benchmark's. Generated are, for training and validation, one image of `others` for each real; the column
    `family` says which family made it. For testing there are the images of every family, under their own names. Training
    images that the main benchmark lacks are regenerated first, and kept in `cache` for the next left-out family.
    """
    own = without(params, family)
    manifest = _with_images(params.benchmark.folder)
    chosen = _chosen(manifest, params)
    made = pd.concat([manifest, *_training_images(manifest, chosen, params, models_folder, cache)], ignore_index=True)
    made = made.assign(family=made["generator"]).set_index("sample_id", drop=False)
    wanted = [f"{partner(pair, family)}/{place}" for pairs in chosen.values() for place, pair in pairs.items()]
    others = made.loc[wanted].assign(generator=OTHERS)
    others["sample_id"] = OTHERS + "/" + others["sample_id"].str.split("/", n=1).str[1]
    tables = {REAL: made[made["generator"] == REAL], OTHERS: others}
    for name in params.families:
        tables[name] = made[(made["generator"] == name) & (made["split"] == "test")]
    return write(tables, own.benchmark.folder)


def prepared(params, family, models_folder="models", cache=".cache/anl"):
    """Like `without`, and the benchmark is there: one that is missing or of other photographs or another rule is made."""
    own = without(params, family)
    try:
        manifest = read_manifest(own.benchmark.folder)
    except UserError:
        manifest = pd.DataFrame()
    if not _is_current(manifest, read_manifest(params.benchmark.folder), params, family):
        build(params, family, models_folder, cache)
    return own


def find_or_train(params, family, **changes):
    """[folder of each seed's run] of the method, or the plain detector (target="none"), trained without `family`.

    changes: as of anl.runs.specs_of. A missing benchmark is made, missing runs are trained.
    """
    own = without(params, family)
    if not runs.is_restored(own):  # saved scores need no images
        prepared(params, family)
    return list(runs.find_or_train(runs.specs_of(own, **changes), own).values())


def specs(params):
    """{family: (parameters, specs)} of what the profile leaves out: the plain detector and the method, for every seed."""
    return {family: (own, runs.main_specs(own)) for family in params.runs.left_out for own in [without(params, family)]}


def _chosen(manifest, params):
    """{split: `partners`} of all real patches that train or validate."""
    real = manifest[manifest["generator"] == REAL]
    return {split: partners(real.loc[real["split"] == split, "sample_id"].str.split("/", n=1).str[1], params.families,
                            params.seed, split) for split in ("train", "val")}


def _is_current(manifest, main, params, family):
    if not {"family", "sha256"} <= set(manifest.columns):
        return False
    real, known = (table.loc[table["generator"] == REAL, ["sample_id", "sha256"]] for table in (manifest, main))
    others = manifest[manifest["generator"] == OTHERS]
    wanted = {f"{OTHERS}/{place}": partner(pair, family) for pairs in _chosen(main, params).values()
              for place, pair in pairs.items()}
    return real.values.tolist() == known.values.tolist() and dict(zip(others["sample_id"], others["family"])) == wanted


def _with_images(folder):
    """A benchmark's manifest with the images' bytes in the column `png`."""
    manifest = read_manifest(folder)
    images = [pd.read_parquet(Path(folder) / f"images-{name}.parquet") for name in manifest["generator"].unique()]
    return manifest.merge(pd.concat(images), on="sample_id", how="left", validate="one_to_one")


def _training_images(manifest, chosen, params, models_folder, cache):
    """Tables like `table_of`'s, one a family but the seen one: the training patches that it regenerates for any left-out
    family."""
    needed = {model for family in params.families.values() for model in _models_of(family)}
    key = identity({"weights": {name: sha256_of(Path(models_folder) / name) for name in sorted(needed)}, "seed": params.seed,
                    "families": {name: dataclasses.asdict(family) for name, family in params.families.items()},
                    "seen": params.benchmark.seen, "size": params.benchmark.size,
                    "real": manifest.loc[manifest["generator"] == REAL, "sha256"].tolist()})
    store, cut, tables = Path(cache) / NAME / key, None, []
    for name, family in params.families.items():
        path = store / f"{name}.parquet"
        if name == params.benchmark.seen:
            continue
        if not path.is_file():
            cut = cut or _training_crops(manifest, params)
            wanted = sorted(place for place, pair in chosen["train"].items() if name in pair)
            patches, crops = zip(*(cut[place] for place in wanted), strict=True)
            # a name of its own draws noise of its own: else training images would share the test images' noise
            fakes = regenerations(f"{NAME}/{name}", family, patches, crops, params, models_folder, store / name)
            with whole_file(path) as temporary:
                table_of(name, patches, fakes).to_parquet(temporary, index=False)
            shutil.rmtree(store / name, ignore_errors=True)  # chunks that an interrupted run would have gone on from
        tables.append(pd.read_parquet(path))
    return tables


def _models_of(family):
    """Names of the models that a family runs."""
    return [family.model, "vae"] if family.model == "latent" else [family.model]


def _training_crops(manifest, params):
    """{place: (patch, crop)} of the training patches. Raises UserError if the benchmark was made of others."""
    photos = read_card(params.data.card)
    check_folder(photos, params.data.folder)
    cut = {patch.id: (patch, crop) for patch, crop in zip(*cut_reals(photos, params), strict=True) if patch.split == "train"}
    real = manifest[(manifest["generator"] == REAL) & (manifest["split"] == "train")]
    lost = set(real["sample_id"].str.split("/", n=1).str[1]) - set(cut)
    if lost:
        raise UserError(f"{params.benchmark.folder} holds patches that the photographs do not give ({min(lost)} is one): they "
                        "were made by different profiles; get both with `dvc pull data.dvc benchmark`")
    return cut
