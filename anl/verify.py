"""A second run as proof: chosen stages run again in a temporary clone with an empty cache, each output beside the first.

What an output is compared with: its bytes in git where results are kept there; else the hash that dvc.lock has recorded;
and where nothing that was asked for is in git, a second clone and a second run, which shows that the code gives the same
bytes twice, and nothing of the bytes themselves being right.
"""

import dataclasses
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from anl import guard, verify_clone, verify_stages
from anl.errors import UserError
from anl.files import read_json, write_json
from anl.verify_clone import STATE
from anl.verify_compare import DIFFERENT, IDENTICAL, ORDER, TOLERANCE, WITHIN, compare, digest

NOT_VERIFIED, NOTHING = "not verified", "nothing to compare with"
IN_GIT, IN_LOCK, FIRST_RUN = "git", "dvc.lock", "first run"
SHOWN_LINES = 12  # of the log of a stage that failed


@dataclass(frozen=True)
class Row:
    """One output. against: IN_GIT, IN_LOCK, FIRST_RUN or "". old, new: the hashes compared, of one kind. note: the largest
    difference, or why there is no verdict. seconds: of the stage."""

    stage: str
    output: str
    against: str = ""
    old: str = ""
    new: str = ""
    verdict: str = NOTHING
    note: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class Report:
    """commit: what was verified. dirty: whether uncommitted changes were taken along. twice: whether two runs were compared."""

    commit: str
    dirty: bool
    profile: str
    twice: bool
    tolerance: str
    seconds: float
    rows: tuple

    @property
    def verdict(self):
        """The worst verdict of all outputs, not counting those that there is nothing to compare with; NOTHING if that is
        all."""
        found = {row.verdict for row in self.rows} - {NOTHING}
        return max(found, key=(*ORDER, NOT_VERIFIED).index, default=NOTHING)

    @property
    def passed(self):
        return self.verdict in (IDENTICAL, WITHIN)


def run(root=".", stages=(), profile=None, keep=None, dirty=False, tolerance=TOLERANCE, say=print):
    """Run stages of the commit checked out at `root` again and compare; returns a Report.

    stages: names (default: all of the profile). profile: activated in the clone (default: the committed params.yaml's).
    keep: folder that holds clone, logs and what was done so far; a second call goes on from there. Without it all of that
    lies in a temporary folder and is removed, however the call ends. dirty: take uncommitted changes of tracked files
    along; without it they are refused. Raises UserError on a mistake that a person can mend.
    """
    started = time.monotonic()
    root = Path(root)
    commit, tree = verify_clone.commit_of(root, dirty)
    with verify_clone.Workplace(keep) as place:
        clones = {"first": verify_clone.make(root, place / "first", commit, profile)}
        settings = {"tree": tree, "profile": verify_clone.profile_of(clones["first"])}
        done = _done_before(place, settings)
        chosen, pulled = verify_stages.choose(verify_stages.read(clones["first"]), stages)
        locked = verify_stages.records(clones["first"])
        twice = not verify_clone.is_tracked(clones["first"], [out for stage in chosen for out in stage.outs])
        say(f"commit {commit[:10]}{' and uncommitted changes' if dirty else ''}, profile {settings['profile']}: "
            f"{len(chosen)} stages to run{' twice' if twice else ''}, {len(pulled)} to pull; working in {place}")
        if twice:
            clones["second"] = verify_clone.make(root, place / "second", commit, profile)
        for turn, (name, clone) in enumerate(clones.items()):
            verify_clone.pull(clone, pulled, place / "logs" / f"{name}-pull.log", say)
            for number, stage in enumerate(chosen, 1 + turn * len(chosen)):
                ahead = f"[{number}/{len(chosen) * len(clones)}] {stage.address}"
                if not done.get(f"{name} {stage.address}", {"problem": "not run"})["problem"]:
                    say(f"{ahead}: done before")
                    continue
                say(f"{ahead} ...")
                entry = _run_or_explain(name, clone, stage, place / "logs", done)
                say(f"{ahead}: " + (entry["problem"] or f"{entry['seconds']:.0f} s"))
                done[f"{name} {stage.address}"] = entry
                write_json(place / STATE, {**settings, "done": done})
        rows = _compared(done, chosen, clones, lambda out: verify_clone.committed(root, place, out), locked, tolerance)
    return Report(commit, dirty, settings["profile"], twice, str(tolerance), time.monotonic() - started, tuple(rows))


def _run_or_explain(name, clone, stage, logs, done):
    for need in stage.needs:
        if done.get(f"{name} {need}", {}).get("problem"):
            return {"seconds": 0.0, "problem": f"needs {need}, which could not be verified"}
    return run_stage(clone, stage, logs / f"{name}-{stage.address.replace('/', '_').replace(':', '_')}.log")


def run_stage(clone, stage, log):
    """Run one stage's command in `clone` through DVC, whatever its cache holds; {"seconds", "problem"}, "" if it ended well.

    A file among the stage's inputs that changed meanwhile is a problem too: its outputs are of no one state of them.
    """
    missing = [dep for dep in stage.deps if not (clone / dep).exists()]
    if missing:
        return {"seconds": 0.0, "problem": f"needs {missing[0]}, which neither git nor the DVC remote holds"}
    started = time.monotonic()
    inputs = [clone / dep for dep in stage.deps] + [clone / "params.yaml", clone / "dvc.yaml"]
    before = guard.fingerprints(inputs)
    status = verify_clone.call_dvc(clone, log, "repro", "--single-item", "--force", "--no-run-cache", stage.address)
    edited = guard.changed(before, guard.fingerprints(inputs))
    problem = ""
    if status:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-SHOWN_LINES:])
        print(f"\n{tail}\n", file=sys.stderr)
        problem = "failed; the end of its log is above"
    if edited:
        problem = f"{os.path.relpath(edited[0], clone)} changed while it ran" + (
            f", and {len(edited) - 1} more" if len(edited) > 1 else "")
    return {"seconds": time.monotonic() - started, "problem": problem}


def _compared(done, stages, clones, committed, locked, tolerance):
    """A Row for each output of `stages`. clones: {name: folder}, the last one's outputs are the new ones; committed: output
    -> path of what HEAD holds."""
    first, last = clones["first"], list(clones.values())[-1]
    made, rows = verify_stages.records(last), []
    for stage in stages:
        entries = [done[f"{name} {stage.address}"] for name in clones]
        problem = next((entry["problem"] for entry in entries if entry["problem"]), "")
        for out in stage.outs:
            row = Row(stage.address, out, seconds=entries[-1]["seconds"])
            if problem:
                row = dataclasses.replace(row, verdict=NOT_VERIFIED, note=problem)
            elif len(clones) > 1:
                row = _of_files(row, FIRST_RUN, first / out, last / out, tolerance)
                if stage.address in locked:
                    said = _recorded(locked[stage.address], made[stage.address], out)
                    row = dataclasses.replace(row, note="; ".join(filter(None, (row.note, said))))
            elif verify_clone.is_tracked(first, [out]):
                row = _of_files(row, IN_GIT, committed(out), last / out, tolerance)
            elif stage.address in locked:
                old, new = (record[stage.address]["outs"].get(out, "") for record in (locked, made))
                row = dataclasses.replace(row, against=IN_LOCK, old=old, new=new, verdict=IDENTICAL if old == new else DIFFERENT)
                if old != new:
                    other = verify_stages.other_inputs(locked[stage.address], made[stage.address])
                    row = dataclasses.replace(row, note=f"recorded with another {other[0]}" if other else
                                              "dvc.lock holds its hash alone, so by how much is unknown")
            else:
                row = dataclasses.replace(row, new=digest(last / out) or "", note="neither in git nor in dvc.lock")
            rows.append(row)
    return rows


def _of_files(row, against, old, new, tolerance):
    found = compare(old, new, tolerance)
    return dataclasses.replace(row, against=against, old=digest(old) or "", new=digest(new) or "", verdict=found.verdict,
                               note=found.largest)


def _recorded(old, new, out):
    """What dvc.lock's record adds to a comparison of two runs."""
    if old["outs"].get(out) == new["outs"].get(out):
        return "the bytes that dvc.lock records"
    other = verify_stages.other_inputs(old, new)
    return f"dvc.lock's record is of another {other[0]}" if other else "dvc.lock records other bytes"


def _done_before(place, settings):
    """{pass and stage: what run_stage returned} of earlier calls in this folder. Raises UserError if those were of another
    commit or profile."""
    path = place / STATE
    if not path.is_file():
        write_json(path, {**settings, "done": {}})
        return {}
    state = read_json(path)
    if {key: state.get(key) for key in settings} != settings:
        raise UserError(f"{place} holds a verification of another commit, other changes or another profile; remove it, or "
                        "choose another folder")
    return state["done"]
