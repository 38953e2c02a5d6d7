"""Tables and figures made again from saved scores, and compared with those that are stored."""

import ast
import contextlib
import shutil
import tempfile
from pathlib import Path

from anl import notebooks, params, saved
from anl.errors import UserError
from anl.files import write_text
from anl.verify_compare import compare

# notebooks that ask no more of a run than its scores
STUDIES = ("cross_generator", "step_t", "targets", "families", "robustness", "calibration", "peers", "leave_one_out",
           "loss_weight", "attention_loss", "sample_size", "cifake", "public_peers")


def studies(profile, results="results"):
    """Those of STUDIES that have stored results."""
    return [name for name in STUDIES if (Path(results) / profile / name / f"{name}.ipynb").is_file()]


def recompute(name, settings, keep=False, results="results", say=print, params_path="params.yaml"):
    """Run a notebook on the saved scores of the profile in `params_path`; returns the Comparison of stored and new results.

    settings: parameters of the notebook other than those its stored results were made with. keep: leave the new results in
    the stored ones' place. Raises UserError if nothing is stored, or scores that it needs are not saved.
    """
    active = params.load(params_path)
    folder = Path(results) / active.profile / name
    if not (folder / f"{name}.ipynb").is_file():
        raise UserError(f"there are no results of '{name}' in {folder} to compare with; stored there: "
                        f"{', '.join(studies(active.profile, results)) or 'none'}")
    settings = {**settings_of(folder / f"{name}.ipynb"), **settings}
    if settings.pop("keep", None):  # of `peers`: rows from an earlier run; what is recomputed stands on scores alone
        raise UserError(f"{folder} holds rows of an earlier run, whose scores are not saved; run `anl notebook {name}` without "
                        "`keep`")
    with tempfile.TemporaryDirectory(prefix="anl-recompute-") as temporary:
        old = Path(temporary) / name
        shutil.copytree(folder, old)
        say(f"{name}: computing again from saved scores ...")
        with saved.restored(active, results=results):
            notebooks.run_notebook(name, settings, params_path, results=results, sidecars=Path(temporary) / "sidecars")
        found = compare(old, folder)
        if not keep:
            shutil.rmtree(folder)
            shutil.copytree(old, folder)
    return found


def settings_of(path):
    """{parameter: value} that an executed notebook was given."""
    for cell in notebooks.read_notebook(path).cells:
        if "injected-parameters" in cell.metadata.get("tags", []):
            return {node.targets[0].id: ast.literal_eval(node.value) for node in ast.parse(cell.source).body
                    if isinstance(node, ast.Assign)}
    return {}


@contextlib.contextmanager
def activated(profile, path="params.yaml", folder="profiles"):
    """Let the block run under another profile, and give it the path of its parameters; what is active afterwards is as it was.

    A profile that has a pipeline of its own is read where it stands.
    """
    if params.stands_alone(profile, folder):
        yield f"{folder}/{profile}.yaml"
        return
    before = Path(path).read_text(encoding="utf-8") if Path(path).is_file() else None
    params.activate(profile, folder, path=path)
    try:
        yield path
    finally:
        if before is not None:
            write_text(path, before)
