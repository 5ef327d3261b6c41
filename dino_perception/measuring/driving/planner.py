"""The shortest way round what is known to be in the way: A* over square cells, then pulled tight.

Hart, Nilsson and Raphael 1968. What nobody has seen counts as free. Of several clearances, in metres between the rover's
middle and what is in the way, the widest that leaves a way is taken.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence

import cv2
import numpy as np

from dino_perception.measuring.costmaps.grid import Grid

CLEARANCES = (0.9, 0.75, 0.6)
"""The first leaves room to turn on the spot (half the rover's diagonal is 0.73 m), the last to pass straight through
(half its width is 0.45 m)."""
ROUNDS = 4
NEIGHBOURS = [(i, j, math.hypot(i, j)) for i in (-1, 0, 1) for j in (-1, 0, 1) if i or j]


def plan(
    blocked: np.ndarray,
    grid: Grid,
    start: Sequence[float],
    goal: Sequence[float],
    clearances: Sequence[float] = CLEARANCES,
) -> np.ndarray | None:
    """The way (N, 2) in metres from `start` to `goal`, or to the free cell nearest to it where that is closed, past
    `blocked` (X, Y) bool; None where every way is closed. Who stands too near to something may leave it, but never come
    nearer."""
    # The distance to a blocked cell's centre, less half a cell: to its edge, on the safe side of the cell's corners.
    away = cv2.distanceTransform((~blocked).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    away = (away - 0.5) * grid.resolution if blocked.any() else np.full(blocked.shape, np.inf, np.float32)
    for clearance in clearances:
        cells = _search(away, clearance, _cell(grid, start), _nearest_free(away >= clearance, _cell(grid, goal)))
        if cells is not None:
            tight = _pulled(cells, away >= clearance)
            path = (np.array(tight) + 0.5) * grid.resolution + (grid.x, grid.y)
            path[0] = start
            if tight[-1] == _cell(grid, goal):
                path[-1] = goal
            return path if len(path) > 1 else np.array([start, path[-1]])
    return None


def _cell(grid: Grid, place: Sequence[float]) -> tuple[int, int]:
    i, j = ((place[axis] - (grid.x, grid.y)[axis]) / grid.resolution for axis in (0, 1))
    return min(max(int(i), 0), grid.shape[0] - 1), min(max(int(j), 0), grid.shape[1] - 1)


def _nearest_free(free: np.ndarray, cell: tuple[int, int]) -> tuple[int, int]:
    if free[cell] or not free.any():
        return cell
    places = np.argwhere(free)
    i, j = places[((places - cell) ** 2).sum(1).argmin()]
    return int(i), int(j)


def _search(
    away: np.ndarray, clearance: float, start: tuple[int, int], goal: tuple[int, int]
) -> list[tuple[int, int]] | None:
    """The cells of the shortest way over the eight neighbours; None where there is none."""
    width, height = away.shape
    room = away.tolist()  # single elements are read many times quicker than an array's
    cost, before, done = {start: 0.0}, {start: start}, set()
    queue = [(0.0, 0.0, start)]
    while queue:
        _, _, here = heapq.heappop(queue)
        if here in done:
            continue
        done.add(here)
        if here == goal:
            return _back(before, goal)
        i, j = here
        least = min(clearance, room[i][j] + 1e-6)
        for di, dj, length in NEIGHBOURS:
            there = (i + di, j + dj)
            if not (0 <= there[0] < width and 0 <= there[1] < height) or there in done:
                continue
            if room[there[0]][there[1]] < least:
                continue
            new = cost[here] + length
            if new < cost.get(there, math.inf):
                cost[there], before[there] = new, here
                a, b = abs(there[0] - goal[0]), abs(there[1] - goal[1])
                left = max(a, b) + (math.sqrt(2) - 1) * min(a, b)
                straight = math.hypot(a, b)  # of equal ways the one along the straight line is looked at first
                heapq.heappush(queue, (new + left, straight, there))
    return None


def _back(before: dict, cell: tuple[int, int]) -> list[tuple[int, int]]:
    cells = [cell]
    while before[cell] != cell:
        cell = before[cell]
        cells.append(cell)
    return cells[::-1]


def _pulled(cells: Sequence[tuple[int, int]], open_: np.ndarray) -> list[tuple[int, int]]:
    """The way's corners that are left when it is pulled tight: from each as far as a straight line passes through cells
    that are `open_`; from the start, and then, along the straight pieces, from the other end, as the first pull may set
    out in a direction that only the cells gave."""
    line = np.array(cells)
    for _ in range(ROUNDS):
        corners = _corners(line, open_)
        line = np.concatenate([*(_between(a, b)[:-1] for a, b in zip(corners, corners[1:])), corners[-1:]])[::-1]
    return [(int(i), int(j)) for i, j in (corners if ROUNDS % 2 else corners[::-1])]


def _corners(line: np.ndarray, open_: np.ndarray) -> np.ndarray:
    kept = [0]
    while kept[-1] < len(line) - 1:
        here, rest = line[kept[-1]], line[kept[-1] + 1 :]
        share = np.linspace(0, 1, 2 * int(np.abs(rest - here).max()) + 1)
        i, j = (np.rint(here[axis] + share * (rest[:, axis] - here[axis])[:, None]).astype(int) for axis in (0, 1))
        seen = np.flatnonzero(open_[i, j].all(1))
        kept.append(kept[-1] + 1 + int(seen[-1] if len(seen) else 0))
    return line[kept]


def _between(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The cells on the straight line between two, both included."""
    return np.rint(np.linspace(a, b, int(np.abs(b - a).max()) + 1)).astype(int)
