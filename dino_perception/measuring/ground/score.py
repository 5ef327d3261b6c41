"""How many of the places where a robot may not drive are told, and how many of those told are such places."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np

from dino_perception.measuring.ground.worlds import CELL, Drive, Seen
from dino_perception.perception import geometry
from dino_perception.perception.frame import Percept
from dino_perception.perception.obstacles import obstacle_points, obstacles
from dino_perception.perception.settings import Settings
from dino_perception.perception.traversability import Maps

EDGES = (0.0, 3.0, 5.0, 8.0)
"""Metres from the camera between which cells are counted together."""
ASIDE = 5.0
"""Metres to each side up to which cells are counted."""
SHOWN = 3
"""Pixels that must show a cell, by the true depth, before it counts."""
TOLD = 2
"""Points that close a cell."""

Look = Callable[[Seen, Percept], np.ndarray]
"""What a way of looking tells of a frame: (N, 3) points in the world that are in the way."""


def over_local_ground(settings: Settings) -> Look:
    """The points of ~/obstacles."""

    def look(seen: Seen, percept: Percept) -> np.ndarray:
        found = obstacles(percept, settings)
        if found is None:
            return np.zeros((0, 3))
        cloud = obstacle_points(percept, found, settings.obstacles.min_confidence)
        return percept.pose.to_odom(np.stack([cloud[axis] for axis in "xyz"], -1).astype(np.float64))

    return look


def over_odom(settings: Settings) -> Look:
    """Points higher than a step over the place of the robot in odom: what a voxel layer with a fixed height marks."""

    def look(seen: Seen, percept: Percept) -> np.ndarray:
        points = geometry.points(percept.depth.metres, geometry.rays(percept.output_camera)).reshape(-1, 3)
        world = percept.pose.to_odom(points.astype(np.float64))
        with np.errstate(invalid="ignore"):
            high = (world[:, 2] > seen.base + settings.robot.step) & (
                world[:, 2] < seen.base + settings.robot.step + 2.0
            )
        return world[high & (np.linalg.norm(points, axis=1) < EDGES[-1] + 1)]

    return look


@dataclass
class Count:
    """Of the cells that a frame shows, by distance: `closed` truly, of which `found`; `told` to be closed, of which
    `right`. A neighbour of a cell stands for it: 0.2 m are the least that a costmap inflates."""

    closed: np.ndarray = field(default_factory=lambda: np.zeros(len(EDGES) - 1, np.int64))
    found: np.ndarray = field(default_factory=lambda: np.zeros(len(EDGES) - 1, np.int64))
    told: np.ndarray = field(default_factory=lambda: np.zeros(len(EDGES) - 1, np.int64))
    right: np.ndarray = field(default_factory=lambda: np.zeros(len(EDGES) - 1, np.int64))

    def add(self, truth: np.ndarray, told: np.ndarray, shown: np.ndarray, away: np.ndarray) -> None:
        """Count one frame's cells, all (N, N); `away` is their distance in metres, NaN where they do not count."""
        band = np.digitize(np.nan_to_num(away, nan=1e9), EDGES) - 1
        near_truth, near_told = (cv2.dilate(a.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0 for a in (truth, told))
        for i in range(len(EDGES) - 1):
            here = shown & (band == i)
            self.closed[i] += np.count_nonzero(here & truth)
            self.found[i] += np.count_nonzero(here & truth & near_told)
            self.told[i] += np.count_nonzero(here & told)
            self.right[i] += np.count_nonzero(here & told & near_truth)

    def recall(self, band: int | slice = slice(None)) -> float:
        return _share(self.found[band], self.closed[band])

    def precision(self, band: int | slice = slice(None)) -> float:
        return _share(self.right[band], self.told[band])


def count(drives: Iterable[Drive], look: Look, percepts: Callable[[Seen], Percept]) -> dict[str, Count]:
    """What a way of looking finds, by the kind of the world. `percepts` gives what it is told of each frame."""
    counts: dict[str, Count] = {}
    for drive in drives:
        total = counts.setdefault(drive.kind, Count())
        for seen in drive.frames:
            shown, away = _shown(drive, seen)
            total.add(drive.truth.closed, _cells(drive, look(seen, percepts(seen)), TOLD), shown, away)
    return counts


@dataclass
class MapCount:
    """After each drive: cells that a frame has shown within 8 m, truly `closed` and `open_`, and how the map has them."""

    closed: int = 0
    closed_found: int = 0
    closed_unknown: int = 0
    open_: int = 0
    open_closed: int = 0
    open_unknown: int = 0


def count_maps(drives: Iterable[Drive], settings: Settings, percepts: Callable[[Seen], Percept]) -> dict[str, MapCount]:
    """What the map of a whole drive holds at its end, by the kind of the world."""
    counts: dict[str, MapCount] = {}
    for drive in drives:
        maps, ever = Maps(), np.zeros(drive.truth.closed.shape, bool)
        grid = None
        for seen in drive.frames:
            percept = percepts(seen)
            grid = maps.see(percept, obstacles(percept, settings), settings) or grid
            shown, away = _shown(drive, seen)
            ever |= shown & (away < EDGES[-1])
        if grid is None:
            continue
        rows, columns = np.indices(grid.cells.shape)
        centres = np.stack([columns, rows], -1).reshape(-1, 2) * grid.resolution + (grid.x, grid.y)
        cell, inside = drive.truth.cells(centres + grid.resolution / 2)
        value = np.full(drive.truth.closed.size, -1, np.int64)
        covered = np.zeros(value.size, bool)
        covered[cell[inside]] = True
        np.maximum.at(value, cell[inside], grid.cells.ravel()[inside].astype(np.int64))
        value, ever = value.reshape(ever.shape), ever & covered.reshape(ever.shape)
        truth = drive.truth.closed
        told = cv2.dilate((value == 100).astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
        beside = cv2.dilate(truth.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
        total = counts.setdefault(drive.kind, MapCount())
        total.closed += np.count_nonzero(ever & truth)
        total.closed_found += np.count_nonzero(ever & truth & told)
        total.closed_unknown += np.count_nonzero(ever & truth & ~told & (value < 0))
        total.open_ += np.count_nonzero(ever & ~beside)
        total.open_closed += np.count_nonzero(ever & ~beside & (value == 100))
        total.open_unknown += np.count_nonzero(ever & ~beside & (value < 0))
    return counts


def _shown(drive: Drive, seen: Seen) -> tuple[np.ndarray, np.ndarray]:
    """Which cells a frame shows, by its true depth, (N, N) bool; and how far each is from the camera, NaN beside the
    square that counts."""
    true = seen.percept
    points = geometry.points(true.depth.metres, geometry.rays(true.output_camera)).reshape(-1, 3)
    shown = _cells(drive, true.pose.to_odom(points.astype(np.float64)), SHOWN)
    side = len(drive.truth.closed)
    axis = drive.truth.start + (np.arange(side) + 0.5) * CELL
    ahead = true.pose.rotation[:2, 2] / np.linalg.norm(true.pose.rotation[:2, 2])
    x, y = axis[None, :] - true.pose.position[0], axis[:, None] - true.pose.position[1]
    aside = np.abs(-ahead[1] * x + ahead[0] * y)
    return shown, np.where(aside <= ASIDE, np.hypot(x, y), np.nan)


def _cells(drive: Drive, points: np.ndarray, least: int) -> np.ndarray:
    """(N, N) bool: the cells with at least so many of (N, 3) points."""
    cell, inside = drive.truth.cells(points)
    found = np.bincount(cell[inside], minlength=drive.truth.closed.size)
    return (found >= least).reshape(drive.truth.closed.shape)


def _share(part: np.ndarray | int, whole: np.ndarray | int) -> float:
    whole = int(np.sum(whole))
    return int(np.sum(part)) / whole if whole else float("nan")


def without_classes(percepts: Callable[[Seen], Percept]) -> Callable[[Seen], Percept]:
    """The same without segmentation."""
    return lambda seen: dataclasses.replace(percepts(seen), segmentation=None)


def band_names() -> Sequence[str]:
    return [f"{near:g}-{far:g} m" for near, far in zip(EDGES, EDGES[1:])]
