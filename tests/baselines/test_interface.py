import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from anl import baselines, detector, predict, runs, train
from anl.baselines import costs, interface
from anl.baselines.stored import Stored
from anl.errors import UserError
from anl.files import read_json

torch.set_num_threads(1)
SETTINGS = {"error_draws": 1, "inversion_steps": 2, "reconstruction_steps": 2, "encoder": "untrained:test_vit"}


@pytest.fixture
def in_world(world, monkeypatch, tmp_path):
    """The world's folder as working directory, with baselines that make few calls."""
    monkeypatch.chdir(world.root)
    settings = dataclasses.replace(world.params, baselines=dataclasses.replace(world.params.baselines, **SETTINGS))
    return world, settings, tmp_path


def spec_of(params, name, seed=0):
    return runs.make_spec(params, "prior", 10, "affinity", 1.0, seed, baseline=name)


@pytest.mark.parametrize("name", baselines.BASELINES)
def test_every_baseline_trains_scores_and_comes_back_from_its_file(in_world, name):
    _, params, folder = in_world
    spec = spec_of(params, name)
    made = runs.train_run(spec, params, "peers", root=folder / "runs")
    assert made.name == f"{name}-s0" and read_json(made / "run.json")["spec"]["baseline"] == name
    table = predict.read_predictions(made)
    assert set(table["view"]) == {"raw", "matched", "jpeg96", *params.evaluation.controls}
    assert np.isfinite(table["logit"]).all() and table["logit"].nunique() > 4
    again = predict.score_benchmark(detector.load(made / "model.safetensors"), params)
    assert np.array_equal(again["logit"], table["logit"])
    assert runs.find_run(spec, params, folder / "runs") == made
    known = baselines.get(name)
    assert known.title and known.source and known.differs.endswith(".")


def test_scores_depend_on_the_image_alone(in_world):
    """Frozen models run in batches: an image scored alone and among others has one score, to the stored precision."""
    _, params, _ = in_world
    x = torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    for name in ("lare", "dire"):
        settings = dataclasses.asdict(params.baselines)
        torch.manual_seed(0)
        peer = baselines.build(name, dataclasses.asdict(params.detector), 32, settings).eval()
        with torch.no_grad():
            together, alone = peer(x).logit, torch.cat([peer(image[None]).logit for image in x])
        assert torch.allclose(together, alone, atol=2e-2), name


def test_a_baseline_is_one_run_whatever_the_method_is(in_world):
    _, params, _ = in_world
    first = runs.make_spec(params, "prior", 10, "affinity", 1.0, 0, baseline="npr")
    assert first == runs.make_spec(params, "highpass", 5, "gate", 0.3, 0, baseline="npr") and first.slug == "npr-s0"
    plain = runs.make_spec(params, "none", 1, "none", 0, 0)
    assert first.identity(params) != plain.identity(params)
    with pytest.raises(UserError, match="no baseline 'nothing'; choose one of blur_jpeg, npr"):
        runs.make_spec(params, "none", 1, "none", 0, 0, baseline="nothing")


def test_settings_of_baselines_leave_other_runs_alone(in_world):
    world, params, _ = in_world
    plain = runs.make_spec(params, "none", 1, "none", 0, 0)
    assert plain.identity(params) == plain.identity(world.params)
    assert spec_of(params, "dire").identity(params) != spec_of(params, "dire").identity(world.params)


def test_pairs_are_processed_alike_and_untouched_without_need(in_world):
    _, params, _ = in_world
    spec = spec_of(params, "dnf")
    data = train._load_data(spec, params)
    made = interface.processed(data, params, spec)
    assert made.shape == data["pixels"].shape and np.array_equal(made, interface.processed(data, params, spec))
    changed = (made != data["pixels"]).any((1, 2, 3))
    assert changed[data["real"]].mean() > 0.9


def test_drct_draws_one_of_three_negatives(in_world):
    _, params, _ = in_world
    spec = spec_of(params, "drct")
    data = train._load_data(spec, params)
    images, pairs = len(data["pixels"]), len(data["real"])
    baselines.prepare(baselines.build("drct", dataclasses.asdict(params.detector), 32,
                                      dataclasses.asdict(params.baselines)), spec, params, data)
    assert data["fake"].shape == (pairs, 3) and len(data["pixels"]) == len(data["label"]) == images + 2 * pairs
    assert set(data["label"][data["fake"]].ravel()) == {1.0}
    drawn = np.stack([train._fake_rows(data, 0, step) for step in range(20)])
    assert all(len(set(column)) > 1 for column in drawn.T)
    real = data["pixels"][data["real"]].astype(int)
    distance = np.abs(data["pixels"][data["fake"][:, 1]].astype(int) - real).mean((1, 2, 3))
    assert (distance > 0).all()


def test_what_was_stored_is_used_and_a_damaged_file_is_made_again(tmp_path):
    calls = []

    def double(x):
        calls.append(len(x))
        return 2 * x

    stored = Stored(double, "double", "a", cache=tmp_path)
    x = torch.rand(3, 3, 4, 4)
    first = stored(x)
    assert torch.equal(stored(x), first) and torch.allclose(first, 2 * x, atol=2e-3) and calls == [3]
    path, = tmp_path.rglob("*.safetensors")
    path.write_bytes(path.read_bytes()[:40])
    assert torch.equal(stored(x), first) and calls == [3, 3]
    assert torch.equal(Stored(double, "double", "b", cache=tmp_path)(x), first) and calls == [3, 3, 3]


def test_cost_counts_the_prior_at_inference(in_world):
    world, params, _ = in_world
    made = {name: baselines.build(name, dataclasses.asdict(params.detector), 32, dataclasses.asdict(params.baselines))
            for name in ("npr", "dnf", "dire")}
    found = {name: costs.inference_cost(peer, 32, baselines.get(name).needs, world.models) for name, peer in made.items()}
    prior = 0
    from safetensors.torch import load_file
    for path in (world.root / "models/prior").rglob("*.safetensors"):
        prior += sum(value.numel() for value in load_file(path).values())
    assert found["npr"]["frozen_parameters"] == 0 and found["dnf"]["frozen_parameters"] == prior > 0
    one_call = found["dnf"]["multiply_adds"] - found["npr"]["multiply_adds"]
    assert one_call > 0
    calls = (found["dire"]["multiply_adds"] - found["npr"]["multiply_adds"]) / one_call
    assert calls == pytest.approx(2 * params.baselines.inversion_steps)


def test_a_missing_prior_is_named(in_world, tmp_path):
    _, params, _ = in_world
    with pytest.raises(UserError, match="prior"):
        baselines.build("dnf", dataclasses.asdict(params.detector), 32, dataclasses.asdict(params.baselines), tmp_path)


def test_another_prior_than_it_was_trained_with_is_refused(in_world):
    _, params, folder = in_world
    made = runs.train_run(spec_of(params, "dnf"), params, "peers", root=folder / "runs")
    config = next(path for path in (Path.cwd() / "models/prior/unet").glob("*.json"))
    before = config.read_bytes()
    try:
        config.write_bytes(before + b"\n")
        with pytest.raises(UserError, match="prior is not the model that this 'dnf' detector was trained with"):
            detector.load(made / "model.safetensors")
    finally:
        config.write_bytes(before)
