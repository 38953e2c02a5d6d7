"""Where each figure and table of the book comes from: data, notebooks, the run's facts, and the command that rebuilds it."""

import dataclasses
import html
import re
from pathlib import Path

import yaml

from anl.errors import UserError
from anl.files import read_json, sha256_of

FILES = "files"  # the folder of the built site that holds what a page offers for download, laid out as book/generated
# notebook/figure: the tables it is drawn from; an empty list: drawn from images, which are no table
FIGURES = {
    "anl_plus/ap_by_variant.png": ["summary.csv", "gain.csv"],
    "attention/ap_by_attention.png": ["summary.csv", "difference.csv"],
    "attention/reach.png": ["support.csv", "area_difference.csv"],
    "attention_loss/ap_by_attention.png": ["summary.csv", "gain.csv"],
    "branch/ap_by_branch.png": ["summary.csv", "difference.csv"],
    "calibration/reliability.png": ["reliability.csv"],
    "cifake/methods.png": ["accuracy.csv", "across.csv"],
    "claims/verdicts.png": ["verdicts.csv"],
    "cross_generator/ap_by_generator.png": ["summary.csv", "difference.csv"],
    "cross_generator/ap_by_generator_jpeg96.png": ["summary.csv", "difference.csv"],
    "cross_generator/controls.png": ["controls.csv"],
    "data/families.png": [],
    "data/photographs.png": [],
    "data/statistics.png": ["family_statistics.csv"],
    "detector/curves.png": ["curves.csv"],
    "detector/noise.png": [],
    "families/AP_by_family.png": ["means.csv", "gain.csv"],
    "families/gallery.png": [],
    "families/methods.png": ["methods.csv"],
    "families/statistics.png": ["family_statistics.csv"],
    "gallery/gallery.png": ["scores.csv", "patches.csv"],
    "leaky/ap_by_step.png": ["summary.csv"],
    "loss_weight/ap_by_weight.png": ["summary.csv", "gain.csv"],
    "peers/accuracy_and_cost.png": ["peers.csv"],
    "prior/denoising.png": ["denoising.csv"],
    "prior/noise.png": [],
    "public_data/images.png": [],
    "public_peers/accuracy_and_cost.png": ["peers.csv"],
    "robustness/by_strength.png": ["curves.csv"],
    "robustness/difference_by_strength.png": ["curve_differences.csv"],
    "robustness/rates_by_strength.png": ["curves.csv"],
    "sample_size/ap_by_pairs.png": ["summary.csv"],
    "sample_size/gain_by_pairs.png": ["gain.csv"],
    "step_t/ap_by_step.png": ["summary.csv"],
    "targets/ap_by_target.png": ["summary.csv", "gain.csv"],
}


@dataclasses.dataclass(frozen=True)
class Origin:
    """Of one folder of results. place: its path below book/generated; executed: link to the executed notebook, if any;
    first: what has to be typed before the command, if anything."""

    place: str
    command: str
    notebook: str = ""
    profile: str = ""
    seeds: tuple = ()
    executed: str = ""
    sidecar: dict | None = None
    first: str = ""

    @property
    def stored(self):
        """Whether it is as the repository holds it, whatever profile is active."""
        return bool(self.first)

    def link(self, name):
        """Where a page finds a file of this folder."""
        return f"{FILES}/{self.place}/{name}"


def commands(pipeline):
    """{notebook: `dvc repro STAGE`} of the stages in dvc.yaml that make a notebook's results."""
    stages = yaml.safe_load(Path(pipeline).read_text(encoding="utf-8"))["stages"]
    found = {}
    for name, stage in stages.items():
        for out in stage.get("do", stage).get("outs", []):
            path = out if isinstance(out, str) else next(iter(out))
            if made := re.fullmatch(r"results/\$\{item\.profile\}/(\w+)", path):
                found[made[1]] = f"dvc repro {name}"
    return found


def sidecar_of(notebook, *folders):
    """The provenance of an executed notebook, from the first folder that has it; None if none tells of this very run.

    folders: of sidecars, a subfolder a profile. Raises UserError on a figure or table beside the notebook that its run
    did not write, or that was changed since.
    """
    results = notebook.parent
    for folder in folders:
        path = Path(folder) / results.parent.name / f"{notebook.stem}.json"
        sidecar = read_json(path) if path.is_file() else {}
        known = {Path(name).name: digest for name, digest in sidecar.get("files", {}).items()}
        if known.get(notebook.name) != sha256_of(notebook):
            continue
        for file in sorted([*results.rglob("*.png"), *results.glob("*.csv")]):
            if known.get(file.name) != sha256_of(file):
                raise UserError(f"{file} is not of the run that {path} tells of; make it again with "
                                f"`{sidecar.get('command', f'anl notebook {notebook.stem}')}`")
        return sidecar
    return None


def _command(origin):
    """What makes these very results, a line a command: with the settings that the run was given, if it was given any."""
    changed = set((origin.sidecar or {}).get("settings", {})) - {"profile"}
    command = origin.sidecar["command"] if changed else origin.command
    return "\n".join(filter(None, (origin.first, command)))


def details(origin, tables):
    """HTML, folded: the origin of one figure or table. tables: file names of its data in the same folder."""
    def code(text):
        return f"<code>{html.escape(text)}</code>"

    links = ", ".join(f'<a href="{origin.link(name)}" download>{code(name)}</a>' for name in tables)
    rows = {"Data": links or "images, drawn by the notebook"}
    if origin.notebook:
        source = f'<a href="{FILES}/notebooks/{origin.notebook}.ipynb" download>{code(f"{origin.notebook}.ipynb")}</a>'
        rows["Notebook"] = f'<a href="{origin.executed}">executed</a>, source {source}'
    if origin.profile:
        seeds = f", seeds {', '.join(map(str, origin.seeds))}" if origin.seeds else ""
        rows["Profile"] = code(origin.profile) + seeds
    if origin.sidecar is None:
        rows["Run"] = "as stored in the repository, not run on this machine"
    else:
        rows |= {title: html.escape(text) for title, text in facts(origin.sidecar).items()}
    lines = "".join(f"<dt>{title}</dt><dd>{text}</dd>" for title, text in rows.items())
    # sphinx-copybutton looks for this markup
    command = f'<div class="highlight"><pre>{html.escape(_command(origin))}</pre></div>'
    return (f'<details class="origin"><summary>Data, code and command</summary><dl>{lines}<dt>Rebuild</dt><dd>{command}'
            "</dd></dl></details>\n")


def facts(sidecar):
    """{title: text} of a sidecar: code, data, machine and cost; what it lacks is left out."""
    words = {}
    if commit := sidecar.get("commit"):
        words["Commit"] = str(commit)[:10] + (" with uncommitted changes" if sidecar.get("dirty") else "")
    hashes = [f"{path} {digest[:10]}" for path, digest in sorted((sidecar.get("data") or {}).items()) if digest]
    if hashes:
        words["Data hash"] = ", ".join(hashes)
    if isinstance(versions := sidecar.get("versions"), dict):
        words["Versions"] = ", ".join(f"{key} {value}" for key, value in sorted(versions.items()) if value)
    if device := sidecar.get("device"):
        words["Device"] = device
    if (seconds := sidecar.get("wall_seconds")) is not None:
        words["Wall time"] = f"{seconds:.0f} s"
    if (memory := sidecar.get("peak_memory_mb")) is not None:
        words["Peak memory"] = f"{memory / 1024:.1f} GB"
    return words


def line(origin):
    """Markdown for the foot of a page: the notebook behind it and how to run it again."""
    executed = f"[executed notebook](generated/notebooks/{origin.notebook}.ipynb)"
    if origin.stored:
        executed = f"results as stored in `results/{origin.place}`"
    seeds = f", seeds {', '.join(map(str, origin.seeds))}" if origin.seeds else ""
    command = _command(origin).replace("\n", "`, then `")
    return (f":::{{div}} provenance\n**Where this comes from:** profile `{origin.profile}`{seeds}; {executed}; source "
            f"`notebooks/{origin.notebook}.ipynb`. Rerun it with `{command}`. Each figure and table folds out its data, its "
            "run and its command.\n:::\n")
