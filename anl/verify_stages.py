"""What a DVC pipeline says of itself to `anl verify`: its stages, what each needs, and what dvc.lock has recorded."""

import os
from dataclasses import dataclass
from pathlib import Path

import yaml

from anl.errors import UserError


@dataclass(frozen=True)
class Stage:
    """address: as `dvc repro` takes it. outs, deps: paths from the root, sorted. kept: whether DVC keeps its outputs in its
    cache and the remote, so that they can be pulled instead of made. needs: addresses of the stages that its inputs come from."""

    address: str
    outs: tuple
    deps: tuple
    kept: bool
    has_command: bool
    needs: tuple

    @property
    def name(self):
        """The name in dvc.yaml, without the place in its matrix."""
        return self.address.rpartition(":")[2].partition("@")[0]


def read(root):
    """{address: Stage} of the pipelines under `root`, in the order in which they can be run.

    Raises UserError where there is no pipeline or DVC cannot read it.
    """
    import networkx
    from dvc.dependency import ParamsDependency
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    def paths(items):
        return tuple(sorted(os.path.relpath(item.fs_path, root) for item in items))

    try:
        with Repo(str(root)) as repo:
            stages = list(repo.index.stages)
            graph = repo.index.graph  # an edge leads from a stage to one that it needs
            place = {stage: number for number, stage in enumerate(stages)}
            ordered = networkx.lexicographical_topological_sort(graph.reverse(copy=True), key=lambda stage: place[stage])
            return {_address(stage): Stage(
                _address(stage), paths(stage.outs), paths(
                    dep for dep in stage.deps if not isinstance(dep, ParamsDependency)),
                all(out.use_cache and out.can_push for out in stage.outs), bool(stage.cmd),
                tuple(sorted(map(_address, graph.successors(stage))))) for stage in ordered}
    except DvcException as problem:
        raise UserError(f"DVC cannot read the pipeline: {' '.join(str(problem).split())[:300]}; mend dvc.yaml") from None


def _address(stage):
    """What names a stage from the project's root, wherever we are: NAME, FOLDER/dvc.yaml:NAME, or FILE.dvc."""
    if not stage.cmd:
        return stage.path_in_repo
    return stage.name if stage.path_in_repo == "dvc.yaml" else f"{stage.path_in_repo}:{stage.name}"


def choose(stages, names):
    """(to run, to pull): lists of Stage for the asked stages, in the order in which they can be run.

    names: of stages as in dvc.yaml, with or without their place in a matrix; none: every stage of the main pipeline whose
    outputs DVC does not keep. What a stage needs is run too, up to what DVC keeps, which is pulled unless it is named.
    Raises UserError on a name that no stage has.
    """
    chosen = set()
    for name in names:
        found = [stage.address for stage in stages.values() if name in (stage.address, stage.name) and stage.has_command]
        if not found:
            known = list(dict.fromkeys(stage.name for stage in stages.values() if stage.has_command and ":" not in stage.address))
            raise UserError(f"there is no stage '{name}'; choose of {', '.join(known)}")
        chosen |= set(found)
    if not names:
        chosen = {stage.address for stage in stages.values()
                  if stage.has_command and not stage.kept and ":" not in stage.address}
    run, pull, waiting = set(), set(), list(chosen)
    while waiting:
        address = waiting.pop()
        if address in run or address in pull:
            continue
        if stages[address].kept and address not in chosen:
            pull.add(address)
        else:
            run.add(address)
            waiting += stages[address].needs
    return [[stage for stage in stages.values() if stage.address in group] for group in (run, pull)]


def records(root, pipeline="dvc.lock"):
    """{address: {"outs": {path: MD5}, "inputs": {path: MD5, "cmd": command, ...}}} of a lock file. Raises UserError if it is
    missing or broken."""
    path = Path(root) / pipeline
    try:
        stages = yaml.safe_load(path.read_text(encoding="utf-8"))["stages"]
        return {name: {"outs": {out["path"]: out["md5"] for out in entry.get("outs", []) if "md5" in out},
                       "inputs": {"cmd": entry["cmd"], **{dep["path"]: dep.get("md5") for dep in entry.get("deps", [])},
                                  **{f"{file}: {key}": value for file, values in entry.get("params", {}).items()
                                     for key, value in values.items()}}}
                for name, entry in stages.items()}
    except FileNotFoundError:
        raise UserError(f"{path} is missing, so nothing is recorded of what the stages made; run `dvc repro` and commit it"
                        ) from None
    except (yaml.YAMLError, KeyError, TypeError, AttributeError) as problem:
        raise UserError(f"{path} cannot be read ({' '.join(str(problem).split())[:120]}); restore it with `git checkout`"
                        ) from None


def other_inputs(old, new):
    """Names of the inputs (files, parameters, command) that differ between two records of one stage, sorted."""
    first, second = old["inputs"], new["inputs"]
    return sorted(name for name in first.keys() | second.keys() if first.get(name) != second.get(name))
