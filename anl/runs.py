"""A run is one training: what it is called, what it is, where it lies, and how a missing one is made."""

import dataclasses
import os
import platform
import resource
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from anl import __version__, arithmetic, baselines, detector, files, predict, processes, train
from anl.errors import UserError
from anl.params import BRANCHES, FORMATS, GRADIENTS, LOSSLESS, NOISE_ON, READS

GROUPS = ("main", "step_t", "attention", "targets", "loss_weight", "attention_loss", "sample_size", "leaky",
          "anl_plus", "peers", "branch", "adhoc")
CURVES = "curves"  # in a run's folder, see anl.tracking
PROCESS = "process"  # among restored runs: the id of the process that recomputes from them


@dataclass(frozen=True)
class RunSpec:
    """What one training is, beside its profile.

    target: one of anl.targets.kinds, or `none`: the plain detector, for which step, attention, loss weight, noise_on and
    gradient mean nothing. noise_on: the class whose noise is asked for. gradient: `joint`, or `detached` where the
    attention's gradient stops at the noise. pairs: training pairs used, 0 for all. formats: anl.data.formats.FORMATS.
    consistent: whether an augmented image is asked for the noise of the untouched one, or for none. baseline: a method of
    anl.baselines, for which all of this but the seed means nothing. branch: `stem`, or `shallow`, which the plain detector has
    too: it is the bare backbone then. reads: what the detector reads, see anl.detector.
    """

    target: str
    step: int
    attention: str
    loss_weight: float
    seed: int
    noise_on: str = "both"
    gradient: str = "joint"
    pairs: int = 0
    formats: str = LOSSLESS
    consistent: bool = False
    baseline: str = ""
    branch: str = BRANCHES[0]
    reads: str = READS[0]

    @property
    def method(self):
        """The slug without its seed: what the seeds of one method share."""
        parts = [self.baseline or "plain"]
        if self.target != "none":
            parts = [f"{self.target}-t{self.step}-{self.attention}"]
            parts += [f"w{self.loss_weight:g}"] if self.loss_weight != 1 else []
            parts += [self.noise_on] if self.noise_on != "both" else []
            parts += [self.gradient] if self.gradient != "joint" else []
            parts += ["consistent"] if self.consistent else []
        parts += [self.branch] if self.branch != BRANCHES[0] else []
        parts += [self.reads] if self.reads != READS[0] else []
        parts += [f"n{self.pairs}"] if self.pairs else []
        parts += [self.formats] if self.formats != LOSSLESS else []
        return "-".join(parts)

    @property
    def slug(self):
        return f"{self.method}-s{self.seed}"

    def identity(self, params):
        """Hash of everything that decides the run's weights and scores."""
        keys = ("seed", "data", "models", "prior", "families", "benchmark", "use", "detector", "training")
        parts = {key: dataclasses.asdict(params)[key] for key in keys}
        spec = dataclasses.asdict(self)
        # these came later: runs without them keep their identity
        for part, switch, usual in ((spec, "consistent", False), (spec, "baseline", ""), (spec, "branch", BRANCHES[0]),
                                    (spec, "reads", READS[0]), (parts["training"], "flip", False)):
            if part[switch] == usual:
                del part[switch]
        if self.baseline:
            parts["baselines"] = baselines.decisive(self.baseline, dataclasses.asdict(params.baselines))
        if params.evaluation.mirrored:
            parts["mirrored"] = True
        return files.identity({"spec": spec, **parts,
                               "views": [params.evaluation.views, params.evaluation.controls]})


def make_spec(params, target, step, attention, loss_weight, seed, *, noise_on="both", gradient="joint", pairs=0,
              formats=LOSSLESS, consistent=False, baseline="", branch=BRANCHES[0], reads=READS[0]):
    """A checked RunSpec; unused fields of the plain detector and of baselines take fixed values, so that each is one run."""
    for name, value, known in (("noise_on", noise_on, NOISE_ON), ("gradient", gradient, GRADIENTS), ("formats", formats, FORMATS),
                               ("branch", branch, BRANCHES), ("reads", reads, READS)):
        if value not in known:
            raise UserError(f"{name} cannot be '{value}'; choose one of {', '.join(known)}")
    if baseline:
        baselines.get(baseline)
        return RunSpec("none", params.method.step, "none", 0.0, seed, baseline=baseline)
    if target == "none":
        return RunSpec("none", params.method.step, "none", 0.0, seed, pairs=pairs, formats=formats, branch=branch, reads=reads)
    return RunSpec(target, step, attention, float(loss_weight), seed, noise_on, gradient, pairs, formats, consistent,
                   branch=branch, reads=reads)


def specs_of(params, **changes):
    """The method with some of its fields changed, for every seed of the profile; target="none" is the plain detector.

    changes: fields of RunSpec, for example step=10 or loss_weight=0.
    """
    m = params.method
    fields = {"target": m.target, "step": m.step, "attention": m.attention, "loss_weight": m.loss_weight, **changes}
    return [make_spec(params, seed=seed, **fields) for seed in params.runs.seeds]


def main_specs(params):
    """The plain detector and the method, for every seed."""
    return specs_of(params, target="none") + specs_of(params)


def step_specs(params, steps=None):
    """The method at each step (default: method.step and runs.steps), for every seed."""
    steps = sorted({params.method.step, *params.runs.steps}) if steps is None else steps
    return [spec for step in steps for spec in specs_of(params, step=step)]


def attention_specs(params, attentions=None):
    """The method with each attention (default: method.attention and runs.attentions), for every seed."""
    names = [*params.runs.attentions, params.method.attention] if attentions is None else attentions
    return [spec for name in names for spec in specs_of(params, attention=name)]


def target_specs(params, targets=None):
    """The method with each target (default: method.target, runs.targets and runs.priors), for every seed."""
    names = [params.method.target, *params.runs.targets, *params.runs.priors] if targets is None else targets
    return [spec for name in names for spec in specs_of(params, target=name)]


def experiment_specs(params):
    """What the experiments of profile `full` train beside the above: dict group -> list of specs, for every seed."""
    r = params.runs
    fields = {
        "loss_weight": [{"loss_weight": weight} for weight in r.loss_weights] + [{"noise_on": name} for name in r.noise_on],
        "attention_loss": [{"attention": name, "loss_weight": 0} for name in r.quiet_attentions]
                          + [{"gradient": name} for name in r.gradients],
        "sample_size": [{"pairs": pairs, **change} for pairs in r.pairs for change in ({"target": "none"}, {})],
        "anl_plus": [{"target": name} for name in r.plus_targets]
                    + [{"target": name, "consistent": True} for name in r.consistent_targets]
                    + [{"reads": name} for name in r.reads]
                    + [{"reads": name, "target": "none"} for name in r.plain_reads],
        "peers": [{"baseline": name} for name in r.baselines],
        "branch": [{"branch": name, **change} for name in r.branches for change in ({"target": "none"}, {})],
        "leaky": [{"formats": name, "target": "none"} for name in r.formats]
                 + [{"formats": "leaky", "step": step} for step in r.leaky_steps]}
    return {group: [spec for change in changes for spec in specs_of(params, **change)]
            for group, changes in fields.items()}


def run_folder(params, spec, group, root="runs"):
    """Where a run lies. The profile's own loss weight is not part of the name, so that dvc.yaml can name the folder."""
    if spec.target != "none" and spec.loss_weight == params.method.loss_weight:
        spec = dataclasses.replace(spec, loss_weight=1.0)
    return Path(root) / params.profile / group / spec.slug


def train_run(spec, params, group, root="runs"):
    """Train and score one run; its folder appears whole or not at all. Returns the folder.

    Several processes that have joined (anl.processes) share the work; the main one writes.
    """
    if group not in GROUPS:
        raise UserError(f"there is no group '{group}'; choose one of {', '.join(GROUPS)}")
    folder = run_folder(params, spec, group, root)
    started, worked = time.monotonic(), time.process_time()
    identity = spec.identity(params)
    temporary = folder.with_name(f".{folder.name}.new")
    processes.agreed(lambda: shutil.rmtree(temporary, ignore_errors=True))
    trained, _ = train.fit_detector(spec, params, identity=identity, curves=temporary / CURVES)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    table = predict.score_benchmark(trained, params, device, spec.formats)
    trained = trained.cpu().to(memory_format=torch.contiguous_format)
    count = processes.here().count
    about = {
        "spec": dataclasses.asdict(spec), "identity": identity, "group": group, "device": device,
        "precision": arithmetic.in_use(params.training.precision, device),
        "wall_seconds": time.monotonic() - started, "cpu_seconds": time.process_time() - worked,
        "threads": torch.get_num_threads(), "parameters": sum(p.numel() for p in trained.parameters()),
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "versions": {"anl": __version__, "torch": torch.__version__, "python": platform.python_version()},
        **({"processes": count} if count > 1 else {})}

    def write():
        detector.save(trained, temporary / "model.safetensors")
        predict.write_predictions(temporary, table)
        files.write_json(temporary / "run.json", about)
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)

    processes.agreed(write)
    return folder


def find_run(spec, params, root="runs"):
    """The folder of a finished run with this identity, or None."""
    wanted = spec.identity(params)
    for group in GROUPS:
        folder = run_folder(params, spec, group, root)
        if (folder / "run.json").is_file() and files.read_json(folder / "run.json")["identity"] == wanted:
            return folder
    return None


def find_or_train(specs, params, root="runs"):
    """dict spec -> folder; what does not exist yet is trained into runs/<profile>/adhoc/.

    Where saved scores were restored (anl.saved) it is those runs that are found; raises UserError on one that is not saved.
    """
    if is_restored(params, root):
        found = {spec: _restored_run(spec, params, root) for spec in specs}
        if lost := [spec.slug for spec, folder in found.items() if folder is None]:
            raise UserError(f"the scores of {', '.join(lost)} are not saved; `anl notebook` trains what is missing, and "
                            "`anl predictions` saves it")
        return found
    return {spec: find_run(spec, params, root) or train_run(spec, params, "adhoc", root) for spec in specs}


def is_restored(params, root="runs"):
    """Whether a recomputation from saved scores is under way, see anl.saved; what a killed one left does not count."""
    try:
        os.kill(int((Path(root) / params.profile / predict.RESTORED / PROCESS).read_text()), 0)
    except (OSError, ValueError):
        return False
    return True


def _restored_run(spec, params, root):
    folder = run_folder(params, spec, predict.RESTORED, root)
    same = (folder / "run.json").is_file() and files.read_json(folder / "run.json")["identity"] == spec.identity(params)
    return folder if same else None
