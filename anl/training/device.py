"""The one place that chooses the device, the precision and the determinism of a training or an evaluation."""

import contextlib
import ctypes
import datetime
import os
import sys

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
        Of autocast; see `effective_precision`.

    Raises
    ------
    UserError
        If the precision is unknown, or fp16 and there is no GPU.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
    device = default_device()
    used = effective_precision(precision, device)
    if used == "fp16" and device == "cpu":
        raise UserError("training.precision fp16 needs a GPU, and there is none here; choose bf16 or fp32")
    torch.use_deterministic_algorithms(True, warn_only=device == "cuda")
    torch.utils.deterministic.fill_uninitialized_memory = False  # a debugging aid that costs time
    torch.backends.cudnn.benchmark = False  # would choose kernels by timing
    torch.backends.cudnn.allow_tf32 = False  # fp32 is fp32, as in scoring
    keep_freed_memory()
    mixed = "no" if used == "fp32" else used
    # Accelerate fixes the precision for a whole Python process; here each training of a notebook has its own
    if AcceleratorState._shared_state and AcceleratorState().mixed_precision != mixed:
        AcceleratorState._reset_state()
    return Accelerator(mixed_precision=mixed, cpu=device == "cpu", kwargs_handlers=[InitProcessGroupKwargs(timeout=WAIT)])


def synchronise_batch_norm(model, accelerator):
    """Let batch normalisation see the batch of all processes; returns the model, whose parameters stay the same objects.

    On CUDA every batch norm becomes `nn.SyncBatchNorm`. It does not exist for CPUs (gloo): there each process normalises
    its own share of a batch, and `anl.training.loop.fit` averages the running statistics over processes, so that all hold
    the same model. Such a training differs from one in a single process; a line on stderr says so.
    """
    if accelerator.num_processes == 1:
        return model
    if accelerator.device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    if accelerator.is_main_process and any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules()):
        print(f"batch norm sees 1/{accelerator.num_processes} of each batch: CPU processes cannot share its statistics. "
              "Use --jobs instead of several processes for results that equal those of one process", file=sys.stderr)
    return model


def keep_freed_memory():
    """Let malloc keep freed memory in this process and its children.

    glibc returns blocks of a few megabytes, such as activations, to the system when they are freed; mapping and zeroing
    them again for each layer takes up to half of the time of a network on a CPU. The user's own MALLOC_ settings win.
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
