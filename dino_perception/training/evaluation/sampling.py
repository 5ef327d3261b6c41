"""Looking an array up on the grid of another one that shows the same."""

from __future__ import annotations

import numpy as np

from dino_perception.perception.geometry import pixels_under


def nearest(array: np.ndarray, height: int, width: int, scale: tuple[float, float] | None = None) -> np.ndarray:
    """`array` (h, w, ...) at the pixel centres of a `height` x `width` grid: nearest neighbour, so nothing is mixed.

    `scale` (x, y) is grid pixels per pixel of the array, by default what makes both cover the same. Where a centre
    lies between two pixels, the later one counts.
    """
    x, y = scale or (width / array.shape[1], height / array.shape[0])
    rows, columns = pixels_under(height, array.shape[0], 1, y), pixels_under(width, array.shape[1], 1, x)
    return array[rows[:, None], columns]
