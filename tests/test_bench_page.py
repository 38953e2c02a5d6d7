import re

from anl import bench_page
from anl.files import write_csv, write_json


def test_every_measurement_has_a_section_with_its_tables(tmp_path):
    folder = tmp_path / "bench/resnet50-stem8-224"
    write_json(folder / "machine.json", {"cores": 2, "device": "x86_64", "torch": "2", "python": "3.11", "repeats": 5})
    write_csv(folder / "training.csv", [{"model": "gate", "batch": 8, "time_over_plain": 1.234, "time_over_plain_low": 1.2,
                                         "time_over_plain_high": 1.3}])
    bench_page.gather(tmp_path / "bench", tmp_path / "out")
    text = (tmp_path / "out/bench.md.txt").read_text()
    assert "## `resnet50-stem8` at 224 pixels" in text and "generated/bench/resnet50-stem8-224/training.html" in text
    assert "inference.html" not in text
    assert text.index("## What was asked") < text.index("## `resnet50") and "generated/bench/asked.html" in text
    table = (tmp_path / "out/resnet50-stem8-224/training.html").read_text()
    assert "1.234 [1.200, 1.300]" in table and "Time over plain [quartiles]" in table and "95 %" not in table


def test_what_was_asked_stands_first_met_or_not(tmp_path):
    folder = tmp_path / "bench/detect-64"
    write_json(folder / "machine.json", {"cores": 2, "device": "x86_64", "torch": "2", "python": "3.11", "repeats": 5})
    write_csv(folder / "start.csv", [{"what": "first score", "seconds": 6.25}])
    write_csv(folder / "runtimes.csv", [{"runtime": "ONNX runtime", "batch": 1, "speed_over_pytorch": 2.0,
                                         "speed_over_pytorch_low": 1.9, "speed_over_pytorch_high": 2.1}])
    write_csv(folder / "throughput.csv", [{"what": "whole", "whole_over_slower": 0.95}])
    write_csv(folder / "memory.csv", [{"pictures": 10, "memory_over_first": 1}, {"pictures": 20, "memory_over_first": 1}])
    bench_page.gather(tmp_path / "bench", tmp_path / "out")
    table = re.sub("<td[^>]*>", "<td>", (tmp_path / "out/asked.html").read_text())
    assert "6.25 s</td><td>at most 5 s</td><td><b>no</b>" in table and "<code>anl detect</code>" in table
    assert "2.000 [1.900, 2.100]</td><td>at least 1</td><td>yes" in table
    text = (tmp_path / "out/bench.md.txt").read_text()
    assert "1 met, 1 missed" in text and (tmp_path / "out/asked.csv").is_file()


def test_what_was_measured_of_detecting_is_said_in_a_sentence(tmp_path):
    folder = tmp_path / "bench/detect-64"
    write_json(folder / "machine.json", {"cores": 3, "device": "x86_64", "torch": "2", "python": "3.11", "repeats": 5})
    write_csv(folder / "start.csv", [{"what": "first score", "seconds": 4.26, "runs": 5}])
    write_csv(folder / "throughput.csv", [{"what": "reading", "whole_over_slower": None}, {"what": "whole", "whole_over_slower": 0.926}])
    write_csv(folder / "memory.csv", [{"pictures": 10, "memory_over_first": 1}, {"pictures": 5000, "memory_over_first": 1.014}])
    write_csv(folder / "runtimes.csv", [{"runtime": "PyTorch", "speed_over_pytorch": 1}, {"runtime": "ONNX runtime", "speed_over_pytorch": 1.24},
                                        {"runtime": "ONNX runtime", "speed_over_pytorch": 2.36}])
    bench_page.gather(tmp_path / "bench", tmp_path / "out")
    text = (tmp_path / "out/detect.md.txt").read_text()
    for words in ("3 idle cores", "4.3 s", "93% or more", "5,000 pictures take 1.01 times", "memory of 10", "1.2 to 2.4 times"):
        assert words in text, words


def test_where_nothing_was_measured_the_page_says_nothing(tmp_path):
    bench_page.gather(tmp_path / "bench", tmp_path / "out")
    assert (tmp_path / "out/bench.md.txt").read_text() == "\n" == (tmp_path / "out/detect.md.txt").read_text()
