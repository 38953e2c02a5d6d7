import sys
from types import SimpleNamespace

import pandas as pd
import pytest
from PIL import Image

from anl import bench_detect, cli
from anl.detect import scorer
from anl.errors import UserError
from tests.conftest import photograph
from tests.detect.conftest import folder, in_use, run  # noqa: F401  fixtures


@pytest.fixture
def photos(tmp_path):
    place = tmp_path / "photos"
    place.mkdir()
    Image.fromarray(photograph(0, 90, 120)).save(place / "a.png")
    return place


def test_every_table_is_written_and_the_parts_bound_the_whole(in_use, photos, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(bench_detect, "SIZES", {"small": (96, 64, 3)})
    monkeypatch.setattr(bench_detect, "_detect", lambda detector, path: SimpleNamespace(
        ru_maxrss=1024 * (len(list(path.iterdir())) if path.is_dir() else 1), ru_utime=1.5, ru_stime=0.5))
    made = bench_detect.run(in_use, photos, repeats=2, counts=(2, 3), folder=tmp_path / "bench")
    assert made.name == "detect-32" and {path.stem for path in made.iterdir()} == {
        "throughput", "runtimes", "memory", "start", "machine"}
    speed = pd.read_csv(made / "throughput.csv").set_index("what")
    assert (speed["pictures_per_second"] > 0).all() and 0 < speed.loc["whole", "whole_over_slower"] < 3
    assert speed["whole_over_slower"].isna().sum() == 2
    runtimes = pd.read_csv(made / "runtimes.csv")
    assert set(runtimes["runtime"]) == {"PyTorch", "ONNX runtime"} and set(runtimes["batch"]) == {1, 64}
    memory = pd.read_csv(made / "memory.csv")
    assert list(memory["pictures"]) == [2, 3] and list(memory["peak_memory_mb"]) == [2, 3] and list(memory["memory_over_first"]) == [1, 1.5]
    assert pd.read_csv(made / "start.csv").loc[0, "processor_seconds"] == 2


def test_a_process_tells_what_it_used_and_a_failure_is_said(in_use, tmp_path, monkeypatch):  # noqa: F811
    program = tmp_path / "python"
    monkeypatch.setattr(sys, "executable", str(program))
    program.write_text("#!/bin/sh\ntest \"$3\" = detect && test -n \"$OMP_NUM_THREADS\"\n")
    program.chmod(0o755)
    assert bench_detect._detect(in_use, tmp_path).ru_maxrss > 0
    program.write_text("#!/bin/sh\nexit 2\n")
    with pytest.raises(UserError, match="ended with status 2; run it to see why"):
        bench_detect._detect(in_use, tmp_path)


def test_no_pictures_and_too_few_rounds_are_refused(in_use, tmp_path):  # noqa: F811
    with pytest.raises(UserError, match="holds no pictures to measure with"):
        bench_detect.run(in_use, tmp_path)
    with pytest.raises(UserError, match="--repeats 1"):
        bench_detect.run(in_use, tmp_path, repeats=1)


def test_the_command_measures_the_detector_of_the_repository(monkeypatch):
    asked = []
    monkeypatch.setattr(bench_detect, "run", lambda *arguments, **only: asked.append(arguments))
    monkeypatch.setattr(scorer, "load_detector", lambda: "detector")
    assert cli.main(["bench", "--detect", "--repeats", "4"]) == 0 and asked[0][0] == "detector" and asked[0][2] == 4
