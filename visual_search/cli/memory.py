"""How the C library deals with the memory of batches."""

import contextlib
import ctypes
import sys
from typing import Final

# By their numbers in malloc.h: M_TRIM_THRESHOLD, for which -1 is "never", M_MMAP_THRESHOLD, and
# M_ARENA_MAX, since the arenas that threads get of their own cannot hold such blocks.
_OPTIONS: Final = {-1: -1, -3: 1 << 30, -8: 1}


def keep_freed_memory() -> None:
    """Let the C library keep what one batch frees for the next.

    Before any thread is started, and so before NumPy is imported: glibc settles the number of
    arenas with the first one.

    What a network needs between its layers is more than glibc keeps unasked: it would go back to
    the kernel and come again as zeroed pages, layer after layer. That took 38 of 98 ms of processor
    time an image (efficientnet_lite0, fp32, batches of 32), and none with this. Other C libraries
    have no such switch.
    """
    if sys.platform != "linux":
        return
    with contextlib.suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        for option, value in _OPTIONS.items():
            mallopt(option, value)
