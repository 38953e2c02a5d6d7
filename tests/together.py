"""What two processes do in tests/test_processes.py: `python together.py PLACE ACT`, started by anl.launch or torchrun."""

import os
import pickle
import signal
import sys
from pathlib import Path

import torch
from torch import nn

from anl import (
    detector,
    families_study,
    launch,
    params,
    predict,
    processes,
    robustness,
    runs,
    sync_norm,
    targets,
    train,
)
from anl.errors import UserError
from tests.conftest import tiny_settings

torch.set_num_threads(1)


def settings(place, **training):
    """The tiny world's profile, in full precision, with other training settings."""
    value = tiny_settings(place)
    value["training"] |= {"precision": "fp32", **training}
    value["evaluation"]["perturbations"] = {"jpeg": [50], "blur": [1]}
    return params.from_dict(value, "tiny")


def spec_of(profile, target="prior", **options):
    return runs.make_spec(profile, target, 10, "affinity", 1.0, 0, **options)


def fitted(place, cache, spec=None, **training):
    """(weights, curve) of one training."""
    profile = settings(place, **training)
    spec = spec or spec_of(profile)
    model, curve = train.fit_detector(spec, profile, identity=spec.identity(profile), cache=str(cache))
    return {key: value.clone() for key, value in model.state_dict().items()}, curve


def shares(me):
    """Batches, sums and errors: what anl.processes promises."""
    found = {count: processes.spread(lambda batch: list(range(batch.start, batch.stop)), count, 2) for count in (0, 1, 4, 7)}
    found["main alone"] = processes.spread(lambda batch: torch.arange(batch.start, batch.stop), 5, 2, everywhere=False)
    found["sum"] = processes.summed([me.index + 1, 0.5])
    found["any"] = (processes.any_of(me.index == 1), processes.any_of(False))
    try:
        processes.spread(lambda batch: [0], 3, 2)
    except UserError as problem:
        found["lost"] = str(problem)
    return found


def normalised(me):
    """Batch norm over 3 and 5 images in double precision; the whole batch's loss is the sum of both."""
    torch.manual_seed(0)
    x = torch.randn(8, 3, 4, 4, dtype=torch.float64)
    plain = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).double()
    model = sync_norm.synchronised(plain, "cpu")
    mine = (x[:3] if me.main else x[3:]).requires_grad_()
    model(mine).pow(3).sum().backward()
    gradients = [processes.gathered(p.grad) for p in model.parameters()]
    return {"type": type(model[1]).__name__, "x": processes.gathered(mine.grad), "parameters": gradients,
            "state": {key: value.clone() for key, value in model.state_dict().items()}}


def compute(place):
    """Targets, a training of uneven shares and the scores of a run that one process has trained."""
    profile = settings(place)
    for kind in ("prior", "shuffled"):
        targets.compute(profile, 10, kind, folder="together")
    run = Path("runs/tiny/adhoc") / spec_of(profile).slug
    table = predict.score_benchmark(detector.load(run / "model.safetensors"), profile)
    robustness.score_run(run, profile)
    families_study.score_run(run, profile)
    return {"scores": table, "run": runs.train_run(spec_of(profile), profile, "main"),
            "peer": fitted(place, "c2", spec_of(profile, "none", baseline="npr"))}


def double(place):
    """Trainings in double precision, where rounding has no time to grow: `float` is made to mean it. The second one's
    batches cannot be shared evenly."""
    torch.set_default_dtype(torch.float64)
    torch.Tensor.float = torch.Tensor.double
    return {"even": fitted(place, "c3", steps=12), "uneven": fitted(place, "c1", batch_size=10, accumulate=2, ema=0.5)}


def broken(place, me):
    """A loss that is not a number on process 1 alone."""
    honest = train.anl_loss

    def loss(*arguments):
        found = honest(*arguments)
        return found if me.main else {**found, "loss": found["loss"] * float("nan")}

    train.anl_loss = loss
    fitted(place, "stopped")


def die(me, how):
    """Process 1 ends in the middle, while the other waits for it."""
    if me.index == 1:
        if how == "refused":
            raise UserError("the disk is on fire; put it out")
        if how == "bug":
            raise KeyError("nothing here")
        os.kill(os.getpid(), signal.SIGKILL)
    processes.summed([1])


def killed(place, at):
    """A training that saves every step, killed after step `at`; 0: not killed."""
    train.CHECKPOINT_SECONDS = -1
    save = train.Checkpoint.save

    def save_and_die(self, state):
        save(self, state)
        if state["step"] == at:
            os.kill(os.getpid(), signal.SIGKILL)

    train.Checkpoint.save = save_and_die
    return fitted(place, "resumed" if at else "whole")


def main(place, act, *rest):
    me = processes.here()
    acts = {"all": lambda: {"shares": shares(me), "normalised": normalised(me), **compute(place), "whole": killed(place, 0),
                            "double": double(place)},
            "double": lambda: double(place), "broken": lambda: broken(place, me), "die": lambda: die(me, *rest),
            "killed": lambda: killed(place, int(rest[0])), "resume": lambda: fitted(place, "resumed")}
    os.chdir(place)
    made = acts[act]()
    with open(f"made-{act}-{me.index}-of-{me.count}.pickle", "wb") as stream:
        pickle.dump(made, stream)


if __name__ == "__main__":
    arguments = (Path(sys.argv[1]), *sys.argv[2:])
    if launch.asked() > 1:
        sys.exit(launch.share(lambda: main(*arguments), "anl test", lambda problem: False))
    main(*arguments)
