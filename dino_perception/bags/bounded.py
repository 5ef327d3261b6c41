"""A queue between two threads that holds so many bytes and no more."""

from __future__ import annotations

import threading
from collections import deque
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

    def get(self) -> Any:
        with self._changed:
            while not self._items and not self._closed:
                self._changed.wait()
            if not self._items:
                raise Closed
            item, size = self._items.popleft()
            self._held -= size
            self._changed.notify_all()
            return item

    def close(self, *, drop: bool = False) -> None:
        """Nothing more comes; with `drop`, what waits is forgotten."""
        with self._changed:
            self._closed = True
            if drop:
                self._items.clear()
                self._held = 0
            self._changed.notify_all()
