"""Every section runs and has the rows and columns that its readers use; no test looks at a time."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import pytest
import torch

from anl import bench as module
from anl.bench import SECTIONS, bench, operations, plan, read_bench, stable_diffusion_operations, untrained
from anl.config import load_config
from anl.data import manifest
from anl.evaluation.cost import count
from anl.io import UserError, write_json


@pytest.fixture(scope="module")
def config():
    return load_config(profile="smoke").override(benchmark={"size": 32}, prior={"channels": [8, 8]}, run={"batch_size": 4})


def measured(config, tmp_path, name, **options):
    bench(config, tmp_path / "bench.json", sections=[name], quick=True, **options)
    return next(iter(read_bench(tmp_path / "bench.json").values()))


@pytest.mark.parametrize(("name", "variants", "columns"), [
    ("inference", {"bare", "plain", "none", "transfer", "affinity"}, {"multiply_adds_over_bare", "time_over_plain_low", "time_over_bare_high"}),
    ("training", {"bare", "plain", "none", "transfer", "affinity"}, {"time_over_plain", "images_per_second"}),
    ("throughput", {"plain", "anl", "step"}, {"time_over_plain", "time_over_step", "images_per_second"}),
    ("targets", {"bare", "prior", "highpass", "wavelet"}, {"time_over_bare", "images_per_second"}),
    ("scoring", {"decode", "forward", "score", "slower"}, {"time_over_slower", "images_per_second"})])
def test_a_section(config, tmp_path, capsys, name, variants, columns):
    before = torch.are_deterministic_algorithms_enabled()
    table = measured(config, tmp_path, name)
    assert set(table["variant"]) == variants and columns <= set(table) and table.notna().all(axis=None)
    assert table.attrs["machine"]["cores"] >= 1 and table.attrs["quick"] and table.attrs["profile"] == "smoke"
    assert name in capsys.readouterr().out and torch.are_deterministic_algorithms_enabled() == before


def test_peers_are_counted_with_their_frozen_model(config, tmp_path):
    table = measured(config, tmp_path, "peers").set_index("variant")
    assert {"multiply_adds_over_anl", "time_over_anl"} <= set(table)
    assert table["prior_calls"].to_dict() == {"bare": 0, "plain": 0, "anl": 0, "npr": 0, "dnf": 1}
    assert table.loc["dnf", "frozen_parameters"] > 0 == table.loc["npr", "frozen_parameters"]
    assert table.loc["dnf", "multiply_adds"] > table.loc["plain", "multiply_adds"] == table.loc["npr", "multiply_adds"]


def test_two_processes_share_a_training(config, tmp_path):
    small = config.override(training={"batch_size": 4})
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        shares = [pool.submit(module._share, small, 2, rank, 2, 1, tmp_path) for rank in (0, 1)]
        assert all(share.result() > 0 for share in shares)


def test_jobs_train_the_same_runs(config, tmp_path, monkeypatch):
    asked = []

    def train(config, name, *, train_run, jobs, root, seeds):
        asked.append((jobs, seeds))
        train_run(config.variants(name)["anl"], seeds[0], root)

    monkeypatch.setattr(module, "train_experiment", train)
    assert set(measured(config, tmp_path, "jobs")["variant"]) == {"one", "two"} and asked == [(1, [0, 1]), (2, [0, 1])]


def test_a_manifest_is_read_and_filtered(tmp_path):
    with manifest.writer(tmp_path / "m.parquet", tmp_path) as append:
        append(module._manifest_rows(0, 2000))
    rows = {row["variant"]: row for row in module._use_manifest(tmp_path / "m.parquet", 2)}
    assert list(rows) == ["read all", "filter"] and rows["read all"]["rows"] == 2000
    assert 100 < rows["filter"]["rows"] < 1000


def test_another_backbone_has_its_own_name_and_other_sections_stay(config, tmp_path):
    write_json(tmp_path / "bench.json", {"scoring": {"rows": [{"variant": "score"}], "machine": {}}})
    found = bench(config, tmp_path / "bench.json", sections=["inference"], backbone="test_resnet", size=64, quick=True)
    assert list(found) == ["inference@test_resnet-64"] and found["inference@test_resnet-64"]["backbone"] == "test_resnet"
    assert set(read_bench(tmp_path / "bench.json")) == {"scoring", "inference@test_resnet-64"}


def test_operations_are_those_of_the_inference_section_and_exact(config):
    table = operations(config).set_index("variant")
    assert table.loc[["plain", "transfer"], "multiply_adds_over_plain"].eq(1).all() and table.loc["affinity", "multiply_adds_over_plain"] > 1
    assert table.loc["transfer", "parameters"] == table.loc["plain", "parameters"]


@pytest.mark.parametrize(("options", "message"), [
    ({"sections": ["speed"]}, "--only speed is no section; choose some of inference"),
    ({"sections": ["peers"], "backbone": "resnet18"}, "own backbone and size; leave out"),
    ({"repeats": 1}, "--repeats 1 is too few"), ({"backbone": "nonsense"}, "'nonsense' is not a timm model"),
    ({"size": 40}, "benchmark.size")])
def test_mistakes(config, tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        bench(config, tmp_path / "bench.json", quick=True, **options)
    assert not (tmp_path / "bench.json").exists() and next(iter(SECTIONS)) == "inference"


def test_no_file_is_no_measurement(tmp_path):
    assert read_bench(tmp_path / "missing.json") == {}


def test_a_plan_counts_a_shared_run_once_and_the_prior_where_it_is_asked():
    profile = load_config(profile="smoke").override(seeds=[0, 1], training={"steps": 10, "batch_size": 8}, experiments={
        "main": {"variants": {"plain": {"method.target": "none"}, "anl": {}}}, "step_t": {"vary": {"method.step": [1, 5]}},
        "attention": None, "targets": None})
    table = plan(profile, prior_operations=3600, rate=10).set_index("experiment")
    assert table["runs"].to_dict() == {"main": 4, "step_t": 2} and table["images"].to_dict() == {"main": 320, "step_t": 160}
    assert table["prior_hours"].to_dict() == {"main": 16, "step_t": 16}
    plain = profile.override(method={"target": "none"})
    operations = sum(count(untrained(item, noise).eval(), profile.benchmark.size)[1] for item, noise in ((plain, False), (profile, True)))
    assert table.loc["main", "detector_hours"] == pytest.approx(3 * 160 * operations / 10 / 3600)


def test_the_prior_of_the_paper_costs_more_than_its_detector():
    detector = untrained(load_config(profile="paper"))
    assert stable_diffusion_operations(256) > 10 * count(detector.eval(), 256)[1]
    assert 3.9 < stable_diffusion_operations(512) / stable_diffusion_operations(256) < 4.5  # attention grows faster than the area
