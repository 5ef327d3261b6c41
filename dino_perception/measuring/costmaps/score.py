"""What a costmap's configuration finds on a recording whose truth is known, with the true outputs and with the model's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from dino_perception.measuring.costmaps.grid import INSCRIBED, Grid
from dino_perception.measuring.costmaps.ground_layers import MapLayer, ObstacleLayer
from dino_perception.measuring.costmaps.semantic_layer import SemanticLayer
from dino_perception.measuring.costmaps.voxel_layer import VoxelLayer
from dino_perception.perception.frame import Percept
from dino_perception.perception.settings import Settings

TALL = 0.25
"""Metres over the ground around it from which a rock is an obstacle."""
NEAR = 5.0
"""Metres from the camera within which cells are counted."""
LEVEL = 0.8
"""Metres around a cell whose ground is its level."""
LEAST = 3
"""Pixels that must show a cell before it counts."""
SETTLE = 3
"""Frames that a layer may see before it is judged: some classes cost fully only after several."""


@dataclass(frozen=True)
class Observation:
    """One frame as a costmap gets it: (N, 3) points in the global frame, (N,) class ids and confidences 0..255, and
    the camera's place (3,); and the whole percept, with its pose in the global frame."""

    seconds: float
    points: np.ndarray
    classes: np.ndarray
    confidence: np.ndarray
    origin: np.ndarray
    percept: Percept | None = None


@dataclass(frozen=True)
class CostmapScore:
    """Of the cells seen within 5 m: the share of those with tall rocks, and of those with ground only, that are closed
    (cost 253 or more); what the ground costs on average; and how many there were, counted in every frame."""

    rocks_found: float
    ground_closed: float
    ground_cost: float
    rocks: int
    ground: int


def score(
    costmap: Mapping[str, Any], truth: Sequence[Observation], seen: Sequence[Observation], names: Mapping[int, str]
) -> CostmapScore:
    """Runs the layers of `costmap`, the `ros__parameters` of a costmap, over `seen`, and compares with `truth`, frame by
    frame. `names` are the classes of both by id; a class whose name ends in "rock" is one that may be tall."""
    grid = Grid.around(np.concatenate([view.origin[None, :2] for view in truth]), NEAR + 2.0, costmap["resolution"])
    tall, any_rock = _rocks(truth, grid, names)
    by_rock = cv2.dilate(any_rock.astype(np.uint8), np.ones((3, 3), np.uint8)).ravel() > 0
    layers = [_layer(costmap, name, names, grid) for name in costmap["plugins"] if name != "inflation_layer"]
    found, closed, costs = [], [], []
    for number, (true, view) in enumerate(zip(truth, seen)):
        for layer in layers:
            layer(view)
        if number < SETTLE:
            continue
        master = np.max([layer.costs() for layer in layers], axis=0).ravel()
        cells, near = _cells(true, grid)
        rock = near & _is_rock(true, names)
        rocks = _counted(cells[rock]) if rock.any() else np.empty(0, int)
        rocks = rocks[tall.ravel()[rocks]]
        ground = _counted(cells[near & ~_is_rock(true, names)])
        ground = ground[~by_rock[ground]]
        found.append(master[rocks] >= INSCRIBED)
        closed.append(master[ground] >= INSCRIBED)
        costs.append(master[ground])
    found, closed, costs = map(np.concatenate, (found, closed, costs))
    return CostmapScore(float(found.mean()), float(closed.mean()), float(costs.mean()), len(found), len(closed))


class _layer:
    """A layer that takes views."""

    def __init__(self, costmap: Mapping[str, Any], name: str, names: Mapping[int, str], grid: Grid):
        parameters = costmap[name]
        self._kind = parameters["plugin"].rpartition("::")[2]
        if self._kind == "SemanticSegmentationLayer":
            (source,) = parameters["observation_sources"].split()
            self._layer: Any = SemanticLayer(parameters[source], names, grid)
        elif self._kind == "StaticLayer":
            self._layer = MapLayer(costmap, grid, Settings())
        elif self._kind == "ObstacleLayer":
            self._layer = ObstacleLayer(parameters, grid, Settings())
        else:
            self._layer = VoxelLayer(parameters, grid)

    def __call__(self, view: Observation) -> None:
        if self._kind == "SemanticSegmentationLayer":
            self._layer.observe(view.seconds, view.points, view.origin, view.classes, view.confidence)
        elif self._kind == "StaticLayer":
            self._layer.observe(view.percept)
        elif self._kind == "ObstacleLayer":
            self._layer.observe(view.percept, view.points)
        else:
            self._layer.observe(view.points, view.origin)

    def costs(self) -> np.ndarray:
        return self._layer.costs


def _rocks(truth: Sequence[Observation], grid: Grid, names: Mapping[int, str]) -> tuple[np.ndarray, np.ndarray]:
    """Which cells hold rock that stands over the ground around it by more than `TALL`, and which hold any rock."""
    total, count = (np.zeros(grid.shape) for _ in range(2))
    top = np.full(grid.shape, -np.inf)
    for view in truth:
        cells, near = _cells(view, grid)
        rock = _is_rock(view, names)
        np.add.at(total.ravel(), cells[near & ~rock], view.points[near & ~rock, 2])
        np.add.at(count.ravel(), cells[near & ~rock], 1)
        np.maximum.at(top.ravel(), cells[near & rock], view.points[near & rock, 2])
    side = 2 * round(LEVEL / grid.resolution) + 1
    total, count = (cv2.boxFilter(values, -1, (side, side), normalize=False) for values in (total, count))
    with np.errstate(divide="ignore", invalid="ignore"):
        tall = top - total / count > TALL
    return tall, np.isfinite(top)


def _cells(view: Observation, grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """The flat cell of every point, and which of them are near and on the grid."""
    cells, inside = grid.cells(np.nan_to_num(view.points, nan=1e9))
    with np.errstate(invalid="ignore"):
        return cells, inside & (np.linalg.norm(view.points - view.origin, axis=1) < NEAR)


def _is_rock(view: Observation, names: Mapping[int, str]) -> np.ndarray:
    return np.isin(view.classes, [id_ for id_, name in names.items() if name.endswith("rock") and name != "bedrock"])


def _counted(cells: np.ndarray) -> np.ndarray:
    """The cells that occur at least `LEAST` times."""
    found, times = np.unique(cells, return_counts=True)
    return found[times >= LEAST]
