"""Memory that tensors have left is kept by the process for the next ones.

glibc's malloc gives blocks of a few megabytes back to the system as soon as they are free. A network's activations are such
blocks: each layer's would be mapped anew and filled with zeros by the kernel, which took half the time of scoring on a CPU.
"""

import ctypes
import os

LARGE = 2**31 - 1  # bytes; the most that mallopt takes
# glibc's name in the environment of a process that starts, and its number for mallopt in one that runs (malloc.h)
SETTINGS = {"MALLOC_MMAP_THRESHOLD_": -3, "MALLOC_TRIM_THRESHOLD_": -1}


def keep_freed_memory():
    """Keep freed memory in this process and in those that it starts; returns whether this one does.

    What the user's environment sets stays as it is. Does nothing where malloc is not glibc's (macOS, Windows, musl).
    """
    wanted = {name: number for name, number in SETTINGS.items() if name not in os.environ}
    os.environ.update(dict.fromkeys(wanted, str(LARGE)))
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(wanted) and all(mallopt(number, LARGE) == 1 for number in wanted.values())
