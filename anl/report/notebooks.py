"""Execute notebooks with Papermill: checked parameters, this environment's kernel, and the same bytes every time."""

import binascii
import contextlib
import json
import os
import re
import sys
import tempfile
from pathlib import Path

import nbformat
import papermill
from nbclient.exceptions import CellTimeoutError, DeadKernelError

from anl.io import UserError, atomic_file, reason, write_text
from anl.report import DPI

KERNEL = "python3"
SHOWN_LINES = 20  # of a failing cell's source
WIDGET = "application/vnd.jupyter.widget-view+json"
PAGE_DPI = 96  # of a web page
WIDE = 600  # page pixels; a wider figure would be illegible on a phone, where it scrolls instead


def run_notebook(source, target, parameters, *, timeout, failed):
    """Execute a notebook in the current folder and write the cleaned result.

    Parameters
    ----------
    source, target : path-like
        `target` is returned, and written only if every cell ran without an error.
    parameters : dict
        Values for the cell tagged ``parameters``: numbers, booleans, strings, None, and lists and dicts of them.
    timeout : int
        Seconds that one cell may take.
    failed : path-like
        Where the partly executed notebook is kept if a cell fails; removed by the next run that succeeds.

    Raises
    ------
    UserError
        If the notebook is missing or broken, has no such parameter, a cell fails, or the kernel is another environment's.
    """
    source, target, failed = Path(source), Path(target), Path(failed)
    node = read_notebook(source)
    check_parameters(source.stem, node, parameters)
    check_kernel()
    with tempfile.TemporaryDirectory(prefix="anl-notebook-") as folder:
        output = Path(folder) / source.name
        if problem := _execute(node, output, parameters, timeout):
            raise UserError(_describe(source.stem, problem, output, failed))
        write_text(target, nbformat.writes(clean(nbformat.read(output, as_version=4))) + "\n")
    failed.unlink(missing_ok=True)
    return target


def read_notebook(path):
    """A notebook bound to this environment's kernel, whatever kernel its author used."""
    try:
        node = nbformat.read(path, as_version=4)
    except (ValueError, KeyError, AttributeError, OSError, nbformat.ValidationError) as problem:
        raise UserError(f"{path} is not a notebook ({reason(problem)}); restore it with `git checkout -- {path}`") from None
    node.metadata.kernelspec = {"display_name": "Python 3", "language": "python", "name": KERNEL}
    node.metadata.language_info = {"name": "python"}
    return node


def check_parameters(name, node, parameters):
    """Raise UserError on a parameter that the notebook does not declare, or a value that is not plain data."""
    tagged = any("parameters" in cell.metadata.get("tags", []) for cell in node.cells)
    known = list(papermill.inspect_notebook(node)) if tagged else []
    for key, value in parameters.items():
        if key not in known:
            raise UserError(f"notebook '{name}' has no parameter '{key}'; " +
                            (f"it has {', '.join(known)}" if known else "it declares none"))
        try:
            json.dumps(value)
        except TypeError:
            raise UserError(f"notebook '{name}': the value of '{key}' is {value!r}; give numbers, booleans, strings, lists or "
                            "mappings, and put a string in quotes") from None


def check_kernel(prefix=None):
    """Raise UserError unless the kernel ``python3`` of the environment at `prefix` starts that environment's Python.

    Jupyter looks for kernels in several places, and one of another environment would silently run other versions.
    """
    prefix = Path(prefix or sys.prefix)
    path = prefix / "share" / "jupyter" / "kernels" / KERNEL / "kernel.json"
    fix = "install it with `python -m ipykernel install --sys-prefix`"
    try:
        program = json.loads(path.read_text(encoding="utf-8"))["argv"][0]
    except FileNotFoundError:
        raise UserError(f"this environment has no Jupyter kernel '{KERNEL}' ({path} is missing); {fix}") from None
    except (ValueError, KeyError, IndexError, TypeError):
        raise UserError(f"{path} does not describe a kernel; {fix}") from None
    major, minor = sys.version_info[:2]
    if program in ("python", f"python{major}", f"python{major}.{minor}"):  # Jupyter replaces these by its own Python
        return
    # folders are compared, not programs: a virtual environment's Python is a link to the base installation
    if Path(program).parent.resolve() != (prefix / "bin").resolve():
        raise UserError(f"the kernel '{KERNEL}' of this environment starts another environment's Python ({program}); {fix}")


def _execute(node, output, parameters, timeout):
    """Run `node` into the file `output`; returns what went wrong in one line, or an empty string."""
    try:
        with _kernel_environment():
            done = papermill.execute_notebook(
                node, str(output), parameters=parameters, kernel_name=KERNEL, language="python", cwd=".",
                progress_bar=sys.stderr.isatty(), log_output=False, execution_timeout=timeout, start_timeout=120,
                extra_arguments=["--log-level=CRITICAL"])  # silences the kernel's notice about its TCP ports
    except papermill.PapermillExecutionError as problem:
        return _one_line(problem.evalue if problem.ename == "UserError" else f"{problem.ename}: {problem.evalue}")
    except CellTimeoutError:
        return f"a cell took longer than {timeout} s"
    except DeadKernelError:
        return "its kernel died; the most common cause is a full memory"
    except RuntimeError as problem:
        if "Kernel" not in str(problem):
            raise
        return f"its kernel did not start or died: {_one_line(problem)}"
    # Papermill takes sys.exit() in a cell for success
    return "a cell called sys.exit()" if any(_has_error(cell) for cell in done.cells) else ""


@contextlib.contextmanager
def _kernel_environment():
    """Environment variables under which only this environment's kernel is found; restored afterwards."""
    before = dict(os.environ)
    os.environ.pop("JUPYTER_PATH", None)
    with tempfile.TemporaryDirectory(prefix="anl-ipython-") as folder:
        # a fixed hash seed fixes the order of a printed set; an empty IPYTHONDIR leaves out the user's own settings
        os.environ.update({"JUPYTER_PREFER_ENV_PATH": "1", "PYTHONHASHSEED": "0", "IPYTHONDIR": folder})
        try:
            yield
        finally:
            os.environ.clear()
            os.environ.update(before)


def _describe(name, problem, output, failed):
    """Keep the partly executed notebook, show the failing cell on stderr; returns the error's one line."""
    if not output.is_file():
        return f"notebook '{name}' failed: {problem}"
    with atomic_file(failed) as temporary:
        temporary.write_bytes(output.read_bytes())
    cells = [cell for cell in nbformat.read(output, as_version=4).cells if cell.cell_type == "code"]
    started = [cell for cell in cells if cell.metadata.get("papermill", {}).get("start_time")]
    failing = next((cell for cell in cells if _has_error(cell)), started[-1] if started else None)
    place = ""
    if failing is not None:
        lines = failing.source.splitlines()
        more = [f"... {len(lines) - SHOWN_LINES} more lines"] if len(lines) > SHOWN_LINES else []
        print("\n".join(["", *(f"    {line}" for line in lines[:SHOWN_LINES] + more), "", problem]), file=sys.stderr)
        place = f" in code cell {cells.index(failing) + 1}"
    return f"notebook '{name}' failed{place}: {reason(problem, 200).rstrip('.')}; the executed part is in {failed}"


def _has_error(cell):
    return any(output.output_type == "error" for output in cell.get("outputs", []))


def _one_line(problem):
    return " ".join(re.sub(r"\x1b\[[0-9;]*m", "", str(problem)).split())


def clean(node):
    """Remove from a notebook what differs between two runs or two machines; changes `node` and returns it."""
    node.nbformat, node.nbformat_minor = 4, 5
    for key in ("papermill", "widgets"):
        node.metadata.pop(key, None)
    node.metadata.get("language_info", {}).pop("version", None)
    for number, cell in enumerate(node.cells):
        cell.id = f"cell-{number}"
        for key in ("papermill", "execution"):
            cell.metadata.pop(key, None)
        if cell.cell_type == "code":
            cell.outputs = _clean_outputs(cell.outputs)
            _describe_image(cell)
        if "injected-parameters" in cell.metadata.get("tags", []):  # folded on a page, like the code of the notebook
            cell.metadata.tags = list(dict.fromkeys([*cell.metadata.tags, "hide-input"]))
    return node


def _describe_image(cell):
    """Copy the alt text of a cell's figure, and its width on a page, to where Jupyter Book looks for them.

    `show(figure, alt=...)` stores the text in the output's metadata. MyST-NB reads that of the cell: one figure per cell.
    """
    for output in cell.outputs:
        alt = output.get("metadata", {}).get("image/png", {}).get("alt")
        if alt is None:
            continue
        header = binascii.a2b_base64(output.data["image/png"][:32])  # width: bytes 16 to 20 of a PNG file
        width = round(int.from_bytes(header[16:20], "big") * PAGE_DPI / DPI)
        image = {"alt": alt, "width": f"{width}px"}
        cell.metadata.setdefault("mystnb", {})["image"] = image | ({"classes": "wide"} if width > WIDE else {})
        return


def _clean_outputs(outputs):
    """Outputs without stderr, progress bars and memory addresses; prints that arrived in pieces are joined."""
    kept = []
    for output in outputs:
        data = output.get("data", {})
        if (output.output_type == "stream" and output.name == "stderr") or WIDGET in data:
            continue
        if output.output_type == "stream" and kept and kept[-1].output_type == "stream":
            kept[-1].text += output.text
            continue
        if "text/plain" in data:
            data["text/plain"] = re.sub(r"\bat 0x[0-9a-fA-F]+", "at 0x0", data["text/plain"])
        kept.append(output)
    return kept
