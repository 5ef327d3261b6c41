"""One slot a camera: the newest message wins, and the worker sleeps while all are empty."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Letter:
    """A message as it came in. `stamp_ns` is its header's stamp, `received_s` is `time.monotonic()` at arrival."""

    message: Any
    stamp_ns: int
    received_s: float


class Mailbox:
    """`put` never waits and never grows; `take` hands over what waits, at most one letter a camera, so that a silent camera
    delays nobody and a fast one takes nobody's turn."""

    def __init__(self) -> None:
        self._slots: dict[str, Letter] = {}
        self._turns: dict[str, int] = {}  # when each camera was last served, counted in letters
        self._served = 0
        self._changed = threading.Condition()
        self._closed = False

    def put(self, camera: str, letter: Letter) -> bool:
        """Leave a letter. True when it replaced one that waited in this camera's slot. Once closed, nothing happens."""
        with self._changed:
            if self._closed:
                return False
            replaced = self._slots.pop(camera, None) is not None
            self._slots[camera] = letter  # at the end: the order of the slots is the order of arrival
            self._changed.notify()
            return replaced

    def take(self, timeout: float | None = None, most: int | None = None) -> dict[str, Letter]:
        """Wait for letters, up to `timeout` seconds or for ever, and take them, at most `most`: first those of cameras
        that were not served for longest, among such the longest waiting. Empty after the timeout and once closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._slots or self._closed, timeout)
            turn = sorted(self._slots, key=lambda camera: self._turns.get(camera, 0))[:most]
            letters = {camera: self._slots.pop(camera) for camera in turn}
            for camera in turn:
                self._served += 1
                self._turns[camera] = self._served
            return letters

    def clear(self) -> None:
        """Throw away what waits."""
        with self._changed:
            self._slots = {}

    def close(self) -> None:
        """Wake whoever waits and take no more letters."""
        with self._changed:
            self._closed = True
            self._slots = {}
            self._changed.notify_all()

    @property
    def closed(self) -> bool:
        return self._closed
