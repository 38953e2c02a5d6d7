"""What the operating system says of memory and processor cores, alike on Linux, macOS and Windows."""

import os
import sys


def cores():
    """Number of processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS and Windows
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def peak_memory_mb(usage):
    """Peak resident memory, MiB, of a result of `resource.getrusage` or `os.wait4`.

    `ru_maxrss` counts KiB on Linux and the BSDs, and bytes on macOS.
    """
    return usage.ru_maxrss / (1024**2 if sys.platform == "darwin" else 1024)
