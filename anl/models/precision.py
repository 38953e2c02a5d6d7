"""The numerical precision of a network's computation on a given device."""

import torch

from anl.io import pick

DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def effective_precision(requested, device):
    """The precision in use on `device`: bf16 becomes fp32 on a CPU without bf16 arithmetic. UserError if it is unknown.

    Such a CPU (x86 without AVX-512, many laptops) only emulates bf16 and takes ten times as long as in fp32.
    """
    pick("precision", requested, DTYPES)
    return "fp32" if requested == "bf16" and torch.device(device).type == "cpu" and not cpu_has_bf16() else requested


def cpu_has_bf16():
    """Whether oneDNN, which computes PyTorch's convolutions on CPUs, has bf16 kernels for this one."""
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def autocast(device, precision):
    """Context manager in which networks on `device` compute in `effective_precision(precision, device)`."""
    dtype = DTYPES[effective_precision(precision, device)]
    return torch.autocast(torch.device(device).type, dtype or torch.bfloat16, enabled=dtype is not None)
