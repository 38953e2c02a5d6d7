"""Runs from their configuration: every target and baseline trains, and a trained run is found again."""

import numpy as np
import pytest
import torch

from anl.evaluation.cost import count
from anl.io import UserError
from anl.models.baselines import BASELINES
from anl.models.detector import Detector
from anl.models.generators.diffusion import build_unet
from anl.training import runs
from tests import tiny_priors
from tests.project import make_benchmark, make_project, tiny_config


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("project")
    make_project(folder)
    return folder


def logits(network, config):
    benchmark = runs.open_benchmark(config)
    x = torch.from_numpy(benchmark.pixels(benchmark.split("test"))).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        return network(x).logit


@pytest.mark.parametrize("method", [
    {"target": "none"}, {"target": "prior", "attention": "affinity"}, {"target": "other_prior", "attention": "none"},
    {"target": "highpass", "attention": "energy"}, {"target": "ensemble", "attention": "transfer"}, {"target": "shuffled"},
    {"target": "prior", "attention": "none", "front_end": "residual"}], ids=str)
def test_a_variant_trains_and_is_loaded_again(root, tmp_path, method):
    config = tiny_config(root, method=method)
    runs.train_run(config, 0, tmp_path)
    network = runs.load_run(tmp_path, config)
    assert torch.isfinite(logits(network, config)).all() and not network.training
    curve = runs.read_curve(tmp_path)
    assert curve["step"].iloc[-1] == 4 and 0 <= curve["val_auroc"].iloc[-1] <= 1
    assert not list((root / "cache" / "training").glob("*.pt"))  # the checkpoint of a finished training is removed


def test_noise_free_scores_need_no_noise_head(root, tmp_path):
    config = tiny_config(root, method={"target": "prior", "attention": "none"})
    runs.train_run(config, 0, tmp_path)
    whole, inference = runs.load_trained(tmp_path, config), runs.load_run(tmp_path, config)
    assert torch.equal(logits(whole, config), logits(inference, config))
    assert sum(p.numel() for p in inference.parameters()) < sum(p.numel() for p in whole.parameters())


@pytest.mark.parametrize("name", [name for name in BASELINES if name not in ("plain", "aeroblade", "univfd", "diffusionfake")])
def test_a_baseline_trains_and_is_loaded_again(root, tmp_path, name):
    config = tiny_config(root, baselines={"inversion_steps": 2, "reconstruction_steps": 2, "error_draws": 1},
                         method={"baseline": name})
    runs.train_run(config, 0, tmp_path)
    assert torch.isfinite(logits(runs.load_run(tmp_path, config), config)).all()


def test_a_latent_diffusion_model_guides_the_training_only(root, tmp_path, monkeypatch):
    config = tiny_config(root, method={"baseline": "diffusionfake"})
    models = {"latent": build_unet([8, 8], 1, 4), "vae": tiny_priors.vae()}
    monkeypatch.setattr(runs, "load_generator", lambda config, name, device: models[name])
    runs.train_run(config, 0, tmp_path)
    monkeypatch.undo()  # scoring needs no model
    network = runs.load_run(tmp_path, config)
    assert torch.isfinite(logits(network, config)).all()
    assert count(network, 32) == count(Detector(**config.detector.model_dump(), size=32, noise=False), 32)
    folder = tiny_priors.latent_folder(tmp_path / "prior")  # a prior in latent space serves, too
    latent = tiny_config(root, method={"baseline": "diffusionfake"}, prior={"source": str(folder)})
    assert runs._frozen(latent, "latent", "cpu").vae is not None
    with pytest.raises(UserError, match="has no latent diffusion model"):
        runs._frozen(tiny_config(root, families={"latent": None}), "latent", "cpu")


def test_the_same_seed_gives_the_same_weights(root, tmp_path):
    config, weights = tiny_config(root), []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        runs.train_run(config, 3, tmp_path / name)
        weights.append((tmp_path / name / runs.WEIGHTS).read_bytes())
    assert weights[0] == weights[1]


def test_pairs_join_a_photograph_and_its_regenerations(tmp_path):
    make_benchmark(tmp_path / "benchmark", trained=("ddim", "vae"))
    config = tiny_config(tmp_path, benchmark={"seen": ["ddim", "vae"]})
    rows = runs._training_rows(config, runs.open_benchmark(config))
    real, fake = runs._pairs(rows, config.seed)
    assert fake.shape == (8, 2)
    for row, others in zip(real, fake, strict=True):
        assert rows["label"][row] == 0 and (rows["label"][others] == 1).all()
        assert set(rows["pair"][others]) == {rows["pair"][row]} and len(set(rows["generator"][others])) == 2


def test_a_seen_generator_without_pairs_is_not_left_out_silently(tmp_path):
    make_benchmark(tmp_path / "benchmark", trained=("ddim", "vae"))
    rows = runs._training_rows(tiny_config(tmp_path, benchmark={"seen": ["ddim", "vae"]}),
                               runs.open_benchmark(tiny_config(tmp_path, benchmark={"seen": ["ddim", "vae"]})))
    rows.loc[rows["generator"] == "vae", "pair"] = ""
    with pytest.raises(UserError, match=r"images of 'vae' \(benchmark.seen\) belong to no real image"):
        runs._pairs(rows, 0)


def test_targets_of_other_pixels_are_not_shared(root):
    def made(**changes):
        runs.make_targets(tiny_config(root, benchmark=changes))
        return len(list((root / "targets").rglob("*.safetensors")))

    before = made()
    assert made() == before and made(size=16) == before + 1


def test_images_without_pairs_are_paired_once_each(tmp_path):
    make_benchmark(tmp_path / "benchmark", paired=False)
    config = tiny_config(tmp_path)
    rows = runs._training_rows(config, runs.open_benchmark(config))
    real, fake = runs._pairs(rows, config.seed)
    assert sorted(real) == sorted(np.flatnonzero(rows["label"] == 0))
    assert sorted(fake[:, 0]) == sorted(np.flatnonzero(rows["label"] == 1))


def test_a_limit_leaves_a_few_images_of_each_split(root):
    rows = runs.open_benchmark(tiny_config(root, benchmark={"limit": 3})).rows
    assert rows[rows["label"] == 0].groupby("split").size().to_dict() == {"train": 3, "val": 3, "test": 3}


def test_images_that_do_not_fit_into_memory_are_decoded_when_used(root, monkeypatch):
    config = tiny_config(root)
    benchmark = runs.open_benchmark(config)
    rows = benchmark.split("train")
    whole = benchmark.array(rows)
    monkeypatch.setattr(runs, "IN_MEMORY", 10)
    lazy = benchmark.array(rows)
    assert not isinstance(lazy, np.ndarray) and np.array_equal(lazy[np.array([5, 0, 3])], whole[[5, 0, 3]])
    assert np.array_equal(lazy[2:6], whole[2:6])


@pytest.mark.parametrize(("sections", "words"), [
    ({"benchmark": {"seen": ["vae"]}}, "no training images of generator 'vae'"),
    ({"benchmark": {"folder": "nowhere"}}, "nowhere/manifest.parquet is missing"),
    ({"run": {"models": "nowhere"}}, "nowhere/priors/prior is missing"),
    ({"method": {"baseline": "aeroblade"}}, "generators/vae is missing")])
def test_what_is_missing_is_named(root, tmp_path, sections, words):
    with pytest.raises(UserError, match=words):
        runs.train_run(tiny_config(root, **sections), 0, tmp_path)
