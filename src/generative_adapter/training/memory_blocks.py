"""Freed memory that a process keeps for its next step instead of giving it back to the system.

A training step on a CPU asks for some gigabytes in large blocks and frees them all. glibc returns large blocks at once,
and the system hands out fresh, zeroed pages in the next step, which can take a third of the time. Leaves out: other
systems and C libraries, where nothing happens, and GPUs, whose memory torch keeps itself.
"""

from __future__ import annotations

import ctypes
import platform
import sys

# Parameters of glibc's mallopt, malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
_SETTINGS = {
    _MMAP_MAX: 0,  # large blocks come from the heap as well
    _TRIM_THRESHOLD: -1,  # its end is never given back
    _TOP_PAD: 256 * 2**20,  # bytes that it grows by
}


def keep_memory_blocks() -> bool:
    """Makes the C library keep freed memory, for the rest of the process; without glibc on Linux nothing happens.

    Returns:
        Whether it does so now.
    """
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        return False
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    return all(set_option(name, value) == 1 for name, value in _SETTINGS.items())
