import shutil

import pytest

from anl import bench_pipeline
from anl.errors import UserError
from tests.conftest import ROOT

PIPELINE = """
stages:
  train:
    matrix:
      seed: ${runs.seeds}
    cmd: exit 1
    deps: [anl/code.py]
    params: [training]
    outs:
      - runs/${item.seed}:
          cache: false
  table:
    cmd: exit 1
    deps: [runs]
    outs:
      - results/table.csv:
          cache: false
"""


@pytest.fixture
def root(tmp_path):
    (tmp_path / "anl").mkdir()
    (tmp_path / "anl/code.py").write_text("")
    (tmp_path / "dvc.yaml").write_text(PIPELINE)
    shutil.copytree(ROOT / "profiles", tmp_path / "profiles")
    return tmp_path


def test_a_repro_with_nothing_to_do_is_timed_in_a_copy(root):
    row = bench_pipeline.repro_table(runs=20, repeats=1, root=root).iloc[0]
    assert row["trainings"] >= 20 and row["stages"] == row["trainings"] // 9 + 1 and row["seconds"] > 0
    assert {path.name for path in root.iterdir()} == {"anl", "dvc.yaml", "profiles"}


def test_a_repro_that_fails_is_told_of(root):
    (root / "dvc.yaml").write_text("stages: {broken: {cmd: exit 1, deps: [nowhere]}}")
    with pytest.raises(UserError, match="failed in a copy of the repository"):
        bench_pipeline.repro_table(runs=1, repeats=1, root=root)


def test_a_manifest_is_measured_in_a_process_of_its_own(monkeypatch):
    monkeypatch.chdir(ROOT)
    row = bench_pipeline.manifest_table(2000).iloc[0]
    assert row["rows"] == 2000 and row["seconds"] > 0 and 0.05 < row["peak_memory_gb"] < 8


def test_outside_the_repository_it_says_where_to_go(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    with pytest.raises(UserError, match="from the repository's root"):
        bench_pipeline.manifest_table(10)
