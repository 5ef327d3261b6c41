"""Nav2's layers on ~/traversability and ~/obstacles: the rules of nav2_costmap_2d's StaticLayer and ObstacleLayer (navigation2,
branch jazzy, commit f4108e5)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from dino_perception.measuring.costmaps.grid import FREE, LETHAL, Grid
from dino_perception.perception.frame import Percept
from dino_perception.perception.obstacles import obstacle_points, obstacles
from dino_perception.perception.settings import Settings
from dino_perception.perception.traversability import Maps


class MapLayer:
    """StaticLayer in a rolling costmap, given the costmap's parameters: each cell has what the newest map says of its
    centre. Unknown counts as free here, for it is not closed."""

    def __init__(self, costmap: Mapping[str, Any], grid: Grid, settings: Settings):
        self._costmap, self._settings, self._maps = costmap, settings, Maps()
        self._centres = grid.centres()
        self.costs = np.full(grid.shape, FREE, np.uint8)

    def observe(self, percept: Percept) -> None:
        """One frame, with its pose in the global frame."""
        said = self._maps.see(percept, obstacles(percept, self._settings), self._settings)
        if said is None:
            return
        place = np.floor((self._centres - (said.x, said.y)) / said.resolution).astype(int)
        inside = ((place >= 0) & (place < len(said.cells))).all(-1)
        value = np.full(inside.shape, -1, int)
        value[inside] = said.cells[place[inside][:, 1], place[inside][:, 0]]
        closed = value >= self._costmap["lethal_cost_threshold"]
        scaled = np.where(value > 0, value / self._costmap["lethal_cost_threshold"] * LETHAL, FREE)
        if self._costmap["trinary_costmap"]:
            scaled = np.full(value.shape, FREE)
        self.costs = np.where(closed, LETHAL, scaled).astype(np.uint8)


class ObstacleLayer:
    """The layer in the plane: what ~/obstacles shows is marked, after the rays to all points of ~/points have cleared."""

    def __init__(self, parameters: Mapping[str, Any], grid: Grid, settings: Settings):
        self._mark, self._clear = (parameters[name] for name in parameters["observation_sources"].split())
        self._grid, self._settings = grid, settings
        self.costs = np.full(grid.shape, FREE, np.uint8)

    def observe(self, percept: Percept, points: np.ndarray) -> None:
        """One frame, with its pose in the global frame, and (N, 3) `points` of ~/points there."""
        costs, origin = self.costs.ravel(), percept.pose.position
        ray = points[np.isfinite(points[:, 2])][:, :2] - origin[:2]
        step = self._grid.resolution
        _, one_each = np.unique(np.floor(ray / step).astype(int), axis=0, return_index=True)
        ray = ray[one_each]
        ray *= np.minimum(1, self._clear["raytrace_max_range"] / np.maximum(np.hypot(*ray.T), 1e-9))[:, None]
        for share in np.linspace(0, 1, 2 * int(np.ceil(self._clear["raytrace_max_range"] / step))):
            cell, inside = self._grid.cells(origin[:2] + share * ray)
            costs[cell[inside]] = FREE
        found = obstacles(percept, self._settings)
        if found is None:
            return
        cloud = obstacle_points(percept, found, self._settings.obstacles.min_confidence)
        marked = np.stack([cloud[axis] for axis in "xyz"], -1).astype(np.float64)
        away = np.linalg.norm(marked, axis=1)
        near = (away >= self._mark["obstacle_min_range"]) & (away < self._mark["obstacle_max_range"])
        cell, inside = self._grid.cells(percept.pose.to_odom(marked[near]))
        costs[cell[inside]] = LETHAL
