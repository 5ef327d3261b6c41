"""Wall time a stage of the pass."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from dino_perception.perception.frame import Percept


class StageClock:
    """Milliseconds by stage, in `ms`. On a GPU a stage is what the device did between two events in its queue; nobody
    waits for them before `settle`."""

    def __init__(self, device: torch.device):
        self._device = device
        self._last = time.perf_counter()
        self._events = [("", self._event())] if device.type == "cuda" else []
        self.ms: dict[str, float] = {}

    def add(self, name: str, ms: float) -> None:
        """Count what was measured elsewhere."""
        self.ms[name] = self.ms.get(name, 0.0) + ms

    def stage(self, name: str) -> None:
        """What has run, or was queued, since the last stage was this one."""
        if self._device.type == "cuda":
            self._events.append((name, self._event()))
            return
        self.on_host(name)

    def settle(self) -> None:
        """Read the events, waiting for the last of them."""
        if self._events:
            self._events[-1][1].synchronize()
        for (_, before), (name, after) in zip(self._events, self._events[1:]):
            self.add(name, before.elapsed_time(after))
        if self._events:
            self._last = time.perf_counter()

    def on_host(self, name: str) -> None:
        """What the host has done since the last stage, or since `settle`, was this."""
        now = time.perf_counter()
        self.add(name, (now - self._last) * 1e3)
        self._last = now
        self._events = [("", self._event())] if self._events else []

    @staticmethod
    def _event() -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def timed(function: Callable, *arguments: Any) -> tuple[Any, float]:
    """What a function returns, and how many milliseconds it took."""
    start = time.perf_counter()
    result = function(*arguments)
    return result, (time.perf_counter() - start) * 1e3


def spent(percept: Percept, stage: str, function: Callable, *arguments: Any) -> Any:
    """What a function returns; its time is added to a stage of the percept."""
    result, ms = timed(function, *arguments)
    if isinstance(percept.stage_ms, dict):
        percept.stage_ms[stage] = percept.stage_ms.get(stage, 0.0) + ms
    return result
