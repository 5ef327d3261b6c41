"""Threads of a replay: a queue of bounded size between them, one that keeps its error, and an orderly Ctrl-C."""

from __future__ import annotations

import signal
import threading
from collections import deque
from collections.abc import Callable
from typing import Any


class Closed(Exception):
    """The other side has gone."""


class BoundedQueue:
    """First in, first out. `put` waits while the queue holds `limit` bytes or more, `get` while it is empty; both raise
    Closed after `close`, `get` only once the queue is empty."""

    def __init__(self, limit: int):
        self._limit, self._held = limit, 0
        self._items: deque[tuple[Any, int]] = deque()
        self._closed = False
        self._changed = threading.Condition()

    def put(self, item: Any, size: int = 0) -> None:
        with self._changed:
            while self._held >= self._limit and not self._closed:
                self._changed.wait()
            if self._closed:
                raise Closed
            self._items.append((item, size))
            self._held += size
            self._changed.notify_all()

    def get(self, enough: Callable[[], bool] = lambda: False) -> Any:
        """`enough` is asked at least five times a second; once it says so, Closed is raised whatever waits."""
        with self._changed:
            while not self._items and not self._closed and not enough():
                self._changed.wait(0.2)
            if not self._items or enough():
                raise Closed
            item, size = self._items.popleft()
            self._held -= size
            self._changed.notify_all()
            return item

    @property
    def full(self) -> bool:
        """Whether `put` would wait."""
        with self._changed:
            return self._held >= self._limit

    def close(self, *, drop: bool = False) -> None:
        """Nothing more comes; with `drop`, what waits is forgotten."""
        with self._changed:
            self._closed = True
            if drop:
                self._items.clear()
                self._held = 0
            self._changed.notify_all()


class Stopper:
    """While it is open, Ctrl-C and SIGTERM are remembered instead of raised, so that no frame is torn apart; a second
    one ends the process at once."""

    def __enter__(self) -> Stopper:
        self.asked = False
        self._before = {}
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, _: object) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True


def started(
    name: str, run: Callable[[], None], errors: list[BaseException], failed: Callable[[], Any]
) -> threading.Thread:
    """A thread whose error is kept for the caller's thread."""

    def body() -> None:
        try:
            run()
        except Closed:
            pass
        except BaseException as error:
            errors.append(error)
            failed()

    thread = threading.Thread(target=body, name=name, daemon=True)
    thread.start()
    return thread
