"""A tiny tree like CIFAKE's, indexed, and a profile for it whose models are tiny."""

import copy
import dataclasses
import io
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from anl import params, prior_training
from anl.data import indexing
from anl.generators import diffusion
from anl.published import benchmark, generators
from tests.conftest import ROOT, photograph

TRAIN, TEST, QUALITY = 14, 6, 75


def jpeg(seed, soft=False):
    """Bytes of a 32 px JPEG; a soft one, as generated images are, comes from a quarter of the size."""
    image = Image.fromarray(photograph(seed, 32, 32))
    image = image.resize((16, 16)).resize((32, 32)) if soft else image
    stream = io.BytesIO()
    image.save(stream, format="JPEG", quality=QUALITY)
    return stream.getvalue()


def tree(root):
    """{train,test}/{REAL,FAKE}; one generated training image has the bytes of a test image, two others are equal."""
    for split, count, start in (("train", TRAIN, 0), ("test", TEST, 100)):
        for folder, soft in (("REAL", False), ("FAKE", True)):
            (root / split / folder).mkdir(parents=True)
            for i in range(count):
                (root / split / folder / f"{i:04d}.jpg").write_bytes(jpeg(start + i + (50 if soft else 0), soft))
    (root / "train/FAKE/0003.jpg").write_bytes((root / "test/FAKE/0001.jpg").read_bytes())
    (root / "train/FAKE/0005.jpg").write_bytes((root / "train/FAKE/0004.jpg").read_bytes())
    return root


def settings(root):
    value = copy.deepcopy(params.resolve("cifake", ROOT / "profiles"))
    tiny = {"crop": 32, "batch_size": 2, "steps": 2, "learning_rate": 0.001, "ema": 0.5}
    value["published"] |= {"manifest": str(root / "cifake.parquet"), "models": str(root / "models"), "val": 3, "samples": 4}
    value["models"] = {"gan": {**tiny, "channels": [4, 4, 4], "latent_channels": 4},
                       "vae": {**tiny, "channels": [4, 4, 4], "latent_channels": 4},
                       "ddpm": {**tiny, "channels": [8, 8], "layers_per_block": 1}}
    value["families"]["ddpm"]["inference_steps"] = 2
    value["prior"] |= {**tiny, "channels": [8, 8]}
    value["benchmark"]["folder"] = str(root / "benchmark")
    value["use"] = {"train": 8, "val": 3, "test": 6}
    value["detector"] |= {"stem_width": 8, "attention_dim": 8}
    value["training"] |= {"steps": 2, "batch_size": 4}
    value["runs"] |= {"seeds": [0, 1], "steps": [100], "targets": ["highpass"], "baselines": ["npr", "dnf"]}
    value["evaluation"]["bootstrap"] = 40
    return value


@pytest.fixture(scope="session")
def public(tmp_path_factory):
    """root, settings and params of a tiny published set with its benchmark; tests that write use folders of their own."""
    root = tmp_path_factory.mktemp("public")
    indexing.index(tree(root / "set"), root / "cifake.parquet", workers=1, say=str)
    value = settings(root)
    found = params.from_dict(value, "tiny")
    sources = [np.asarray(Image.fromarray(photograph(i, 32, 32))) for i in range(4)]
    for name in generators.MODELS:
        config = {key: item for key, item in dataclasses.asdict(found.models[name]).items() if item is not None}
        generators.fit_model(name, sources, config, root / "models" / name, seed=0, cache=root / "cache")
    prior_training.build([8, 8], 1).save_pretrained(root / "models/prior/unet")
    diffusion.noise_scheduler().save_pretrained(root / "models/prior/scheduler")
    benchmark.build(found)
    return SimpleNamespace(root=root, settings=value, params=found)
