"""The number format that a network is computed in: bf16 where the processor computes in it, fp32 where it does not."""

import torch


def in_use(precision, device="cpu"):
    """`precision` (fp32, bf16 or fp16) as it is used on `device`: bf16 becomes fp32 on a CPU without bf16 arithmetic.

    Such a CPU (x86 without AVX-512, many a laptop) can only emulate bf16, and takes ten times as long as in fp32.
    """
    return "fp32" if precision == "bf16" and torch.device(device).type == "cpu" and not cpu_has_bf16() else precision


def cpu_has_bf16():
    """Whether oneDNN, which computes PyTorch's convolutions on CPUs, has bf16 kernels for this one."""
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
