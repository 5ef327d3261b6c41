"""What the robot's own odometry says of distances, where it has one."""

from __future__ import annotations

import collections
import threading
from bisect import bisect_left

import numpy as np

GAP_NS = 500_000_000
"""Two messages further apart than this are not interpolated between."""
KEPT = 200_000
"""Messages that are kept: half an hour at 100 Hz."""


class Wheels:
    """Positions of the robot over time. Any thread may call `hear`."""

    def __init__(self) -> None:
        self._heard: collections.deque[tuple[int, tuple[float, float, float]]] = collections.deque(maxlen=KEPT)
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._heard)

    def hear(self, stamp_ns: int, position: tuple[float, float, float]) -> None:
        """A message. One that is not later than the last begins anew: time went back."""
        if not np.isfinite(position).all():
            return
        with self._lock:
            if self._heard and stamp_ns < self._heard[-1][0]:
                self._heard.clear()
            self._heard.append((stamp_ns, tuple(map(float, position))))

    def metres(self, begin_ns: int, end_ns: int) -> float | None:
        """How far apart the robot was at two times; None where it does not say."""
        with self._lock:
            heard = list(self._heard)
        places = [_at(heard, stamp_ns) for stamp_ns in (begin_ns, end_ns)]
        return None if any(place is None for place in places) else float(np.linalg.norm(places[1] - places[0]))


def _at(heard: list, stamp_ns: int) -> np.ndarray | None:
    index = bisect_left(heard, (stamp_ns, ()))
    if index < len(heard) and heard[index][0] == stamp_ns:
        return np.array(heard[index][1])
    if index in (0, len(heard)):
        return None
    (before, a), (after, b) = heard[index - 1], heard[index]
    if after - before > GAP_NS:
        return None
    share = (stamp_ns - before) / (after - before)
    return (1 - share) * np.array(a) + share * np.array(b)
