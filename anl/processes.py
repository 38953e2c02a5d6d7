"""Several processes that share one command, under Accelerate: who this one is, and how work is shared and gathered.

Whole batches are shared, never single images: every batch holds the same images as in one process, so that what is
computed of it is the same whoever computes it. A process alone takes every batch, and nothing is sent.
"""

import datetime
from dataclasses import dataclass

import torch
from torch import distributed

from anl.errors import UserError

WAIT = datetime.timedelta(hours=6)  # for a process that waits while the main one computes or writes alone


class OtherFailed(UserError):
    """An error that another process has met and tells of: this one stops without a word."""


@dataclass(frozen=True)
class Here:
    """index: of this process, from 0, over all machines. count: how many there are."""

    index: int = 0
    count: int = 1

    @property
    def main(self):
        """Whether this process writes files and speaks for all."""
        return self.index == 0


def join():
    """Join the others that a launcher has started (anl.launch.asked). Call it once, before any work."""
    from accelerate import PartialState

    PartialState(cpu=not torch.cuda.is_available(), timeout=WAIT)


def accelerator(precision, log_with=None):
    """An Accelerator that computes in `precision` (fp32, bf16 or fp16), as arithmetic.in_use gives it.

    Accelerate fixes the format for a whole Python process and refuses another; here each training, in a notebook say, has its
    own, so what it has fixed is forgotten first. The processes that have joined stay joined.
    """
    from accelerate import Accelerator, DistributedDataParallelKwargs
    from accelerate.state import AcceleratorState

    mixed = "no" if precision == "fp32" else precision
    if AcceleratorState._shared_state and AcceleratorState().mixed_precision != mixed:
        AcceleratorState._reset_state()
    # every process computes the same running statistics (anl.sync_norm): none need be sent
    return Accelerator(mixed_precision=mixed, log_with=log_with, kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)])


def leave():
    """Part from the others; does nothing in a process alone."""
    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def here():
    """This process among those that have joined."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return Here()
    return Here(distributed.get_rank(), distributed.get_world_size())


def spread(function, count, size, everywhere=True, progress=iter):
    """[function(slice)] over range(count) cut into batches of `size`, in order; each process computes its share.

    function: slice -> an array or tensor of as many rows as the slice. everywhere: whether every process gets the list, or
    the main one alone (None for the others). progress: what a process's own batches pass through, for example tqdm.
    Raises UserError if rows were lost or stand twice.
    """
    me, starts = here(), range(0, count, size)
    mine = [function(slice(start, min(start + size, count))) for start in progress(starts[me.index::me.count])]
    if me.count == 1:
        shares = [mine]
    elif everywhere:
        shares = gathered(mine)
    else:
        shares = [None] * me.count if me.main else None
        distributed.gather_object(mine, shares)
        if not me.main:
            return None
    batches = [shares[number % me.count][number // me.count] for number in range(len(starts))]
    if sum(map(len, shares)) != len(starts) or sum(map(len, batches)) != count:
        raise UserError(f"{me.count} processes made {sum(map(len, batches))} results of {count} images; run the command again")
    return batches


def gathered(value):
    """[value of process 0, of process 1, ...] on every process."""
    me = here()
    if me.count == 1:
        return [value]
    values = [None] * me.count
    distributed.all_gather_object(values, value)
    return values


def agreed(decide):
    """What `decide()` returns on the main process, on all: for what is read from files that others may be writing.

    A UserError of the main process stops all.
    """
    if here().count == 1:
        return decide()
    found, failed = [None, None], None
    if here().main:
        try:
            found = [decide(), None]
        except UserError as problem:
            found, failed = [None, str(problem)], problem
    distributed.broadcast_object_list(found)
    if failed:
        raise failed
    if found[1] is not None:
        raise OtherFailed(found[1])
    return found[0]


def resumed(checkpoint):
    """The state in an anl.fitting.Checkpoint, or None. Raises UserError if it is of another number of processes, whose sums
    round otherwise, or not all processes see it."""
    me, state = here(), checkpoint.load()
    steps = gathered(state["step"] if state else 0)
    if len(set(steps)) > 1:
        raise UserError(f"{checkpoint.path} is not the same file for all processes; put .cache/anl on a disk they share")
    made_by = state.get("processes", 1) if state else me.count
    if made_by != me.count:
        raise UserError(f"{checkpoint.path} was left by a training in {made_by} process{'es' if made_by > 1 else ''}, and this "
                        f"is one in {me.count}; run it again with --processes {made_by}, or delete the file to start afresh")
    return state


def summed(values, device="cpu"):
    """The sum over processes of each of a list of numbers, as floats."""
    if here().count == 1:
        return [float(value) for value in values]
    total = torch.tensor([float(value) for value in values], dtype=torch.float64, device=device)
    distributed.all_reduce(total)
    return total.tolist()


def any_of(flag, device="cpu"):
    """Whether `flag` (a bool) holds on any process; all get the same answer."""
    return summed([flag], device)[0] > 0
