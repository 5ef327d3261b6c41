"""How much memory a process has: what is resident now, and the most that ever was."""

from __future__ import annotations

import os
from pathlib import Path


def resident(pid: int | str = "self") -> int | None:
    """Bytes of a process that are in RAM now; None where /proc does not say."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


def peak(pid: int | str = "self") -> int | None:
    """The most bytes of a process that were in RAM at one time; None where /proc does not say.

    getrusage would count in what the process that started this one had.
    """
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])
    except (OSError, ValueError, IndexError, StopIteration):
        return None
