"""Small notebooks, executed for real."""

import base64
import datetime
import io
import json
import os
import sys

import nbformat
import pytest
from PIL import Image

from anl.io import UserError
from anl.report import notebooks

FIGURE = """
import sys, matplotlib.pyplot as plt
from tqdm.auto import tqdm
for _ in tqdm(range(3)):
    print("one", flush=True)
print("warned", file=sys.stderr)
plt.figure(figsize=(2, 1))
plt.plot(steps)
plt.show()
object()
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(project, *sources, parameters="steps = [1]\nquick = False", kernel="python3"):
    cells = [nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]})]
    cells += [nbformat.v4.new_code_cell(source) for source in sources]
    node = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": {
        "name": kernel, "display_name": kernel, "language": "python"}})
    nbformat.write(node, project / "demo.ipynb")


def run(parameters=None, timeout=60):
    return notebooks.run_notebook("demo.ipynb", "out/demo.ipynb", parameters or {}, timeout=timeout, failed="failed/demo.ipynb")


def test_two_runs_are_byte_identical_and_clean(project):
    write(project, "print(steps, type(quick).__name__, quick)", FIGURE, kernel="of-somebody-else")
    parameters = {"steps": [1, 10], "quick": True}
    first = run(parameters).read_bytes()
    assert run(parameters).read_bytes() == first
    node = nbformat.reads(first.decode(), as_version=4)
    nbformat.validate(node)
    assert node.cells[-2].outputs[0].text == "[1, 10] bool True\n"  # parameters keep their types
    assert "hide-input" in node.cells[1].metadata.tags  # the injected values are folded on the page
    assert "papermill" not in node.metadata and "version" not in node.metadata.language_info
    prints = [(output.name, output.text) for output in node.cells[-1].outputs if output.output_type == "stream"]
    assert prints == [("stdout", "one\n" * 3)]
    assert any("image/png" in output.get("data", {}) for output in node.cells[-1].outputs)
    assert str(project).encode() not in first


@pytest.mark.parametrize("parameters, words", [({"step": 3}, "has no parameter 'step'; it has steps, quick"),
                                               ({"steps": datetime.date(2020, 1, 1)}, "the value of 'steps' is")])
def test_wrong_parameters_are_refused(project, parameters, words):
    write(project, "1")
    with pytest.raises(UserError, match=words):
        run(parameters)
    assert not (project / "out").exists()


def test_broken_notebooks_are_refused(project):
    (project / "broken.ipynb").write_text("{")
    for name in ("broken.ipynb", "missing.ipynb"):
        with pytest.raises(UserError, match=f"{name} is not a notebook"):
            notebooks.read_notebook(project / name)


@pytest.mark.parametrize("source, words", [
    ("raise ValueError('two\\nlines')", "in code cell 3: ValueError: two lines"),
    ("from anl.io import UserError\nraise UserError('raise training.steps')", "in code cell 3: raise training.steps"),
    ("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", "in code cell 3: its kernel died"),
    ("import sys\nsys.exit()", "in code cell 3: a cell called sys.exit()")])
def test_a_failing_cell_writes_no_result_and_keeps_what_was_executed(project, capsys, source, words):
    write(project, "print('before')")
    run()
    before = (project / "out/demo.ipynb").read_bytes()
    write(project, "print('before')", source)
    with pytest.raises(UserError) as caught:
        run()
    text = str(caught.value)
    assert words in text and text.endswith("the executed part is in failed/demo.ipynb") and "\n" not in text
    assert "before" in (project / "failed/demo.ipynb").read_text() and source[:9] in capsys.readouterr().err
    assert (project / "out/demo.ipynb").read_bytes() == before
    write(project, "1")
    run()
    assert not (project / "failed/demo.ipynb").exists()


def test_a_slow_cell_is_stopped(project):
    write(project, "import time\ntime.sleep(60)")
    with pytest.raises(UserError, match="a cell took longer than 2 s"):
        run(timeout=2)


def test_the_users_settings_and_kernels_have_no_influence(project, monkeypatch):
    startup = project / "home/profile_default/startup"
    startup.mkdir(parents=True)
    (startup / "mine.py").write_text("mine = 1")
    shadow = project / "shadow/kernels/python3"
    shadow.mkdir(parents=True)
    (shadow / "kernel.json").write_text(json.dumps({"argv": ["/bin/false"], "display_name": "x", "language": "python"}))
    monkeypatch.setenv("IPYTHONDIR", str(project / "home"))
    monkeypatch.setenv("JUPYTER_PATH", str(project / "shadow"))
    write(project, "import sys\nprint('mine' in globals(), sys.prefix)")
    assert nbformat.read(run(), as_version=4).cells[-1].outputs[0].text == f"False {sys.prefix}\n"
    assert os.environ["IPYTHONDIR"] == str(project / "home") and os.environ["JUPYTER_PATH"] == str(project / "shadow")


def test_a_kernel_of_another_environment_is_refused(tmp_path):
    path = tmp_path / "share/jupyter/kernels/python3/kernel.json"
    with pytest.raises(UserError, match="has no Jupyter kernel 'python3'"):
        notebooks.check_kernel(tmp_path)
    path.parent.mkdir(parents=True)
    for program in ("python", str(tmp_path / "bin/python")):
        path.write_text(json.dumps({"argv": [program, "-m", "ipykernel_launcher"]}))
        notebooks.check_kernel(tmp_path)
    path.write_text(json.dumps({"argv": ["/elsewhere/bin/python"]}))
    with pytest.raises(UserError, match="another environment's Python"):
        notebooks.check_kernel(tmp_path)
    path.write_text("{}")
    with pytest.raises(UserError, match="does not describe a kernel"):
        notebooks.check_kernel(tmp_path)


@pytest.mark.parametrize("width, image", [(720, {"alt": "A rising line", "width": "480px"}),
                                          (1440, {"alt": "A rising line", "width": "960px", "classes": "wide"})])
def test_a_figures_alternative_text_moves_to_its_cell(width, image):
    stream = io.BytesIO()
    Image.new("RGB", (width, 10)).save(stream, "png")
    shown = nbformat.v4.new_output("display_data", {"image/png": base64.b64encode(stream.getvalue()).decode(), "text/plain": "x"},
                                   metadata={"image/png": {"alt": "A rising line"}})
    node = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("show()", outputs=[shown]), nbformat.v4.new_code_cell("1")])
    cells = notebooks.clean(node).cells
    assert cells[0].metadata["mystnb"]["image"] == image and "mystnb" not in cells[1].metadata
