"""Device, precision and determinism of training and evaluation: the only module that sets them."""

import contextlib
import ctypes
import datetime
import os
import platform
import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import InitProcessGroupKwargs
from torch import nn

from anl.io import UserError
from anl.models.precision import effective_precision

__all__ = ["default_device", "keep_freed_memory", "make_accelerator", "sum_over_processes", "synchronise_batch_norm"]

WAIT = datetime.timedelta(hours=6)  # how long a process waits while the main one computes or writes alone
MALLOC_LIMIT = 2**31 - 1  # bytes; the largest value that mallopt takes
# glibc's names in the environment of a new process, and its parameter numbers for mallopt (malloc.h)
MALLOC_SETTINGS = {"MALLOC_MMAP_THRESHOLD_": -3, "MALLOC_TRIM_THRESHOLD_": -1}


def default_device():
    """"cuda" if there is a GPU, otherwise "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def make_accelerator(precision="fp32"):
    """An `accelerate.Accelerator` for the GPU if there is one, otherwise the CPU, with deterministic kernels.

    It joins the other processes that a launcher (`accelerate launch`, torchrun) started. On a CPU non-deterministic
    kernels raise an error. On CUDA they warn, because several common ones have no deterministic form; cuBLAS is
    deterministic if this function runs before CUDA is first used.

    Parameters
    ----------
    precision : {"bf16", "fp16", "fp32"}
        Precision of autocast; see `effective_precision`.

    Raises
    ------
    UserError
        If the precision is unknown, or is fp16 and there is no GPU.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
    device = default_device()
    used = effective_precision(precision, device)
    if used == "fp16" and device == "cpu":
        raise UserError("training.precision fp16 needs a GPU, and there is none here; choose bf16 or fp32")
    torch.use_deterministic_algorithms(True, warn_only=device == "cuda")
    torch.utils.deterministic.fill_uninitialized_memory = False  # a debugging aid that slows training down
    torch.backends.cudnn.benchmark = False  # benchmarking selects kernels by their measured time
    torch.backends.cudnn.allow_tf32 = False  # as in scoring
    keep_freed_memory()
    mixed = "no" if used == "fp32" else used
    # Accelerate fixes the precision once per Python process, but trainings in one notebook may differ in theirs
    if AcceleratorState._shared_state and AcceleratorState().mixed_precision != mixed:
        AcceleratorState._reset_state()
    return Accelerator(mixed_precision=mixed, cpu=device == "cpu", kwargs_handlers=[InitProcessGroupKwargs(timeout=WAIT)])


def synchronise_batch_norm(model, accelerator):
    """Compute batch-norm statistics over the batches of all processes.

    On CUDA every batch norm is replaced by `nn.SyncBatchNorm`, which does not exist for CPUs (gloo). On CPUs each process
    normalises its share of a batch, and `anl.training.loop.fit` averages the running statistics over processes, so that all
    have the same model. The result then differs from that of a single process; a line on stderr says so.

    Returns
    -------
    nn.Module
        The model. Its parameters are the same objects as before.
    """
    if accelerator.num_processes == 1:
        return model
    if accelerator.device.type == "cuda":
        from timm.layers import convert_sync_batchnorm

        return convert_sync_batchnorm(model)  # timm's, which keeps the activation inside its own batch norms
    if accelerator.is_main_process and any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules()):
        print(f"batch norm sees 1/{accelerator.num_processes} of each batch: CPU processes cannot share its statistics. "
              "Use --jobs instead of several processes for results that equal those of one process", file=sys.stderr)
    return model


def processor_name():
    """The processor's model. Rounding, and so the result of a training, differs between processors."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return platform.processor() or platform.machine()


def keep_freed_memory():
    """Let malloc keep freed memory in this process and its children.

    glibc returns blocks of a few megabytes, such as activations, to the system when they are freed; mapping and zeroing
    them again for each layer takes up to half of the time of a network on a CPU. MALLOC_ settings of the user are kept.
    """
    missing = {name: number for name, number in MALLOC_SETTINGS.items() if name not in os.environ}
    os.environ.update(dict.fromkeys(missing, str(MALLOC_LIMIT)))
    with contextlib.suppress(AttributeError, OSError, TypeError):  # macOS, Windows, musl
        mallopt = ctypes.CDLL(None).mallopt
        for number in missing.values():
            mallopt(number, MALLOC_LIMIT)


def sum_over_processes(values, accelerator):
    """The sum over processes of each number of a list, as floats."""
    if accelerator.num_processes == 1:
        return [float(value) for value in values]
    total = torch.tensor([float(value) for value in values], dtype=torch.float64, device=accelerator.device)
    return accelerator.reduce(total, "sum").tolist()
