"""How a process that makes and drops large arrays all the time keeps their memory instead of handing it back."""

from __future__ import annotations

import ctypes

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # malloc.h


def keep_freed_memory() -> bool:
    """Let the C library keep what is freed for what is asked for next: True where it can (glibc).

    As it comes it gives arrays of many megabytes back to the system at once, which clears every page anew when the next one
    is made: of rendering a scene on a CPU that was over 40 % of the time.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    return all(
        mallopt(option, value)
        for option, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, 64 * 2**20))
    )
