"""Merging parts of a recording in time without opening them all at once."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

Part = tuple[int, Callable[[], Iterable[tuple[int, Any]]]]
"""The earliest time in a part, and what opens it: an iterable of (time, item) that does not go back in time."""


def merged(parts: Sequence[Part]) -> Iterator[tuple[int, Any]]:
    """(time, item) of all parts, by time; at one time the earlier part comes first. A part is opened when its start is
    reached, so that as many are in memory as overlap."""
    waiting = sorted(range(len(parts)), key=lambda number: (parts[number][0], number), reverse=True)
    heap: list[tuple[int, int, Any, Iterator]] = []
    while waiting or heap:
        while waiting and (not heap or parts[waiting[-1]][0] <= heap[0][0]):
            number = waiting.pop()
            _push(heap, number, iter(parts[number][1]()))
        if not heap:
            continue
        time, number, item, rest = heapq.heappop(heap)
        yield time, item
        del item  # it may hold a chunk's memory
        _push(heap, number, rest)


def _push(heap: list, number: int, rest: Iterator) -> None:
    for time, item in rest:
        heapq.heappush(heap, (time, number, item, rest))
        return
