"""The rules of nav2_costmap_2d::VoxelLayer (navigation2, branch jazzy, commit f4108e5)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from dino_perception.measuring.costmaps.grid import FREE, LETHAL, Grid


class VoxelLayer:
    """The layer, given its block of the parameter file. Sources that clear do so before those that mark mark."""

    def __init__(self, parameters: Mapping[str, Any], grid: Grid):
        self._layer, self._grid = parameters, grid
        self._sources = [parameters[name] for name in parameters["observation_sources"].split()]
        self._marked = np.zeros((*grid.shape, parameters["z_voxels"]), bool)

    @property
    def costs(self) -> np.ndarray:
        """(X, Y) uint8: LETHAL where more than `mark_threshold` voxels of the column are marked."""
        occupied = self._marked.sum(2) > self._layer["mark_threshold"]
        return np.where(occupied, LETHAL, FREE).astype(np.uint8)

    def observe(self, points: np.ndarray, origin: np.ndarray) -> None:
        """One cloud: (N, 3) points in the global frame, those without a depth NaN, and the camera's place (3,)."""
        points = points[np.isfinite(points[:, 2])]
        given = [
            (
                source,
                points[
                    (points[:, 2] >= source["min_obstacle_height"]) & (points[:, 2] <= source["max_obstacle_height"])
                ],
            )
            for source in self._sources
        ]
        for source, cloud in given:
            if source["clearing"]:
                self._clear(cloud, origin, source["raytrace_max_range"])
        for source, cloud in given:
            if source["marking"]:
                self._mark(cloud, origin, source)

    def _mark(self, points: np.ndarray, origin: np.ndarray, source: Mapping[str, Any]) -> None:
        layer, away = self._layer, np.linalg.norm(points - origin, axis=1)
        points = points[
            (points[:, 2] >= layer["min_obstacle_height"])
            & (points[:, 2] <= layer["max_obstacle_height"])
            & (away >= source["obstacle_min_range"])
            & (away < source["obstacle_max_range"])
        ]
        cells, inside = self._grid.cells(points)
        levels = self._levels(np.maximum(points[:, 2], layer["origin_z"]))
        inside &= levels < layer["z_voxels"]
        self._marked.reshape(-1, layer["z_voxels"])[cells[inside], levels[inside]] = True

    def _clear(self, points: np.ndarray, origin: np.ndarray, reach: float) -> None:
        """Frees the voxels between the camera and each point, up to two cells before it. Points in one voxel have one
        ray: the others' hardly differ."""
        layer, resolution = self._layer, self._grid.resolution
        top = layer["origin_z"] + layer["z_voxels"] * layer["z_resolution"]
        if not layer["origin_z"] <= origin[2] < top or not len(points):
            return  # Nav2 warns that the sensor's origin is out of the map, and clears nothing
        steps = np.array([resolution, resolution, layer["z_resolution"]])
        _, one_each = np.unique(np.floor(points / steps).astype(np.int64), axis=0, return_index=True)
        ray = points[one_each] - origin
        length = np.linalg.norm(ray, axis=1)
        share = np.clip((length - 2 * resolution) / length, 0, 1)
        share = np.minimum(share, reach / np.maximum(np.hypot(ray[:, 0], ray[:, 1]), 1e-9))
        with np.errstate(divide="ignore", invalid="ignore"):
            floor = np.where(ray[:, 2] < 0, (layer["origin_z"] - origin[2]) / ray[:, 2], np.inf)
            ceiling = np.where(ray[:, 2] > 0, (top - 0.01 - origin[2]) / ray[:, 2], np.inf)
        ray *= np.minimum(share, np.minimum(floor, ceiling))[:, None]
        count = int(np.ceil(np.abs(ray / steps).max() * 2)) + 1  # two samples a voxel miss none but corners
        for t in np.linspace(0, 1, count):
            at = origin + t * ray
            cells, inside = self._grid.cells(at)
            levels = self._levels(at[:, 2])
            inside &= (levels >= 0) & (levels < layer["z_voxels"])
            self._marked.reshape(-1, layer["z_voxels"])[cells[inside], levels[inside]] = False

    def _levels(self, z: np.ndarray) -> np.ndarray:
        return np.floor((z - self._layer["origin_z"]) / self._layer["z_resolution"] + 1e-9).astype(np.int64)
