"""One command in several processes: starting them on this machine, and one line when one of them fails.

torch's elastic launcher starts the processes and stops all when one ends badly; Accelerate reads what it leaves in their
environment, as it does under `accelerate launch`, torchrun or a cluster's own launcher.
"""

import contextlib
import io
import os
import signal
import sys
import traceback
import uuid

from anl.errors import UserError
from anl.machine import cores

SPREAD = ("train", "target", "predict", "perturb", "families", "paper")  # commands that share their work
OURS = "ANL_LAUNCHED"  # set where this module has started the processes, and will tell of one that was killed


def asked():
    """How many processes the launcher that started this one has started, from the environment; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def wanted(command, given, settings):
    """How many processes to start for a command: 1 where a launcher has started this one already.

    given: of --processes, or None; settings: a callable that returns the profile. Raises UserError on a command that does
    not share its work.
    """
    if command not in SPREAD:
        if asked() > 1 or (given or 1) > 1:
            raise UserError(f"this command runs in one process; those that share their work are {', '.join(SPREAD)}")
        return 1
    if asked() > 1:
        return 1
    count = settings().launch.processes if given is None else given
    if count is None:
        import torch

        count = max(1, torch.cuda.device_count())
    if count < 1:
        raise UserError(f"--processes {count}: at least 1 process is needed")
    _check_devices(count)
    return count


def _check_devices(count):
    if count > 1:
        import torch

        if 0 < torch.cuda.device_count() < count:
            raise UserError(f"{count} processes need a GPU each, and {torch.cuda.device_count()} are here; lower --processes, "
                            "or launch.processes of the profile")


def start(arguments, count, program=("-m", "anl.cli")):
    """Run `anl ARGUMENTS` in `count` processes of this machine; returns the exit status, as of anl.cli.main. program: what
    Python runs, which calls `share`."""
    import logging

    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # pages, for what is one line below
    threads = str(max(1, cores() // count))
    os.environ.update({OURS: "1", "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", threads)})
    config = LaunchConfig(1, 1, count, run_id=uuid.uuid4().hex, rdzv_backend="c10d", rdzv_endpoint="127.0.0.1:0",
                          local_addr="127.0.0.1", max_restarts=0, logs_specs=DefaultLogsSpecs())
    try:
        elastic_launch(config, sys.executable)(*program, *arguments)
    except ChildFailedError as failure:
        return _status(failure.failures, count)
    except SignalException:
        raise KeyboardInterrupt from None
    return 0


def _status(failures, count):
    """The exit status of processes that failed; a line for one that was killed, which could not say so itself."""
    for rank, failure in sorted(failures.items()):
        if failure.exitcode < 0 and -failure.exitcode != signal.SIGTERM:
            name = signal.Signals(-failure.exitcode).name
            hint = ", perhaps for want of memory" if name == "SIGKILL" else ""
            raise UserError(f"process {rank} of {count} was killed ({name}{hint}), and the others were stopped; run the same "
                            "command again to go on from here")
    return max((failure.exitcode for failure in failures.values()), default=1) or 1


def share(call, name, full_disk):
    """Run `call` as one of several processes; returns the exit status. The main one prints the result, and the first one to
    fail the reason. name: the command. full_disk: error -> whether it means a full disk."""
    from anl import processes

    try:
        processes.join()
        with contextlib.redirect_stdout(sys.stdout if processes.here().main else io.StringIO()):
            status = call() or 0
        processes.leave()
        return status
    except UserError as problem:
        return _report(name, problem, str(problem))
    except Exception as problem:
        return _report(name, problem, "no space left on the disk" if full_disk(problem) else None)


def _report(name, problem, line):
    """Tell of an error, once for all processes. line: the error in one line if the user can mend it, else None. What the
    others meet when the first to fail has gone is no news."""
    from anl import processes

    me = processes.here()
    first = not isinstance(problem, processes.OtherFailed) and _first()
    lost = line is None and _connection_lost(problem)
    if not first or (lost and os.environ.get(OURS)):
        return 2
    if lost:
        line = f"another process has gone, and took the connection with it ({str(problem).splitlines()[0]})"
    if line is None:
        traceback.print_exception(problem)
        line = f"{type(problem).__name__}: {problem}"
    print(f"{name}: process {me.index} of {me.count}: {line}", file=sys.stderr, flush=True)
    return 2


def _first():
    """Whether no other process has failed before this one, by a counter in the store that all are connected to."""
    from torch.distributed import distributed_c10d

    try:
        return distributed_c10d._get_default_store().add("anl-failed", 1) == 1
    except Exception:  # the store went down with the process that held it, which has spoken
        return False


def _connection_lost(problem):
    from torch.distributed import DistError

    words = ("gloo", "nccl", "connection closed by peer", "connection reset", "socket")
    return isinstance(problem, DistError) or (isinstance(problem, RuntimeError)
                                              and any(word in str(problem).lower() for word in words))
