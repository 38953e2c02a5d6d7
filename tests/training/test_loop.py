"""The training loop: exact resume, interruption, errors, and two processes against one."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from anl import seeds
from anl.io import UserError
from anl.training.device import make_accelerator
from anl.training.loop import Checkpoint, Part, fit, learning_rate_factor

ROOT = Path(__file__).resolve().parents[2]
STEPS = 12


def train(folder, *, at=None, action=None, settings="p", steps=STEPS, **options):
    """Fit two small networks with dropout and batch norm together; returns (state, curve). `action` runs in step `at`."""
    torch.manual_seed(0)
    models = {"a": nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.2)), "b": nn.Linear(4, 1)}

    def loss_at(step, part):
        if step == at:
            action()
        x = torch.randn(8, 4, generator=seeds.torch_generator(1, "batch", step))
        loss = (models["b"](models["a"](part.of(x))) - part.of(x).sum(1, keepdim=True)).square().sum() / 8
        return {"loss": loss, "half": loss / 2, "nothing": None}

    options = {"ema": 0.9, "checkpoint_seconds": -1, "every": 3, **options}
    curve = fit(models, loss_at, steps=steps, learning_rate=0.01, accelerator=make_accelerator("fp32"), name="test",
                checkpoint=Checkpoint(folder, "test", settings), **options)
    return {f"{key}.{name}": value for key, model in models.items() for name, value in model.state_dict().items()}, curve


def same(one, other):
    return one[1] == other[1] and all(torch.equal(one[0][key], other[0][key]) for key in one[0])


class Killed(BaseException):
    """Stands for a kill: nothing of the loop handles it."""


def kill():
    raise Killed


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    return train(tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize("at", range(STEPS))
def test_killed_at_any_step_and_resumed_is_bit_identical(tmp_path, uninterrupted, at):
    with pytest.raises(Killed):
        train(tmp_path, at=at, action=kill)
    assert same(train(tmp_path, at=at - 1 if at else None, action=kill), uninterrupted)  # would die if it began again


@pytest.fixture(params=[signal.SIGINT, signal.SIGTERM])
def number(request):
    """A signal that is handled: a job in the background ignores SIGINT, and so does a training there."""
    before = signal.signal(request.param, signal.default_int_handler)
    yield request.param
    signal.signal(request.param, before)


def test_a_signal_finishes_the_step_and_leaves_a_checkpoint(tmp_path, uninterrupted, number):
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, at=5, action=lambda: os.kill(os.getpid(), number), checkpoint_seconds=1000)
    (file,) = tmp_path.iterdir()
    assert torch.load(file, weights_only=True)["step"] == 6
    assert signal.getsignal(number) is signal.default_int_handler
    assert same(train(tmp_path, at=5, action=kill), uninterrupted)


def test_a_damaged_checkpoint_is_started_again_with_a_line_and_runs_no_code(tmp_path, uninterrupted, capsys):
    with pytest.raises(Killed):
        train(tmp_path, at=5, action=kill)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:500])
    assert same(train(tmp_path), uninterrupted)
    torch.save({"step": Path("a pickled object")}, file)
    assert same(train(tmp_path), uninterrupted)
    assert capsys.readouterr().err.count("cannot be read") == 2


def test_a_checkpoint_of_other_settings_is_not_resumed(tmp_path):
    with pytest.raises(Killed):
        train(tmp_path, at=5, action=kill, settings="p")
    with pytest.raises(Killed):
        train(tmp_path, at=2, action=kill, settings="q")  # reaches step 2: it began at 0


def test_a_checkpoint_of_other_processes_is_refused(tmp_path):
    Checkpoint(tmp_path, "test", "p").save({"step": 3, "processes": 2})
    with pytest.raises(UserError, match="written by 2 processes, and this training has 1; start as many, or delete"):
        train(tmp_path)


def test_non_finite_loss_names_step_and_samples():
    model = nn.Linear(1, 1)
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(UserError, match=r"test: the loss is not finite at step 1 \(samples cat\\x1b, dog\); lower the learning"):
        fit({"m": model}, lambda step, part: model.weight.sum() * float("nan"), steps=5, learning_rate=0.1, name="test",
            accelerator=make_accelerator("fp32"), samples_at=lambda step, part: ["cat\x1b", "dog"])
    assert all(torch.equal(one, other) for one, other in zip(before, model.parameters(), strict=True))


def test_equals_a_plain_pytorch_loop():
    torch.manual_seed(0)
    model, reference = nn.Linear(4, 1), nn.Linear(4, 1)
    reference.load_state_dict(model.state_dict())
    batches = [torch.randn(8, 4, generator=seeds.torch_generator(1, step)) for step in range(30)]
    loss = lambda network, x: (network(x) - x.sum(1, keepdim=True)).square().mean()
    curve = fit({"m": model}, lambda step, part: loss(model, batches[step]), steps=30, learning_rate=0.05, weight_decay=0.1,
                warmup_steps=3, final_learning_rate=0.1, clip_norm=0.5, accelerator=make_accelerator("fp32"), every=10)
    optimiser = torch.optim.AdamW(reference.parameters(), 0.05, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: learning_rate_factor(step, 30, 3, 0.1))
    for x in batches:
        optimiser.zero_grad()
        value = loss(reference, x)
        value.backward()
        nn.utils.clip_grad_norm_(reference.parameters(), 0.5)
        optimiser.step()
        schedule.step()
    torch.testing.assert_close(model.state_dict(), reference.state_dict(), rtol=1e-5, atol=1e-6)
    assert [point["step"] for point in curve] == [10, 20, 30]
    assert curve[-1]["loss"] == pytest.approx(value.item(), rel=1e-4)


def test_ema_is_the_average_of_the_weights_and_is_what_is_validated():
    def run(ema):
        torch.manual_seed(0)
        model, history, validated = nn.Linear(2, 1, bias=False), [], []

        def loss_at(step, part):
            history.append(model.weight.detach().clone())
            return (model(torch.ones(3, 2)) - 1).square().mean()

        fit({"m": model}, loss_at, steps=20, learning_rate=0.1, ema=ema, accelerator=make_accelerator("fp32"), every=20,
            on_point=lambda point: validated.append((model.training, model.weight.clone())))
        return [*history, model.weight.detach()], validated

    weights, _ = run(0)  # before the first update, and after each
    average = weights[0].clone()
    for step, weight in enumerate(weights[1:]):
        decay = min(0.5, (step + 1) / (step + 10))
        average = decay * average + (1 - decay) * weight
    averaged, ((training, validated),) = run(0.5)
    torch.testing.assert_close(averaged[-1], average)
    assert not training and torch.equal(validated, averaged[-1])


def test_validation_changes_nothing_of_the_training(tmp_path, uninterrupted):
    def disturb(point):
        torch.rand(3)
        return {"extra": point["step"]}

    state, curve = train(tmp_path, on_point=disturb)
    assert all(torch.equal(state[key], uninterrupted[0][key]) for key in state)
    assert [point["extra"] for point in curve] == [3, 6, 9, 12]


def test_frozen_parameters_stay():
    model = nn.Sequential(nn.Linear(2, 2).requires_grad_(False), nn.Linear(2, 1))
    frozen, trained = model[0].weight.clone(), model[1].weight.clone()
    fit({"m": model}, lambda step, part: model(torch.ones(1, 2)).sum(), steps=2, learning_rate=0.1,
        accelerator=make_accelerator("fp32"))
    assert torch.equal(model[0].weight, frozen) and not torch.equal(model[1].weight, trained)


def test_parts_partition_a_batch():
    rows = torch.arange(7)
    parts = [Part(index, 3).of(rows) for index in range(3)]
    assert sorted(torch.cat(parts).tolist()) == rows.tolist() and max(map(len, parts)) - min(map(len, parts)) <= 1


def test_learning_rate_warms_up_and_decays():
    factors = [learning_rate_factor(step, 1000, 50, 0.02) for step in range(1000)]
    assert factors[0] == 1 / 50 and max(factors) == pytest.approx(1) and factors[-1] == pytest.approx(0.02, abs=1e-4)
    assert factors[:50] == sorted(factors[:50]) and factors[50:] == sorted(factors[50:], reverse=True)
    assert learning_rate_factor(0, 5, 50) == 1.0


def tiny(folder, fail=False):
    """Train a net without batch statistics; returns its weights and losses."""
    torch.manual_seed(int(os.environ.get("RANK", "0")))  # each process would begin differently: the first one's count
    model = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 1))

    def loss_at(step, part):
        x = torch.randn(9, 4, generator=seeds.torch_generator(1, step))
        loss = (model(part.of(x)) - part.of(x).sum(1, keepdim=True)).square().sum() / len(x)
        return loss * float("nan") if fail and step == 2 and part.index == 1 else loss

    curve = fit({"m": model}, loss_at, steps=10, learning_rate=0.01, every=2, name="test",
                accelerator=make_accelerator("fp32"), checkpoint=Checkpoint(folder, "t", "p"), checkpoint_seconds=-1,
                samples_at=lambda step, part: part.of([f"image {row}" for row in range(9)]))
    return model.state_dict(), [point["loss"] for point in curve]


PROGRAM = """
import os, sys, torch
from tests.training import test_loop
from anl.io import UserError
folder, rank = sys.argv[1], os.environ["RANK"]
torch.save(test_loop.tiny(folder), f"{folder}/{rank}.result")
try:
    test_loop.tiny(folder + "/failed", fail=True)
except UserError as problem:
    open(f"{folder}/{rank}.txt", "w").write(str(problem))
torch.distributed.destroy_process_group()
"""


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """Folder with the results of PROGRAM in two gloo processes, in the environment that `accelerate launch` sets."""
    folder = tmp_path_factory.mktemp("two")
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = str(found.getsockname()[1])
    environment = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1",
                   "ACCELERATE_USE_CPU": "true"}
    started = [subprocess.Popen([sys.executable, "-c", PROGRAM, folder], cwd=ROOT, stderr=subprocess.PIPE, text=True,
                                env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in (0, 1)]
    messages = [process.communicate(timeout=120)[1] for process in started]
    assert [process.returncode for process in started] == [0, 0], messages
    return folder


def test_two_processes_give_the_trajectory_of_one(two_processes, tmp_path):
    alone = tiny(tmp_path)
    both = [torch.load(two_processes / f"{rank}.result") for rank in (0, 1)]
    for weights, losses in both:
        torch.testing.assert_close(weights, alone[0], rtol=0, atol=1e-5)
        assert losses == pytest.approx(alone[1], abs=1e-5)
    assert all(torch.equal(both[0][0][key], both[1][0][key]) for key in alone[0])


def test_non_finite_loss_in_one_process_stops_both_with_the_same_line(two_processes):
    lines = [(two_processes / f"{rank}.txt").read_text() for rank in (0, 1)]
    assert lines[0] == lines[1]
    assert "not finite at step 3 in process 1 of 2 (samples image 1, image 3, image 5, image 7)" in lines[0]
