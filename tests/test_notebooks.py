"""Small notebooks, run for real."""

import base64
import datetime
import json
import os
import signal
import subprocess
import sys
import time

import nbformat
import pytest
import yaml

from anl import notebooks
from anl.errors import UserError
from tests.conftest import tiny_settings

FIGURE = """
import sys, os, pathlib, matplotlib.pyplot as plt
from tqdm.auto import tqdm
for _ in tqdm(range(3)):
    print("one", flush=True)
print("warned", file=sys.stderr)
folder = pathlib.Path("results", profile, "demo")
figure = plt.figure(figsize=(2, 1))
plt.plot(steps)
figure.savefig(folder / "line.png")
plt.show()
object()
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with params.yaml of profile 'tiny' and notebooks/, and the working directory in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(tiny_settings(tmp_path)))
    (tmp_path / "notebooks").mkdir()
    return tmp_path


def write(project, *sources, name="demo", parameters='profile = "smoke"\nsteps = [1]\nquick = False', kernel="python3"):
    cells = [nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]})]
    cells += [nbformat.v4.new_code_cell(source) for source in sources]
    node = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": {
        "name": kernel, "display_name": kernel, "language": "python"}})
    nbformat.write(node, project / "notebooks" / f"{name}.ipynb")


def test_values_keep_their_types_and_profile_is_injected(project):
    write(project, "print(profile, steps, type(quick).__name__, quick)")
    path = notebooks.run_notebook("demo", {"steps": [1, 10], "quick": True})
    assert str(path) == "results/tiny/demo/demo.ipynb"
    cells = nbformat.read(path, as_version=4).cells
    assert cells[-1].outputs[0].text == "tiny [1, 10] bool True\n"
    sidecar = json.loads((project / "provenance/tiny/demo.json").read_text())
    assert sidecar["command"] == "anl notebook demo --set 'steps=[1, 10]' --set quick=true"
    assert list(sidecar["files"]) == ["results/tiny/demo/demo.ipynb"] and sidecar["peak_memory_mb"] > 10


def test_two_runs_are_byte_identical_and_clean(project):
    write(project, FIGURE, kernel="of-somebody-else")
    path = notebooks.run_notebook("demo", {})
    first = path.read_bytes()
    notebooks.run_notebook("demo", {})
    assert path.read_bytes() == first and first.endswith(b"}\n")
    node = nbformat.reads(first.decode(), as_version=4)
    nbformat.validate(node)
    assert "papermill" not in node.metadata and "version" not in node.metadata.language_info
    assert [cell.id for cell in node.cells] == ["cell-0", "cell-1", "cell-2"]
    assert [cell.metadata.get("tags") for cell in node.cells] == [["parameters"], ["injected-parameters"], []]
    prints = [output for output in node.cells[-1].outputs if output.output_type == "stream"]
    assert [(output.name, output.text) for output in prints] == [("stdout", "one\n" * 3)]
    pictures = [output.data["image/png"] for output in node.cells[-1].outputs if "image/png" in output.get("data", {})]
    assert base64.b64decode(pictures[0]).startswith(b"\x89PNG")
    assert (project / "results/tiny/demo/line.png").is_file()
    assert str(project).encode() not in first
    assert sorted(item.name for item in path.parent.iterdir()) == ["demo.ipynb", "line.png"]


@pytest.mark.parametrize("settings, words", [
    ({"step": 3}, "has no parameter 'step'; known: profile, steps, quick"),
    ({"steps": datetime.date(2020, 1, 1)}, "'steps' must be made of numbers"),
    ({"profile": "../up"}, "'profile' must be a profile's name"),
])
def test_wrong_settings_are_refused(project, settings, words):
    write(project, "1")
    with pytest.raises(UserError, match=words):
        notebooks.run_notebook("demo", settings)
    assert not (project / "results").exists()


def test_unknown_broken_and_parameterless_notebooks_are_refused(project):
    write(project, "1")
    write(project, "1", name="bare", parameters="x = 1")
    (project / "notebooks/broken.ipynb").write_text("{")
    with pytest.raises(UserError, match="there is no notebook 'demos'; choose one of bare, broken, demo"):
        notebooks.run_notebook("demos", {})
    with pytest.raises(UserError, match="broken.ipynb is not a notebook"):
        notebooks.run_notebook("broken", {})
    with pytest.raises(UserError, match="declares no parameter 'profile'"):
        notebooks.run_notebook("bare", {})


@pytest.mark.parametrize("source, words", [
    ("raise ValueError('two\\nlines')", "in code cell 4: ValueError: two lines"),
    ("from anl.errors import UserError\nraise UserError('mend this')", "in code cell 4: mend this"),
    ("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", "in code cell 4: its kernel died"),
    ("import sys\nsys.exit()", "in code cell 4: it left early"),
])
def test_failing_cell_keeps_what_ran_and_writes_no_result(project, capsys, source, words):
    write(project, "print('before')", "\n".join(f"# line {n}" for n in range(30)) + "\n" + source
          if "ValueError" in source else source, "print('after')")
    with pytest.raises(UserError) as caught:
        notebooks.run_notebook("demo", {})
    text = str(caught.value)
    assert words in text and text.endswith("what ran is kept in .cache/anl/failed/demo.ipynb") and "\n" not in text
    assert "before" in (project / ".cache/anl/failed/demo.ipynb").read_text()
    assert not list((project / "results/tiny/demo").iterdir()) and not (project / "provenance").exists()
    shown = capsys.readouterr().err
    assert ("... 11 more lines" in shown and "line 20" not in shown) if "ValueError" in source else source[:9] in shown


def test_a_late_failure_leaves_the_earlier_results_whole(project):
    write(project, "open(f'results/{profile}/demo/table.csv', 'w').write('one')",
          "open(f'results/{profile}/demo/values.json', 'w').write('one')")
    notebooks.run_notebook("demo", {})
    before = {path.name: path.read_bytes() for path in (project / "results/tiny/demo").iterdir()}
    write(project, "open(f'results/{profile}/demo/table.csv', 'w').write('two')", "1 / 0")
    with pytest.raises(UserError, match="ZeroDivisionError"):
        notebooks.run_notebook("demo", {})
    assert {path.name: path.read_bytes() for path in (project / "results/tiny/demo").iterdir()} == before
    assert [path.name for path in (project / "results/tiny").iterdir()] == ["demo"]


def test_results_that_a_killed_run_put_aside_come_back(tmp_path):
    (tmp_path / ".demo.old").mkdir()
    (tmp_path / ".demo.old/values.json").write_text("old")
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo/table.csv").write_text("half")
    with pytest.raises(KeyboardInterrupt), notebooks.whole_results(tmp_path / "demo") as folder:
        assert not list(folder.iterdir())
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.rglob("*")] == ["demo", "values.json"]


def test_the_users_start_up_files_are_not_run(project, monkeypatch):
    startup = project / "home/profile_default/startup"
    startup.mkdir(parents=True)
    (startup / "mine.py").write_text("print('from the start-up file')\nmine = 1")
    monkeypatch.setenv("IPYTHONDIR", str(project / "home"))
    write(project, "print('mine' in globals())")
    path = notebooks.run_notebook("demo", {})
    assert nbformat.read(path, as_version=4).cells[-1].outputs[0].text == "False\n"
    assert os.environ["IPYTHONDIR"] == str(project / "home")


def test_slow_cell_is_stopped(project):
    write(project, "import time\ntime.sleep(60)")
    with pytest.raises(UserError, match="a cell took longer than 2 s"):
        notebooks.run_notebook("demo", {}, timeout=2)


def test_kernel_of_another_environment_is_refused(tmp_path):
    path = tmp_path / "share/jupyter/kernels/python3/kernel.json"
    with pytest.raises(UserError, match="has no Jupyter kernel 'python3'"):
        notebooks.check_kernel(tmp_path)
    path.parent.mkdir(parents=True)
    for program, fine in [("python", True), (str(tmp_path / "bin/python"), True), ("/elsewhere/bin/python", False)]:
        path.write_text(json.dumps({"argv": [program, "-m", "ipykernel_launcher"]}))
        if fine:
            notebooks.check_kernel(tmp_path)
        else:
            with pytest.raises(UserError, match="another environment's Python"):
                notebooks.check_kernel(tmp_path)
    path.write_text("{}")
    with pytest.raises(UserError, match="not a kernel's description"):
        notebooks.check_kernel(tmp_path)


def test_kernel_that_shadows_ours_is_not_started(project, monkeypatch):
    shadow = project / "shadow/kernels/python3"
    shadow.mkdir(parents=True)
    (shadow / "kernel.json").write_text(json.dumps({"argv": ["/bin/false"], "display_name": "x", "language": "python"}))
    monkeypatch.setenv("JUPYTER_PATH", str(project / "shadow"))
    write(project, "import sys\nprint(sys.prefix)")
    path = notebooks.run_notebook("demo", {})
    assert nbformat.read(path, as_version=4).cells[-1].outputs[0].text == sys.prefix + "\n"
    assert os.environ["JUPYTER_PATH"] == str(project / "shadow")


def test_interrupt_passes_and_leaves_nothing(project):
    write(project, "open('started', 'w').close()\nimport time\ntime.sleep(60)")
    child = subprocess.Popen([sys.executable, "-m", "anl.cli", "notebook", "demo"], stderr=subprocess.PIPE, text=True,
                             # a shell's background job ignores SIGINT, and its children would inherit that
                             preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))  # noqa: PLW1509
    deadline = time.monotonic() + 90
    while not (project / "started").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    child.send_signal(signal.SIGINT)
    _, said = child.communicate(timeout=60)
    assert child.returncode == 130 and "interrupted" in said and "Traceback" not in said
    assert not list((project / "results/tiny/demo").iterdir()) and not (project / "provenance").exists()
