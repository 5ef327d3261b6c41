"""Errors told once a kind and counted: a thousand damaged images of a thousand sizes are one complaint."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

from dino_perception.messages.printable import printable
from dino_perception.ros.frame_statistics import WINDOW_S

REPEAT_S = 10.0
"""The same kind of error is logged again only after this many seconds."""
MOST_KINDS = 1000


class Complaints:
    """Told of errors by any thread; `log` gets a line a kind and `REPEAT_S`, with how many were kept back since."""

    def __init__(self, log: Callable[[str], None]):
        self._log = log
        self._logged: dict[str, tuple[float, int]] = {}  # kind -> when it was last logged, how many came since
        self._lock = threading.Lock()

    def __call__(self, text: str, error: BaseException | None = None, who: str = "") -> None:
        """Complain; the kind is that of `error`, or without one the text itself. Each `who` has kinds of its own."""
        kind = who + (text if error is None else kind_of(error))
        now = time.monotonic()
        with self._lock:
            at, kept = self._logged.get(kind, (-REPEAT_S, 0))
            due = now - at >= REPEAT_S
            if len(self._logged) >= MOST_KINDS and kind not in self._logged:
                self._logged.pop(min(self._logged, key=lambda known: self._logged[known][0]))
            self._logged[kind] = (now, 0) if due else (at, kept + 1)
        if due:
            self._log(printable(text) + (f" (and {kept} more of this kind)" if kept else ""))


class CallbackErrors:
    """What the node's callbacks raised instead of ending the process: counted, and complained about once a kind."""

    def __init__(self, complain: Complaints):
        self._complain = complain
        self.total = 0
        self.last = ""
        self.last_s: float | None = None

    def __call__(self, error: BaseException, where: str = "a callback") -> None:
        self.total += 1
        self.last, self.last_s = printable(f"{type(error).__name__}: {error}"), time.monotonic()
        self._complain(f"{where} failed and was left out: {self.last} ({place_of(error)})", error)

    @property
    def recent(self) -> bool:
        """Whether one happened within the window over which diagnostics look."""
        return self.last_s is not None and time.monotonic() - self.last_s < WINDOW_S


def kind_of(error: BaseException) -> str:
    """Class and place: two errors of one kind differ in their values only."""
    return f"{type(error).__name__} {place_of(error)}"


def place_of(error: BaseException) -> str:
    """file:line where the error was raised."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}" if trace is not None else "nowhere"
