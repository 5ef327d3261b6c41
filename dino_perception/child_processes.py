"""Child processes that end with the process that started them, also when that is killed and can do nothing any more."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from typing import Any

_PR_SET_PDEATHSIG = 1  # prctl(2): the signal that the kernel sends when the parent's thread ends
_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def end_with_parent() -> None:
    """Of a process that `multiprocessing` started: end it at once when its parent ends. Linux does that by itself; a
    thread that waits for the pipe to the parent to close does it everywhere, and where the parent ended before this."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    _ask_the_kernel()

    def watch() -> None:
        parent.join()
        os.kill(os.getpid(), signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM)

    threading.Thread(target=watch, name="parent", daemon=True).start()


def ends_with_parent() -> dict[str, Any]:
    """Arguments of `subprocess.Popen` that do the same for another program, where the system can (Linux)."""
    return {"preexec_fn": _ask_the_kernel} if _LIBC else {}


def _ask_the_kernel() -> None:
    if _LIBC:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
