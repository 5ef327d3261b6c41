"""The semantic_segmentation_layer's rules (ros-navigation/semantic_segmentation_layer, branch jazzy, commit d1914ba)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from dino_perception.measuring.costmaps.grid import FREE, Grid


class SemanticLayer:
    """One source of the layer, given its block of the parameter file, and the class names by id that label_info sends.

    Of a frame's points in one cell one observation remains; a cell keeps the observations of `tile_map_decay_time`, of
    which the class that was seen most often, or one with `dominant_priority`, decides. Cells that nothing is known about
    any more keep their last cost, as the layer's own map does.
    """

    def __init__(self, source: Mapping[str, Any], labels: Mapping[int, str], grid: Grid):
        self._source, self._grid = source, grid
        groups = [source[name] for name in source["class_types"]]
        by_name = {name: group for group in reversed(groups) for name in group["classes"]}  # the first one counts
        self._groups = {id_: by_name[name] for id_, name in labels.items() if name in by_name}
        self._dearest = np.zeros(256, np.int64)
        for id_, group in self._groups.items():
            self._dearest[id_] = group["max_cost"]
        self._cells: dict[int, _Cell] = {}
        self.costs = np.full(grid.shape, FREE, np.uint8)

    def observe(
        self, seconds: float, points: np.ndarray, origin: np.ndarray, classes: np.ndarray, confidence: np.ndarray
    ) -> None:
        """One frame: (N, 3) points in the global frame, those without a depth NaN, (N,) class ids and (N,) confidences
        0..255 of the same pixels, and the camera's place (3,)."""
        away = np.linalg.norm(points - origin, axis=1)
        near = (away > self._source["min_obstacle_distance"]) & (away < self._source["max_obstacle_distance"])
        chosen = np.flatnonzero(near & np.isfinite(points[:, 2]))
        cells, inside = self._grid.cells(points[chosen])
        chosen, cells = chosen[inside], cells[inside]
        rank = self._dearest[classes[chosen]] if self._source["use_cost_selection"] else confidence[chosen].astype(int)
        order = np.lexsort((chosen, -rank, cells))  # of equal rank the first pixel stays
        first = np.unique(cells[order], return_index=True)[1]
        for index in order[first]:
            id_ = int(classes[chosen[index]])
            if id_ in self._groups:
                cell = self._cells.setdefault(int(cells[index]), _Cell())
                cell.push(id_, seconds, float(confidence[chosen[index]]), self._groups[id_]["dominant_priority"])
        self._update(seconds)

    def _update(self, now: float) -> None:
        costs = self.costs.ravel()
        for index, cell in list(self._cells.items()):
            cell.forget(now - self._source["tile_map_decay_time"])
            if cell.dominant is None:
                del self._cells[index]
                continue
            group, seen = self._groups[cell.dominant], cell.seen[cell.dominant]
            certain = sum(c for _, c in seen) / len(seen) > group["mark_confidence"]
            sure = certain and len(seen) >= group["samples_to_max_cost"]
            costs[index] = group["max_cost"] if sure else group["base_cost"]


class _Cell:
    """TemporalObservationQueue: what a cell was seen as, and which class leads."""

    def __init__(self) -> None:
        self.seen: dict[int, list[tuple[float, float]]] = {}
        """Class id -> (seconds, confidence), oldest first."""
        self.dominant: int | None = None
        self._size = 0

    def push(self, id_: int, seconds: float, confidence: float, priority: bool) -> None:
        queue = self.seen.setdefault(id_, [])
        queue.append((seconds, confidence))
        if priority or len(queue) > self._size:
            if self.dominant not in (None, id_):
                self.seen = {id_: queue}
            self.dominant, self._size = id_, len(queue)

    def forget(self, before: float) -> None:
        self.seen = {
            id_: kept for id_, queue in self.seen.items() if (kept := [seen for seen in queue if seen[0] >= before])
        }
        if self.dominant not in self.seen:
            self.dominant = max(self.seen, key=lambda id_: len(self.seen[id_]), default=None)
        self._size = len(self.seen.get(self.dominant, ()))
