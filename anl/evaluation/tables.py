"""Tables of per-image scores on disk. Every result is computed from such tables, never from a model.

Importing this module does not import torch, so that a page whose scores exist does not load it.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from anl.evaluation.compare import COLUMNS
from anl.io import UserError, atomic_file, identity, reason

KEY = b"anl.scores"
BITS = 12  # significant bits of a stored logit; rounding halves the size of a file


def write_scores(path, table, key):
    """Write a scores table as Parquet. `key` is the hash of its inputs (weights, images, views), stored as metadata.

    Logits are rounded to BITS significant bits, a relative error of at most 1 in 4,096.
    """
    fraction, exponent = np.frexp(table["logit"].to_numpy(np.float64))
    logit = np.ldexp(np.rint(fraction * 2**BITS) / 2**BITS, exponent)
    table = table[COLUMNS].assign(logit=logit.astype(np.float32))
    table = pa.Table.from_pandas(table, preserve_index=False)
    repeated = ["variant", "image_id", "group", "pair", "generator", "split", "view"]
    for name in repeated:
        place = table.schema.get_field_index(name)
        table = table.set_column(place, name, table[name].dictionary_encode())
    metadata = {name: value for name, value in (table.schema.metadata or {}).items() if name != b"pandas"}
    with atomic_file(path) as temporary:
        parquet.write_table(table.replace_schema_metadata(metadata | {KEY: key.encode()}), temporary, compression="zstd",
                            compression_level=12, use_dictionary=repeated, column_encoding={"logit": "BYTE_STREAM_SPLIT"})


def scores_key(path):
    """The `key` that `write_scores` stored, or None if the file is missing or damaged."""
    try:
        return parquet.read_schema(path).metadata[KEY].decode()
    except Exception:
        return None


def read_scores(path):
    """Read a scores table. Raises UserError if the file is missing, damaged or lacks a column."""
    if not Path(path).is_file():
        raise UserError(f"{path} is missing; score the run with `dvc repro`")
    try:
        table = parquet.read_table(path, columns=COLUMNS)
    except Exception as problem:
        raise UserError(f"{path} is no scores table ({reason(problem)}); delete it and score the run again") from None
    if len(table.schema) < len(COLUMNS):
        raise UserError(f"{path} lacks columns of a scores table; delete it and score the run again")
    frame = table.to_pandas().astype({"logit": np.float64})
    return frame.astype(dict.fromkeys(frame.select_dtypes("category"), str))


def disjoint_models(config):
    """The trained model behind each generator, for `anl.evaluation.compare.compare(disjoint=...)`.

    Families that share a model or a decoder are not disjoint: samplers of one diffusion model count once.
    """
    return {name: name if family.model == "published" else family.decoder or family.model
            for name, family in config.families.items()}


def scores_path(config, name, test_set=None):
    """Path of the scores of an experiment."""
    return Path(config.run.results) / config.profile / "scores" / f"{scores_name(name, test_set)}.parquet"


def scores_name(name, test_set):
    return name if test_set is None else f"{name}@{test_set}"


def scores_identity(config, name):
    """Hash of all variants and seeds of an experiment, and of the views and controls that are scored."""
    variants = config.variants(name)
    return identity({"runs": [[variant, section.identity(), section.seeds] for variant, section in variants.items()],
                     "evaluation": {key: getattr(config.evaluation, key) for key in ("views", "controls", "mirrored")}})


def read_experiment(config, name, test_set=None):
    """Read the scores of an experiment, and check that they belong to this configuration.

    Raises
    ------
    UserError
        If the scores are missing or belong to another configuration.
    """
    path = scores_path(config, name, test_set)
    found = scores_key(path)
    if found is None:
        raise UserError(f"{path} is missing; make it with `dvc repro score@{name}`")
    if found != scores_identity(config, name):
        raise UserError(f"{path} is of another configuration of '{name}'; make it again with `dvc repro score@{name}`")
    return read_scores(path)
