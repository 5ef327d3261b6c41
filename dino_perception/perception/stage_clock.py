"""Wall time a stage of the pass."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch


class StageClock:
    """Milliseconds by stage, in `ms`; on a GPU a stage ends when its work is done, not when it is queued."""

    def __init__(self, device: torch.device):
        self._device = device
        self._last = time.perf_counter()
        self.ms: dict[str, float] = {}

    def add(self, name: str, ms: float) -> None:
        """Count what was measured elsewhere."""
        self.ms[name] = self.ms.get(name, 0.0) + ms

    def stage(self, name: str) -> None:
        """What has run since the last stage was this one."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        now = time.perf_counter()
        self.add(name, (now - self._last) * 1e3)
        self._last = now


def timed(function: Callable, *arguments: Any) -> tuple[Any, float]:
    """What a function returns, and how many milliseconds it took."""
    start = time.perf_counter()
    result = function(*arguments)
    return result, (time.perf_counter() - start) * 1e3
