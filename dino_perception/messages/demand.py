"""Which heads a frame needs: enabled, due, and listened to."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from dino_perception.messages.topics import TOPICS
from dino_perception.perception.settings import HeadSettings

FOREVER_NS = 1e18
"""No rate is so low that it waits for more than these thirty years."""


class Demand:
    """Decides frame by frame. Rates follow the images' stamps, so that they hold in simulated time and in a replay."""

    def __init__(self) -> None:
        self._next_ns: dict[tuple[str, str], int] = {}
        self._last_ns: dict[str, int] = {}

    def decide(
        self, camera: str, stamp_ns: int, listened: Collection[str], heads: Mapping[str, HeadSettings]
    ) -> tuple[set[str], set[str]]:
        """The topics (relative names) to publish for this frame and the heads to run for them.

        `listened` are the topics somebody subscribes to, `heads` the loaded ones with their settings. A topic is
        published when every head it shows that is enabled is due; one that shows several (`points`) needs the first
        of them. A stamp older than the camera's last one starts the rates anew.
        """
        if stamp_ns < self._last_ns.get(camera, stamp_ns):
            self.reset(camera)
        self._last_ns[camera] = stamp_ns
        due = {
            name
            for name, head in heads.items()
            if head.enabled and (head.rate <= 0 or stamp_ns >= self._next_ns.get((camera, name), stamp_ns))
        }
        topics: set[str] = set()
        wanted: set[str] = set()
        for topic in listened:
            shown = TOPICS[topic].heads
            needed = {name for name in shown if name in heads and heads[name].enabled}
            if needed <= due and (not shown or shown[0] in needed):
                topics.add(topic)
                wanted |= needed
        for name in wanted:
            self._plan(camera, name, stamp_ns, heads[name].rate)
        return topics, wanted

    def reset(self, camera: str | None = None) -> None:
        """Forget the past of one camera, or of all."""
        self._last_ns = {key: ns for key, ns in self._last_ns.items() if camera not in (None, key)}
        self._next_ns = {key: ns for key, ns in self._next_ns.items() if camera not in (None, key[0])}

    def memory(self) -> dict[str, Any]:
        """What it remembers, as plain data."""
        return {
            "next": [[camera, head, ns] for (camera, head), ns in self._next_ns.items()],
            "last": dict(self._last_ns),
        }

    def recall(self, memory: Mapping[str, Any]) -> None:
        """Take up again what `memory` gave."""
        self._next_ns = {(camera, head): ns for camera, head, ns in memory.get("next", [])}
        self._last_ns = dict(memory.get("last", {}))

    def _plan(self, camera: str, head: str, stamp_ns: int, rate: float) -> None:
        if rate <= 0:
            self._next_ns.pop((camera, head), None)
            return
        period = round(min(1e9 / rate, FOREVER_NS))
        planned = self._next_ns.get((camera, head), stamp_ns)
        # Counting on from the plan keeps the average at the rate although stamps jitter; after a gap it starts anew.
        self._next_ns[camera, head] = planned + period if stamp_ns - planned < period else stamp_ns + period
