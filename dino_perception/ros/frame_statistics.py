"""What happened to every camera's frames and where the time went: counters, rates, latencies of the last seconds."""

from __future__ import annotations

import collections
import threading
import time
from collections.abc import Iterable, Mapping

import numpy as np

from dino_perception.ros.camera_height import GroundHeights

WINDOW_S = 5.0
"""Rates are counted over this many seconds."""
SAMPLES = 512
"""Percentiles are taken over this many values."""


class Rate:
    """Counts events and their rate over the last `WINDOW_S` seconds. Times are seconds of `time.monotonic()`."""

    def __init__(self) -> None:
        self.total = 0
        self.last_s: float | None = None
        self._times: collections.deque[float] = collections.deque()
        self._since = 0.0
        self._lock = threading.Lock()

    def tick(self, now: float) -> None:
        """One event."""
        with self._lock:
            self._forget(now)
            if not self._times:
                self._since = now
            self.total += 1
            self.last_s = now
            self._times.append(now)

    def hz(self, now: float) -> float:
        """Events a second; 0 when none happened within the window."""
        with self._lock:
            self._forget(now)
            seen = now - self._since
            if seen >= WINDOW_S:
                return len(self._times) / WINDOW_S
            # Soon after a first event the window is not full: the gaps between the events are what is known.
            return (len(self._times) - 1) / seen if seen > 0 and self._times else 0.0

    def _forget(self, now: float) -> None:
        while self._times and self._times[0] <= now - WINDOW_S:
            self._times.popleft()


class Spread:
    """The last `SAMPLES` values of a quantity."""

    def __init__(self) -> None:
        self.last_s = 0.0
        self._values: collections.deque[float] = collections.deque(maxlen=SAMPLES)
        self._lock = threading.Lock()

    def add(self, value: float, now: float) -> None:
        with self._lock:
            self._values.append(value)
            self.last_s = now

    def percentiles(self) -> tuple[float, float, float]:
        """The 50th, 95th and 99th percentile; NaN without values."""
        with self._lock:
            values = np.fromiter(self._values, float)
        if not values.size:
            return (float("nan"),) * 3
        p50, p95, p99 = np.percentile(values, (50, 95, 99))
        return float(p50), float(p95), float(p99)


class CameraAccount:
    """One camera's frames: each one received ends in exactly one of the counters below it."""

    def __init__(self) -> None:
        self.received = Rate()
        self.published = Rate()
        self.replaced = Rate()
        """A newer one came before its turn."""
        self.unwatched = Rate()
        """Nobody wanted anything of it."""
        self.too_old = Rate()
        """Older than `max_age` when its turn came, or when its outputs were ready."""
        self.bad = Rate()
        """The message was no usable image."""
        self.failed = Rate()
        """The engine or the outputs failed on it."""
        self.unlike = Rate()
        """It was unlike what a head was trained on; counted besides, for it was published."""
        self.unlike_head = ""
        """Which head said so last."""
        self.bad_reason = ""
        self.age_s: float | None = None
        """Age of the last frame by its stamp when its turn came; None while the clock stands at zero."""
        self.late = False
        """Whether the last frame dropped for its age had been processed before."""
        self.image = ""
        """Size and encoding of the last image."""
        self.heights = GroundHeights()
        """How high the camera stands by its depth."""
        self.no_points = ""
        """Why the last frame could have no points; empty when it could."""


class Account:
    """All cameras, the stages of the pass and the last error. The executor and the worker write, diagnostics reads."""

    def __init__(self, cameras: Iterable[str]) -> None:
        self.cameras = {camera: CameraAccount() for camera in cameras}
        self.last_error = ""
        self.errors = 0
        self.last_error_s: float | None = None
        self._stages: dict[str, Spread] = {}

    def spent(self, milliseconds: Mapping[str, float]) -> None:
        """Stage name -> milliseconds."""
        now = time.monotonic()
        for stage, value in milliseconds.items():
            self._stages.setdefault(stage, Spread()).add(value, now)

    def error(self, text: str) -> None:
        self.errors += 1
        self.last_error, self.last_error_s = text, time.monotonic()

    def latencies(self) -> dict[str, tuple[float, float, float]]:
        """Stage -> (p50, p95, p99) in milliseconds of the stages that ran within the window: a head that nobody
        wants any more is not among them."""
        now = time.monotonic()
        return {
            stage: spread.percentiles()
            for stage, spread in list(self._stages.items())
            if now - spread.last_s <= WINDOW_S
        }
