"""From one thread to the next: one thing waits at most, and whoever has more waits before it is made."""

from __future__ import annotations

import threading
from typing import Any


class Handover:
    """One thread asks for `room` and then `put`s; one thread `take`s, says that the work on it has `begun`, which makes room
    for the next, and that it is `done`. After `close` nobody waits any more and nothing is handed over."""

    def __init__(self) -> None:
        self._waiting: list[Any] = []
        self._starting = self._working = self._closed = False
        self._changed = threading.Condition()

    def room(self) -> bool:
        """Wait until a thing may be put. False once closed."""
        return self._wait(lambda: not self._waiting and not self._starting)

    def put(self, thing: Any) -> None:
        """Hand over, after `room`."""
        with self._changed:
            self._waiting = [thing]
            self._changed.notify_all()

    def take(self) -> Any | None:
        """Wait for a thing. None once closed."""
        if not self._wait(lambda: self._waiting):
            return None
        with self._changed:
            self._starting = self._working = True
            return self._waiting.pop()

    def begun(self) -> None:
        """The next may be made while the one that was taken is worked on."""
        with self._changed:
            self._starting = False
            self._changed.notify_all()

    def done(self) -> None:
        """Nothing more happens with what was taken."""
        with self._changed:
            self._starting = self._working = False
            self._changed.notify_all()

    def settle(self) -> bool:
        """Wait until all that was put is done. False once closed."""
        return self._wait(lambda: not self._waiting and not self._working)

    def close(self) -> None:
        """Wake everybody."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _wait(self, condition) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._closed or condition())
            return not self._closed
