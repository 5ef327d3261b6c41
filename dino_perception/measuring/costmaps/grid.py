"""Where a costmap's cells are, and the inflation around what is lethal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

FREE, INSCRIBED, LETHAL = 0, 253, 254
"""nav2_costmap_2d/cost_values.hpp: the robot's centre may not enter a cell from INSCRIBED on."""


@dataclass(frozen=True)
class Grid:
    """Square cells over a fixed part of the global frame, from (`x`, `y`) on, in metres. A rolling costmap keeps its
    cells on such a grid, too, and forgets those that leave its window."""

    x: float
    y: float
    resolution: float
    shape: tuple[int, int]
    """Cells along x and along y."""

    @classmethod
    def around(cls, points: np.ndarray, margin: float, resolution: float) -> Grid:
        """A grid `margin` metres around all (N, 2) points, its borders at multiples of the resolution."""
        low = np.floor((points.min(0) - margin) / resolution).astype(int)
        high = np.ceil((points.max(0) + margin) / resolution).astype(int)
        return cls(low[0] * resolution, low[1] * resolution, resolution, tuple(int(n) for n in high - low))

    def cells(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The (N,) flat cell of each of (N, 2 or 3) points, and whether the point lies on the grid; cells of others are
        of no meaning."""
        ij = np.floor((points[:, :2] - (self.x, self.y)) / self.resolution).astype(np.int64)
        inside = ((ij >= 0) & (ij < self.shape)).all(1)
        return ij[:, 0] * self.shape[1] + ij[:, 1], inside

    def centres(self) -> np.ndarray:
        """(X, Y, 2) metres."""
        i, j = np.indices(self.shape)
        return np.stack([self.x + (i + 0.5) * self.resolution, self.y + (j + 0.5) * self.resolution], axis=-1)


def inflated(costs: np.ndarray, resolution: float, robot_radius: float, parameters: Mapping[str, Any]) -> np.ndarray:
    """nav2_costmap_2d::InflationLayer: costs that fall off around lethal cells, (X, Y) uint8. A cell whose centre is
    within the robot's radius is INSCRIBED; beyond, the cost is 252 exp(-cost_scaling_factor (distance - radius))."""
    away = cv2.distanceTransform((costs < LETHAL).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE) * resolution
    falling = (INSCRIBED - 1) * np.exp(-parameters["cost_scaling_factor"] * (away - robot_radius))
    around = np.where(away <= robot_radius, INSCRIBED, falling).astype(np.uint8)
    around[away > parameters["inflation_radius"]] = FREE
    return np.maximum(costs, around)
