"""The training loop: AdamW, warm-up and cosine decay, exact resume, on one device or several processes.

Batch k is a pure function of the seed and k. A run that is killed at any step and started again therefore sees the same
batches as an uninterrupted run and ends with bit-identical weights.
"""

import contextlib
import math
import os
import signal
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import gather_object
from torch import distributed
from tqdm.auto import tqdm

from anl.io import UserError, atomic_file, identity, printable, reason
from anl.training.device import sum_over_processes

__all__ = ["Checkpoint", "Part", "fit", "learning_rate_factor"]


@dataclass(frozen=True)
class Part:
    """One of `count` shares of a batch: rows index, index + count, index + 2 count, ...

    A batch is divided between processes, and between the micro-batches of gradient accumulation.
    """

    index: int = 0
    count: int = 1

    def of(self, rows):
        """This part of an array, tensor or list whose first axis is the batch."""
        return rows if self.count == 1 else rows[self.index::self.count]


class Checkpoint:
    """A file with the state of an unfinished training.

    Parameters
    ----------
    folder : path-like
        Must not be an output of DVC, so that the file survives a failed stage.
    name : str
        Start of the file's name.
    settings : JSON-able
        Everything that determines the weights. Its hash is part of the file's name, so that the checkpoint of another
        configuration is never resumed.
    """

    def __init__(self, folder, name, settings):
        self.path = Path(folder) / f"{name}-{identity(settings)}.pt"

    def load(self):
        """The saved state, or None. A file that cannot be read (truncated, say) is removed, with a line on stderr."""
        if not self.path.exists():
            return None
        try:
            return torch.load(self.path, weights_only=True, map_location="cpu")  # tensors and plain values; runs no code
        except Exception as problem:
            print(f"checkpoint {self.path} cannot be read ({reason(problem)}); starting again", file=sys.stderr)
            self.path.unlink(missing_ok=True)
            return None

    def save(self, state):
        """Write the state atomically."""
        with atomic_file(self.path) as temporary:
            torch.save(state, temporary)

    def remove(self):
        self.path.unlink(missing_ok=True)


def fit(models, loss_at, *, steps, learning_rate, accelerator, weight_decay=1e-4, warmup_steps=50,
        final_learning_rate=0.02, clip_norm=1.0, ema=0.0, accumulate=1, seed=0, checkpoint=None, checkpoint_seconds=45,
        name="training", every=None, on_point=None, samples_at=None):
    """Minimise `loss_at` with AdamW; the models are trained in place.

    Parameters
    ----------
    models : dict of str to nn.Module
        Trained together by one optimiser. Parameters with `requires_grad=False` stay as they are. Call `.train()` or
        `.eval()` before; each module is trained in the mode it is in.
    loss_at : callable (step, part) -> scalar Tensor, or dict of str to scalar Tensor or None with the key "loss"
        Loss of one `Part` of batch `step` (from 0), such that *the sum over parts is the loss of the batch*; for a mean
        over images, each part divides its sum by the size of the whole batch. Must depend on its arguments and the
        models only. Called under autocast.
    steps, learning_rate, weight_decay, warmup_steps, final_learning_rate
        Number of updates, settings of AdamW, and settings of `learning_rate_factor`.
    clip_norm : float
        Largest norm of the gradient; 0 for no limit.
    ema : float
        Decay of the exponential moving average of weights and running statistics (Polyak and Juditsky, 1992), in [0, 1).
        The average is used in `on_point` and returned. 0 uses the last weights. Early steps use a smaller decay.
    accelerator : accelerate.Accelerator
        With n processes each computes every n-th row of a batch, and gradients are summed. The weights are those of a
        single process up to rounding.
    accumulate : int
        Micro-batches per update and process. More of them need less memory and give the same gradient.
    seed : int
        Seeds torch's global generator at each step, for dropout.
    checkpoint : Checkpoint or None
        Where the state is saved; training resumes from it.
    checkpoint_seconds : float
        Time between checkpoints. Ctrl-C (or SIGTERM) finishes the current step and saves one; a second signal stops at once.
    name : str
        Shown in the progress bar and in error messages.
    every : int or None
        Steps between points of the curve; default: a hundredth of `steps`.
    on_point : callable (dict) -> dict or None
        Called in all processes with each point of the curve, with the models in eval mode and with averaged weights. The
        items that it returns are added to the point.
    samples_at : callable (step, part) -> list of str, or None
        Names of the samples of a part, for error messages.

    Returns
    -------
    list of dict
        The curve: step (from 1), learning_rate, the losses of that step's batch, and what `on_point` added.

    Raises
    ------
    UserError
        If a loss is not finite (the message names step and samples), or if the checkpoint was written by a different number
        of processes.
    KeyboardInterrupt
        After Ctrl-C or SIGTERM, once the checkpoint is written.
    """
    device, rank, processes = accelerator.device, accelerator.process_index, accelerator.num_processes
    for model in models.values():
        model.to(device)
    _broadcast(models)
    parameters = [p for model in models.values() for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, learning_rate, weight_decay=weight_decay, fused=True)
    # skips steps that overflow in fp16; accelerator.prepare would do so too, but keeps a reference to every optimiser
    optimiser = AcceleratedOptimizer(optimiser, device_placement=False, scaler=accelerator.scaler)
    tracked = parameters + _statistics(models)
    averages = [t.detach().clone() for t in tracked] if ema else []
    curve, start = [], 0

    if state := _resumable(checkpoint, processes):
        for key, model in models.items():
            model.load_state_dict(state["models"][key])
        optimiser.load_state_dict(state["optimiser"])
        if accelerator.scaler is not None:
            accelerator.scaler.load_state_dict(state["scaler"])
        averages = [t.to(device) for t in state["averages"]]
        curve, start = state["curve"], state["step"]

    def save(step):
        _average_buffers(models)
        if checkpoint and accelerator.is_main_process:
            checkpoint.save({"models": {key: model.state_dict() for key, model in models.items()},
                             "optimiser": optimiser.state_dict(), "averages": averages, "curve": curve, "step": step,
                             "processes": processes,
                             "scaler": accelerator.scaler.state_dict() if accelerator.scaler is not None else None})

    every = every or max(1, steps // 100)
    parts = processes * accumulate
    saved_at = time.monotonic()
    hidden = not accelerator.is_main_process or "TQDM_DISABLE" in os.environ
    bar = tqdm(total=steps, initial=start, desc=name, mininterval=2, disable=hidden or None, file=sys.stderr)
    with _signals() as stop, bar:
        for step in range(start, steps):
            rate = learning_rate * learning_rate_factor(step, steps, warmup_steps, final_learning_rate)
            for group in optimiser.param_groups:
                group["lr"] = rate
            optimiser.zero_grad(set_to_none=True)
            losses, bad = {}, []
            for number in range(accumulate):
                part = Part(rank + processes * number, parts)
                torch.manual_seed(((seed * 1_000_003 + step) * 4099 + part.index) % 2**63)  # so that dropout resumes exactly
                with accelerator.autocast():
                    found = loss_at(step, part)
                found = found if isinstance(found, dict) else {"loss": found}
                if not math.isfinite(found["loss"].item()):
                    bad.append(part)
                    continue
                accelerator.backward(found["loss"])
                for key, value in found.items():
                    if value is not None:
                        losses[key] = losses.get(key, 0) + value.detach()
            due = accelerator.is_main_process and time.monotonic() - saved_at > checkpoint_seconds
            # one small all-reduce per step, so that all processes stop and save at the same step
            failed, stopping, due = sum_over_processes([bool(bad), bool(stop), due], accelerator)
            if failed:
                raise _not_finite(name, step, bad, samples_at, rank, processes)
            _sum_gradients(parameters)
            accelerator.unscale_gradients(optimiser)
            if clip_norm:
                torch.nn.utils.clip_grad_norm_(parameters, clip_norm, foreach=True)
            optimiser.step()
            if ema:
                torch._foreach_lerp_(averages, [t.detach() for t in tracked], 1 - min(ema, (step + 1) / (step + 10)))

            bar.update()
            if (step + 1) % every == 0 or step + 1 == steps:
                values = sum_over_processes(losses.values(), accelerator)
                point = {"step": step + 1, "learning_rate": rate, **dict(zip(losses, values, strict=True))}
                if on_point:
                    _average_buffers(models)
                    with _evaluation(models, tracked, averages):
                        point |= on_point(dict(point)) or {}
                curve.append(point)
                bar.set_postfix(loss=f"{point['loss']:.4f}")
            if stopping or due:
                save(step + 1)
                saved_at = time.monotonic()
            if stopping:
                raise KeyboardInterrupt

    if averages:
        torch._foreach_copy_([t.data for t in tracked], averages)
    _average_buffers(models)
    return curve


def learning_rate_factor(step, steps, warmup_steps=50, final=0.02):
    """Share of the peak learning rate at `step` (from 0): linear warm-up, then a cosine down to `final`.

    The warm-up takes `warmup_steps`, but at most a tenth of `steps`.

    References
    ----------
    Loshchilov and Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", ICLR 2017 (without restarts).
    """
    warmup = max(1, min(warmup_steps, steps // 10))
    if step < warmup:
        return (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, steps - warmup))
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))


def _resumable(checkpoint, processes):
    """The state to resume from, or None; the same in all processes."""
    state = checkpoint.load() if checkpoint else None
    if len(set(gather_object([state["step"] if state else 0]))) > 1:
        raise UserError(f"processes read different checkpoints at {checkpoint.path}; put the folder on a shared disk")
    if state and state["processes"] != processes:
        raise UserError(f"{checkpoint.path} was written by {state['processes']} processes, and this training has {processes}; "
                        "start as many, or delete the file to begin again")
    return state


@contextlib.contextmanager
def _signals():
    """Collect SIGINT and SIGTERM in a list, so that the current step is finished; a second signal interrupts at once."""
    received = []
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        yield received
        return

    def handle(number, frame):
        if received:
            raise KeyboardInterrupt
        received.append(number)

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    before = {number: handler for number, handler in before.items() if handler not in (signal.SIG_IGN, None)}
    for number in before:
        signal.signal(number, handle)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _evaluation(models, tracked, averages):
    """Models in eval mode, without gradients, and with averaged weights if there are any; afterwards as before."""
    modes = {module: module.training for model in models.values() for module in model.modules()}
    weights = [t.detach().clone() for t in tracked] if averages else []
    try:
        for model in models.values():
            model.eval()
        with torch.no_grad():
            if averages:
                torch._foreach_copy_([t.data for t in tracked], averages)
            yield
    finally:
        if averages:
            torch._foreach_copy_([t.data for t in tracked], weights)
        for module, mode in modes.items():
            module.training = mode


def _not_finite(name, step, bad, samples_at, rank, processes):
    """The error of a loss that is not finite, the same in all processes."""
    samples = [str(sample) for part in bad for sample in (samples_at(step, part) if samples_at else [])]
    found = gather_object([(rank, samples)] if bad else [])
    samples = [sample for _, names in found for sample in names]
    where = f" in process {' and '.join(str(rank) for rank, _ in found)} of {processes}" if processes > 1 else ""
    listed = ", ".join(printable(sample) for sample in samples[:8]) + (", ..." if len(samples) > 8 else "")
    return UserError(f"{name}: the loss is not finite at step {step + 1}{where}" + (f" (samples {listed})" if samples else "")
                     + "; lower the learning rate, or use precision fp32")


def _broadcast(models):
    """Start all processes from the weights of the first."""
    if distributed.is_initialized():
        for model in models.values():
            for tensor in [*model.parameters(), *model.buffers()]:
                distributed.broadcast(tensor.data, 0)


def _sum_gradients(parameters):
    """Replace each gradient by its sum over processes, in one all-reduce."""
    if not distributed.is_initialized():
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([g.reshape(-1) for g in gradients])
    distributed.all_reduce(flat)
    parts = flat.split([g.numel() for g in gradients])
    torch._foreach_copy_(gradients, [part.view(g.shape) for part, g in zip(parts, gradients, strict=True)])


def _average_buffers(models):
    """Average running statistics over processes, and copy other buffers from the main process.

    Running statistics differ between processes if batch norm is not synchronised.
    """
    if distributed.is_initialized():
        averaged = {id(buffer) for buffer in _statistics(models)}
        for buffer in (buffer for model in models.values() for buffer in model.buffers()):
            if id(buffer) in averaged:
                distributed.all_reduce(buffer.data)
                buffer.data /= distributed.get_world_size()
            else:
                distributed.broadcast(buffer.data, 0)


def _statistics(models):
    """The running means and variances of batch norms."""
    return [buffer for model in models.values() for name, buffer in model.named_buffers()
            if name.rpartition(".")[2] in ("running_mean", "running_var")]
