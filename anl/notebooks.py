"""Run a notebook on Papermill: parameters checked, this environment's kernel, the same bytes every time."""

import contextlib
import dataclasses
import json
import os
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path

from anl import params as profiles
from anl import provenance
from anl.errors import UserError
from anl.files import whole_file, write_text

KERNEL = "python3"
CELL_TIMEOUT = 12 * 3600  # seconds; a cell may have to train detectors first
SHOWN_LINES = 20  # of a failing cell's source
WIDGET = "application/vnd.jupyter.widget-view+json"


def run_notebook(name, settings, params_path="params.yaml", notebooks="notebooks", results="results",
                 failed=".cache/anl/failed", sidecars="provenance", timeout=CELL_TIMEOUT):
    """Execute `<notebooks>/<name>.ipynb` from the project's root into `<results>/<profile>/<name>/<name>.ipynb`.

    settings: {parameter: value} beyond the notebook's defaults; `profile` is that of `params_path` unless given.
    timeout: seconds that one cell may take. Returns the path of the executed notebook, which is written only if every
    cell ended well, and writes `<sidecars>/<profile>/<name>.json` beside. Raises UserError on an unknown notebook or
    parameter, a kernel of another environment, and a failing cell (what ran is kept in `failed`).
    """
    import nbformat

    params = profiles.load(params_path)
    source = find_notebook(name, notebooks)
    node = read_notebook(source)
    settings = {"profile": params.profile, **settings}
    check_settings(name, node, settings)
    check_kernel()
    params = dataclasses.replace(params, profile=settings["profile"])
    target = Path(results) / params.profile / name / f"{name}.ipynb"
    started, started_ns = time.monotonic(), time.time_ns()
    state = provenance.code_state()
    with tempfile.TemporaryDirectory(prefix="anl-notebook-") as folder, whole_results(target.parent):
        temporary = Path(folder) / f"{name}.ipynb"
        try:
            _execute(node, temporary, settings, timeout)
        except _Failure as failure:
            raise _report(name, failure, temporary, Path(failed) / f"{name}.ipynb") from None
        write_text(target, nbformat.writes(clean(nbformat.read(temporary, as_version=4))) + "\n")
    (Path(failed) / f"{name}.ipynb").unlink(missing_ok=True)  # of an earlier try; it would mislead
    provenance.record(name, params, time.monotonic() - started, [source], settings=settings, params_path=params_path,
                      results=results, folder=sidecars, since_ns=started_ns, state=state)
    return target


@contextlib.contextmanager
def whole_results(folder):
    """Let the block fill an empty `folder`; if it does not end well, what stood there before stands there again.

    So a notebook that fails in its last cell does not leave new tables beside old numbers. A killed run leaves the old
    results in `.<folder>.old`, and the next run starts by putting them back.
    """
    folder = Path(folder)
    old, gone = before(folder), folder.with_name(f".{folder.name}.gone")
    if old.exists():
        shutil.rmtree(folder, ignore_errors=True)
        old.rename(folder)
    folder.mkdir(parents=True, exist_ok=True)
    folder.rename(old)
    try:
        folder.mkdir()
        yield folder
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        old.rename(folder)
        raise
    shutil.rmtree(gone, ignore_errors=True)
    old.rename(gone)  # first, so that a half-removed folder is never put back
    shutil.rmtree(gone)


def before(folder):
    """Where the results that a running notebook replaces lie until it has ended; see whole_results."""
    return Path(folder).with_name(f".{Path(folder).name}.old")


def find_notebook(name, notebooks="notebooks"):
    """Path of a notebook's source. Raises UserError, listing the known ones."""
    known = sorted(path.stem for path in Path(notebooks).glob("*.ipynb"))
    if name not in known:
        choice = f"choose one of {', '.join(known)}" if known else f"{notebooks}/ holds none"
        raise UserError(f"there is no notebook '{name}'; {choice}")
    return Path(notebooks) / f"{name}.ipynb"


def read_notebook(path):
    """A notebook's source, bound to this environment's kernel whatever its author's was."""
    import nbformat

    try:
        node = nbformat.read(path, as_version=4)
    except (ValueError, KeyError, AttributeError, nbformat.ValidationError) as problem:
        raise UserError(f"{path} is not a notebook ({_one_line(problem)[:120]}); restore it with "
                        f"`git checkout {path}`") from None
    node.metadata.kernelspec = {"display_name": "Python 3", "language": "python", "name": KERNEL}
    node.metadata.language_info = {"name": "python"}
    return node


def check_settings(name, node, settings):
    """Raise UserError on a parameter that the notebook does not declare, or a value it cannot be given."""
    import papermill

    tagged = any("parameters" in cell.metadata.get("tags", []) for cell in node.cells)
    known = list(papermill.inspect_notebook(node)) if tagged else []
    if "profile" not in known:
        raise UserError(f"notebook '{name}' declares no parameter 'profile'; give it a cell tagged `parameters` with "
                        "`profile = \"smoke\"`")
    for key, value in settings.items():
        if key not in known:
            raise UserError(f"notebook '{name}' has no parameter '{key}'; known: {', '.join(known)}")
        if not _plain(value):
            raise UserError(f"notebook '{name}': '{key}' must be made of numbers, true or false, texts, lists and "
                            f"mappings, not {value!r}; quote it if it is a text")
    if not isinstance(settings["profile"], str) or not re.fullmatch(r"\w[\w.-]*", settings["profile"]):
        raise UserError(f"notebook '{name}': 'profile' must be a profile's name, not {settings['profile']!r}")


def _plain(value):
    if isinstance(value, dict):
        return all(isinstance(key, str) and _plain(item) for key, item in value.items())
    if isinstance(value, list):
        return all(map(_plain, value))
    return value is None or isinstance(value, (bool, int, float, str))


def check_kernel(prefix=None):
    """Raise UserError unless the kernel `python3` of the environment at `prefix` (default: ours) starts its own Python.

    Jupyter looks for kernels in several places; one that belongs to another environment runs other versions, silently.
    """
    prefix = Path(prefix or sys.prefix)
    path = prefix / "share" / "jupyter" / "kernels" / KERNEL / "kernel.json"
    mend = "install it with `python -m ipykernel install --sys-prefix`"
    try:
        program = json.loads(path.read_text(encoding="utf-8"))["argv"][0]
    except FileNotFoundError:
        raise UserError(f"this environment has no Jupyter kernel '{KERNEL}' ({path} is missing); {mend}") from None
    except (ValueError, KeyError, IndexError, TypeError):
        raise UserError(f"{path} is not a kernel's description; {mend}") from None
    major, minor = sys.version_info[:2]
    if program in ("python", f"python{major}", f"python{major}.{minor}"):  # Jupyter puts our own Python in their place
        return
    # The folder is compared, not the program: in a virtual environment that is a link to the base installation.
    if Path(program).parent.resolve() != (prefix / "bin").resolve():
        raise UserError(f"the kernel '{KERNEL}' of this environment starts another environment's Python ({program}); "
                        f"{mend}")


class _Failure(Exception):
    """A run that did not end well. text: one line; is_user_error: whether it is a message meant to be read."""

    def __init__(self, text, is_user_error=False):
        super().__init__(text)
        self.text, self.is_user_error = text, is_user_error


def _execute(node, output, settings, timeout):
    """Run `node` into the file `output`, which Papermill writes anew after every cell. Raises _Failure."""
    import papermill
    from nbclient.exceptions import CellTimeoutError, DeadKernelError

    try:
        with _kernel_environment():
            done = papermill.execute_notebook(
                node, str(output), parameters=settings, kernel_name=KERNEL, language="python", cwd=".",
                progress_bar=sys.stderr.isatty(), log_output=False, execution_timeout=timeout, start_timeout=120,
                extra_arguments=["--log-level=CRITICAL"])  # silences the kernel's notice about its TCP ports
    except papermill.PapermillExecutionError as problem:
        raise _Failure(_one_line(problem.evalue if problem.ename == "UserError" else
                                 f"{problem.ename}: {problem.evalue}"), problem.ename == "UserError") from None
    except CellTimeoutError:
        raise _Failure(f"a cell took longer than {timeout} s") from None
    except DeadKernelError:
        raise _Failure("its kernel died; most often the memory was full") from None
    except RuntimeError as problem:
        if "Kernel" not in str(problem):
            raise
        raise _Failure(f"its kernel did not start or died: {_one_line(problem)}") from None
    if any(_has_error(cell) for cell in done.cells):  # Papermill takes sys.exit() for a good end
        raise _Failure("it left early, by SystemExit")


@contextlib.contextmanager
def _kernel_environment():
    """The variables under which only this environment's kernel is found; put back afterwards."""
    before = dict(os.environ)
    os.environ.pop("JUPYTER_PATH", None)
    os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"
    os.environ["PYTHONHASHSEED"] = "0"  # the order of a printed set
    with tempfile.TemporaryDirectory(prefix="anl-ipython-") as folder:
        os.environ["IPYTHONDIR"] = folder  # no start-up file or setting of the user's own
        try:
            yield
        finally:
            os.environ.clear()
            os.environ.update(before)


def _report(name, failure, partial, kept):
    """Keep what ran, show the failing cell on stderr, and return the UserError to raise."""
    import nbformat

    if not partial.is_file():
        return UserError(f"notebook '{name}' failed: {failure.text}")
    with whole_file(kept) as temporary:
        shutil.copyfile(partial, temporary)
    cells = [cell for cell in nbformat.read(partial, as_version=4).cells if cell.cell_type == "code"]
    ran = [cell for cell in cells if cell.metadata.get("papermill", {}).get("start_time")]
    failing = next((cell for cell in cells if _has_error(cell)), ran[-1] if ran else None)
    place = ""
    if failing is not None:
        lines = failing.source.splitlines()
        more = [f"... {len(lines) - SHOWN_LINES} more lines"] if len(lines) > SHOWN_LINES else []
        shown = [f"    {line}" for line in lines[:SHOWN_LINES] + more]
        print("\n".join(["", *shown, "", failure.text]), file=sys.stderr)
        place = f" in code cell {cells.index(failing) + 1}"
    said = failure.text.rstrip(".") if failure.is_user_error or len(failure.text) <= 200 else failure.text[:200] + "..."
    return UserError(f"notebook '{name}' failed{place}: {said}; what ran is kept in {kept}")


def _has_error(cell):
    return any(output.output_type == "error" for output in cell.get("outputs", []))


def _one_line(problem):
    return " ".join(re.sub(r"\x1b\[[0-9;]*m", "", str(problem)).split())


def clean(node):
    """The notebook without what differs between two runs or two machines; changes `node` and returns it."""
    node.nbformat, node.nbformat_minor = 4, 5
    node.metadata.pop("papermill", None)
    node.metadata.pop("widgets", None)
    node.metadata.get("language_info", {}).pop("version", None)
    for number, cell in enumerate(node.cells):
        cell.id = f"cell-{number}"
        cell.metadata.pop("papermill", None)
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = _clean_outputs(cell.outputs)
    return node


def _clean_outputs(outputs):
    """Outputs without stderr, progress bars and memory addresses; the pieces that a print arrived in are joined."""
    kept = []
    for output in outputs:
        if output.output_type == "stream":
            if output.name == "stderr":
                continue
            if kept and kept[-1].output_type == "stream":
                kept[-1].text += output.text
                continue
        data = output.get("data", {})
        if WIDGET in data:
            continue
        if "text/plain" in data:
            data["text/plain"] = re.sub(r"\bat 0x[0-9a-fA-F]+", "at 0x0", data["text/plain"])
        kept.append(output)
    return kept
