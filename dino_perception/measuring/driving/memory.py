"""What was seen where: a grid that rolls along with the rover."""

from __future__ import annotations

import numpy as np

from dino_perception.measuring.driving.course import GRID

KEPT = 12.0
"""Metres from the rover beyond which everything is forgotten."""
HIT, MISS, MOST, LEAST, CLOSED = 1.0, -0.5, 4.0, -1.5, 0.75
"""Log odds: of a look that finds something, of one that finds open ground, the limits, and from where a cell is closed."""


class Memory:
    """Log odds a cell that something is in the way (Moravec and Elfes 1985), 0 where nobody has looked."""

    def __init__(self) -> None:
        self.odds = np.zeros(GRID.shape, np.float32)
        self._centres = GRID.centres()

    @property
    def closed(self) -> np.ndarray:
        """(X, Y) bool."""
        return self.odds >= CLOSED

    def observe(self, seen: np.ndarray, closed: np.ndarray, place: np.ndarray) -> None:
        """One look from `place` (2,) metres: the cells that were `seen` (X, Y) bool, and those of them that are
        `closed`."""
        self.odds += np.where(closed, HIT, np.where(seen, MISS, 0.0)).astype(np.float32)
        np.clip(self.odds, LEAST, MOST, out=self.odds)
        self.odds[np.linalg.norm(self._centres - place, axis=-1) > KEPT] = 0.0


def counted(points: np.ndarray, least: int) -> np.ndarray:
    """(X, Y) bool: the cells that at least so many of (N, 2 or 3) points lie in; points may be NaN."""
    points = points[np.isfinite(points[:, :2]).all(1)]
    cells, inside = GRID.cells(points)
    return (np.bincount(cells[inside], minlength=GRID.shape[0] * GRID.shape[1]) >= least).reshape(GRID.shape)
